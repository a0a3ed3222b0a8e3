"""What a trainer shows: its metric, its defaults and published results."""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from keras_plasticity import validation
from keras_plasticity.experiments.methods import Method

_FEWEST_BINS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """What a trainer shows: its metric, its defaults and published results.

    The defaults are those of a classification problem, shown in percent, one
    point for each task.

    Args:
        name: String, as in the names of files.
        title: String, as in headings.
        metric: String, the name of what is shown, as in tags and files.
        result: String, what the engine calls it.
        metric_label: String, what the figure calls it.
        examples_per_task: Integer.
        num_probe_examples: Integer, the diagnostics measure on this many of
            a task's first examples.
        defaults: Dict from the name of a method's flag to its default for this
            problem, or to a dict from part to the default for methods with
            that part, the first of them that a method has, and from `None` to
            the one for all others.
        published: Function of a `Method` that returns a list of points
            `(x, y)` of the published figure, in its units.
        lower_is_better: Boolean. Defaults to `False`.
        scale: Number that the figure multiplies the metric by. Defaults to
            `100.0`.
        format: String, how the tables write it. Defaults to `".2f"`.
        tasks_per_bin: Integer, of how many tasks the figure shows the mean.
            Defaults to `1`.
        x_label: String, the figure's x-axis. Defaults to `"tasks"`.
        x_per_task: Integer, what a task is on the x-axis. Defaults to `1`.
        num_learners: Integer, where `--num_learners` is not given. Defaults
            to `1`.
        methods: Sequence of strings, where `--method` is not given. Defaults
            to `("bp", "cbp")`.
        diagnostics: Boolean, where `--diagnostics` is not given. Defaults to
            `True`.
        num_weights: Integer, the weights of a learner's network, by which
            `--device=auto` chooses. Defaults to `None`: as if they were many.
        may_grow: Names of flags that may be larger when a run is resumed.
            Defaults to `("num_tasks",)`.

    Example:

    ```python
    problem = Problem(
        name="online_permuted_mnist",
        title="Online Permuted MNIST",
        metric="online_accuracy",
        result="accuracy",
        metric_label="online accuracy (%)",
        examples_per_task=60_000,
        num_probe_examples=2000,
        defaults={"learning_rate": {None: 0.003, "adam": 1e-4}},
        published=lambda method: [(1, 93.7), (150, 93.75)],
    )
    ```
    """

    name: str
    title: str
    metric: str
    result: str
    metric_label: str
    examples_per_task: int
    num_probe_examples: int
    defaults: Mapping[str, Any]
    published: Callable[[Method], list[tuple[float, float]]]
    lower_is_better: bool = False
    scale: float = 100.0
    format: str = ".2f"
    tasks_per_bin: int = 1
    x_label: str = "tasks"
    x_per_task: int = 1
    num_learners: int = 1
    methods: Sequence[str] = ("bp", "cbp")
    diagnostics: bool = True
    num_weights: int | None = None
    may_grow: Sequence[str] = ("num_tasks",)

    def __post_init__(self):
        for name in (
            "name",
            "title",
            "metric",
            "result",
            "metric_label",
            "format",
            "x_label",
        ):
            validation.check_string(name, getattr(self, name))
        for name in (
            "examples_per_task",
            "num_probe_examples",
            "tasks_per_bin",
            "x_per_task",
            "num_learners",
        ):
            validation.check_positive_integer(name, getattr(self, name))
        if self.num_weights is not None:
            validation.check_positive_integer("num_weights", self.num_weights)
        for name in ("lower_is_better", "diagnostics"):
            validation.check_boolean(name, getattr(self, name))
        for name in ("methods", "may_grow"):
            validation.check_list(
                name, getattr(self, name), str, "a list of strings"
            )
        validation.check_mapping("defaults", self.defaults)
        validation.check_function("published", self.published)
        validation.check_number("scale", self.scale)


def tasks_per_bin(published: int, num_tasks: int) -> int:
    """The published number of tasks in a bin, or fewer for a short run.

    Args:
        published: Integer.
        num_tasks: Integer, the number of tasks in the run. It is shown in at
            least four bins.

    Returns:
        Integer, at least 1.

    Example:

    ```python
    tasks_per_bin(50, 2000)  # 50
    tasks_per_bin(50, 20)  # 5
    ```
    """
    published = validation.check_positive_integer("published", published)
    num_tasks = validation.check_positive_integer("num_tasks", num_tasks)
    return min(published, max(1, num_tasks // _FEWEST_BINS))
