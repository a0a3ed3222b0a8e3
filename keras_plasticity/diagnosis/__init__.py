"""What a model's plasticity is, by measures that need its loss."""

__all__ = []
