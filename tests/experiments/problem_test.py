import pytest

from keras_plasticity import experiments


@pytest.mark.parametrize(
    ("num_tasks", "expected"),
    [(2000, 50), (200, 50), (199, 49), (20, 5), (3, 1)],
)
def test_a_short_run_has_four_bins(num_tasks, expected):
    assert experiments.tasks_per_bin(50, num_tasks) == expected
