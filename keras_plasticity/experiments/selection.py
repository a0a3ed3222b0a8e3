"""Settings are chosen by other seeds than their results are reported on."""

from collections.abc import Sequence

from keras_plasticity import validation


def separate_seeds(
    num_selection: int, num_report: int, first_seed: int = 0
) -> tuple[list[int], list[int]]:
    """Seeds to choose settings by, and others to report results of.

    The best of many settings was lucky with the seeds that it was chosen by:
    its results on them are better than what anybody gets after.

    Args:
        num_selection: Integer, how many seeds settings are chosen by.
        num_report: Integer, how many seeds the chosen one is reported on.
        first_seed: Integer, the first of all. Defaults to `0`.

    Returns:
        Tuple of two lists of integers, which have none in common.

    Example:

    >>> separate_seeds(3, 4)
    ([0, 1, 2], [3, 4, 5, 6])
    """
    num_selection = validation.check_positive_integer(
        "num_selection", num_selection, 10**6
    )
    num_report = validation.check_positive_integer(
        "num_report", num_report, 10**6
    )
    first_seed = validation.check_integer(
        "first_seed", first_seed, 0, validation.LARGEST_INTEGER - 2 * 10**6
    )
    middle = first_seed + num_selection
    return (
        list(range(first_seed, middle)),
        list(range(middle, middle + num_report)),
    )


def check_separate_seeds(
    selection_seeds: Sequence[int], report_seeds: Sequence[int]
):
    """Refuses to report results on seeds that settings were chosen by.

    Args:
        selection_seeds: Sequence of integers.
        report_seeds: Sequence of integers.

    Raises:
        ValueError: If a seed is in both.

    Example:

    ```python
    keras_plasticity.experiments.check_separate_seeds([0, 1, 2], [3, 4, 5])
    ```
    """
    found = []
    for name, seeds in (
        ("selection_seeds", selection_seeds),
        ("report_seeds", report_seeds),
    ):
        rule = "a list of integers"
        seeds = validation.check_list(name, seeds, rule=rule)
        if not all(map(validation.is_integer, seeds)):
            raise validation.error(name, rule, seeds)
        found.append(set(map(int, seeds)))
    shared = sorted(found[0] & found[1])
    if shared:
        raise ValueError(
            "`report_seeds` must be others than `selection_seeds`: the setting "
            "that was chosen was lucky with those. Take seeds from "
            f"{max(found[0] | found[1]) + 1} on. Received: "
            f"report_seeds={sorted(found[1])}, of which {shared} are among "
            f"selection_seeds={sorted(found[0])}"
        )
