"""The settings of a sweep: all combinations, drawn, or proposed by Optuna."""

import dataclasses
import itertools
import math
import random
import warnings
from collections.abc import Mapping
from typing import Any

from keras_plasticity import derived_seed
from keras_plasticity import validation

SAMPLERS = ("grid", "random", "optuna")
# Optuna proposes so many settings from the results of all before them. The
# number of processes is none of its business: a sweep that is resumed with
# more of them proposes the same.
ROUND = 8
# How often a setting that was there before is drawn again.
_ATTEMPTS = 200


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, of which a sweep draws.

    Args:
        low: Number. If both ends are integers, integers are drawn.
        high: Number, above `low`.
        log: Boolean, whether each power of ten is as likely as another, which
            is for positive numbers only. Defaults to `False`.

    Example:

    ```python
    keras_plasticity.experiments.Range(1e-4, 1e-1, log=True)
    ```
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self):
        log = validation.check_boolean("log", self.log)
        object.__setattr__(self, "log", log)
        ends = {}
        for name in ("low", "high"):
            value = getattr(self, name)
            number = validation.check_number(name, value)
            ends[name] = int(value) if validation.is_integer(value) else number
            object.__setattr__(self, name, ends[name])
        if self.low >= self.high or (self.log and self.low <= 0):
            rule = "a number below `high`" + ", above 0" * self.log
            raise ValueError(
                f"`low` must be {rule}. Received: low={self.low}, "
                f"high={self.high}, log={self.log}"
            )

    @property
    def is_integer(self) -> bool:
        """Whether integers are drawn."""
        return isinstance(self.low, int) and isinstance(self.high, int)


def check_space(space: Any) -> dict[str, list[str] | Range]:
    """Checks what a sweep varies.

    Args:
        space: Dict from the name of a flag to a list of its values, or to a
            `Range`.

    Returns:
        Dict from name to a `Range`, or to a list of strings, as they stand on
        a command line.
    """
    rule = "a dict from the name of a flag to a list of values, or to a `Range`"
    validation.check_mapping("space", space, rule=rule)
    if not space:
        raise validation.error("space", f"{rule}, of one or more", space)
    result = {}
    for name, values in space.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise validation.error("space", rule, space)
        if isinstance(values, Range):
            result[name] = values
            continue
        values = validation.check_list("space", values, rule=rule)
        if not values or not all(map(_is_plain, values)):
            raise validation.error("space", rule, space)
        result[name] = list(map(as_flag, values))
        twice = [v for v in result[name] if result[name].count(v) > 1]
        if twice:
            raise ValueError(
                "`space` must have each value of a flag once. Received: "
                f"space={space}, with {name}={twice[0]} twice"
            )
    return result


def as_flag(value: Any) -> str:
    """A value as it stands on a command line."""
    if validation.is_integer(value):
        return str(int(value))
    if isinstance(value, str):
        return str(value)
    return str(value).lower() if isinstance(value, bool) else repr(float(value))


def parse_grid(text: str) -> tuple[str, list[str]]:
    """Reads `NAME=VALUES`; they stand between spaces, if any, or commas."""
    name, equals, values = text.partition("=")
    parts = values.split() if " " in values.strip() else values.split(",")
    parts = [part.strip() for part in parts]
    if not equals or not name.isidentifier() or not all(parts):
        raise ValueError(
            "--grid must be NAME=VALUE,VALUE,... with the name of a flag, or "
            '"NAME=VALUE VALUE ..." where values hold commas. '
            f"Received: --grid={text}"
        )
    return name, parts


def parse_range(text: str) -> tuple[str, Range]:
    """Reads `NAME=LOW..HIGH` or `NAME=LOW..HIGH:log`."""
    name, equals, ends = text.partition("=")
    ends, colon, kind = ends.partition(":")
    low, dots, high = ends.partition("..")
    is_right = equals and dots and name.isidentifier()
    try:
        if not is_right or kind != "log" * bool(colon):
            raise ValueError("it is of another form")
        return name, Range(_number(low), _number(high), bool(colon))
    except ValueError as error:
        raise ValueError(
            "--range must be NAME=LOW..HIGH or NAME=LOW..HIGH:log, such as "
            f"learning_rate=1e-4..1e-1:log. Received: --range={text} ({error})"
        ) from error


def grid(space: Mapping[str, list[str]]) -> list[dict[str, str]]:
    """All combinations of the values, the last flag's the fastest."""
    return [
        dict(zip(space, values))
        for values in itertools.product(*space.values())
    ]


def draw(space: Mapping, count: int, seed: int) -> list[dict[str, str]]:
    """Settings that are drawn, all different.

    The first ones of more are those of fewer.

    Args:
        space: Dict from name to a `Range` or a list of strings.
        count: Integer.
        seed: Integer.

    Returns:
        List of dicts. It is shorter if there are no more to draw.
    """
    rng = random.Random(derived_seed(seed, "sweep"))
    found = []
    for _ in range(count):
        setting = _new_setting(
            found,
            lambda: {name: _draw(each, rng) for name, each in space.items()},
        )
        if setting is None:
            break
        found.append(setting)
    return found


def propose(
    space: Mapping,
    history: list[tuple[dict[str, str], float | None]],
    count: int,
    seed: int,
    lower_is_better: bool,
) -> list[dict[str, str]]:
    """Settings that Optuna's tree-structured Parzen estimator proposes.

    They depend on nothing but the arguments: a sweep that was interrupted
    proposes the settings of one that was not.

    Args:
        space: As of `draw`.
        history: List of pairs of a setting and its result, which is `None` if
            it diverged.
        count: Integer.
        seed: Integer.
        lower_is_better: Boolean, of the results.

    Returns:
        List of dicts. It is shorter if there are no more to propose.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        # It is an experiment of Optuna's: settings of a round keep away from
        # each other.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=derived_seed(seed, "optuna", len(history)), constant_liar=True
        )
    study = optuna.create_study(
        direction="minimize" if lower_is_better else "maximize", sampler=sampler
    )
    distributions = {name: _distribution(each) for name, each in space.items()}
    for setting, result in history:
        study.add_trial(
            optuna.trial.create_trial(
                params={
                    name: _parse(each, setting[name])
                    for name, each in space.items()
                },
                distributions=distributions,
                value=result,
                # Which it takes for worse than any that has a result.
                state=optuna.trial.TrialState.PRUNED
                if result is None
                else optuna.trial.TrialState.COMPLETE,
            )
        )
    found = []
    before = [setting for setting, _ in history]
    for _ in range(count):
        setting = _new_setting(
            before + found,
            lambda: {
                name: as_flag(value)
                for name, value in study.ask(distributions).params.items()
            },
        )
        if setting is None:
            break
        found.append({name: setting[name] for name in space})
    return found


def check_optuna():
    """Fails before a sweep if Optuna is not there.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError(
            "The sampler `optuna` needs Optuna: pip install -e '.[sweep]'"
        ) from error
    return optuna


def corners(space: Mapping) -> list[dict[str, str]]:
    """Settings that have each value, and the ends of each range, once."""
    ends = {
        name: [as_flag(each.low), as_flag(each.high)]
        if isinstance(each, Range)
        else each
        for name, each in space.items()
    }
    first = {name: values[0] for name, values in ends.items()}
    return [first] + [
        {**first, name: value}
        for name, values in ends.items()
        for value in values[1:]
    ]


def _is_plain(value):
    return isinstance(value, (str, bool)) or validation.is_number(value)


def _number(text):
    try:
        return int(text)
    except ValueError:
        return float(text)


def _new_setting(before, ask):
    """A setting that is not among those before; `None` if there seems none."""
    for _ in range(_ATTEMPTS):
        setting = ask()
        if setting not in before:
            return setting
    return None


def _draw(each, rng):
    if not isinstance(each, Range):
        return rng.choice(each)
    low, high = each.low, each.high + each.is_integer
    if each.log:
        value = math.exp(rng.uniform(math.log(low), math.log(high)))
    else:
        value = rng.uniform(low, high)
    if each.is_integer:
        return as_flag(min(math.floor(value), each.high))
    # Four digits are enough, and can be read.
    value = float(f"{value:.4g}")
    return as_flag(float(min(max(value, each.low), each.high)))


def _distribution(each):
    import optuna

    if not isinstance(each, Range):
        return optuna.distributions.CategoricalDistribution(each)
    if each.is_integer:
        return optuna.distributions.IntDistribution(
            each.low, each.high, log=each.log
        )
    return optuna.distributions.FloatDistribution(
        each.low, each.high, log=each.log
    )


def _parse(each, text):
    if not isinstance(each, Range):
        return text
    return int(text) if each.is_integer else float(text)
