"""How units lie in weights and features, and the statistics kept of them."""
