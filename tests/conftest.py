import keras
import pytest

if keras.backend.backend() == "torch":
    import torch

    # The problems here are tiny: more threads only wait for one another.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Every test draws the same numbers, alone or among others."""
    keras.utils.set_random_seed(42)
