"""The flags that all trainers share, and how a trainer is started."""

import contextlib
import sys
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from absl import app
from absl import flags
from absl import logging

from keras_plasticity import validation
from keras_plasticity.experiments import device
from keras_plasticity.experiments import exit_status
from keras_plasticity.experiments import method_file
from keras_plasticity.experiments import side_by_side
from keras_plasticity.experiments import trackers
from keras_plasticity.experiments.methods import all_flags
from keras_plasticity.experiments.methods import check_flag_values
from keras_plasticity.experiments.methods import check_parts
from keras_plasticity.experiments.methods import default_in_words
from keras_plasticity.experiments.methods import find_parts
from keras_plasticity.experiments.parts import PARTS
from keras_plasticity.experiments.parts import Part

# Flags belong to the module that calls `define_flags`: its `--help` lists them.
flags.disclaim_key_flags()

_DEFINE = {
    float: flags.DEFINE_float,
    int: flags.DEFINE_integer,
    bool: flags.DEFINE_boolean,
}


def define_flags(
    flag_values: flags.FlagValues = flags.FLAGS,
    data_set: str | None = None,
    parts: Sequence[Part] = PARTS,
    defaults: Mapping[str, Any] | None = None,
):
    """Defines the flags that all trainers share.

    They belong to the module that calls this function.

    Args:
        flag_values: The `absl.flags.FlagValues` to define them in. Defaults to
            those of the command line.
        data_set: String, the data set that the trainer reads from the folder
            `--data_dir`. Defaults to `None`: there is no such flag.
        parts: Sequence of `Part`s, of which a method is made. Defaults to
            `PARTS`.
        defaults: Dict from the name of a flag to the problem's default, as
            `Problem` has them; of `num_learners`, `method` and `diagnostics`
            too. `--help` shows them. A string is words for what depends on
            other flags. Defaults to `None`: `--help` shows those of methods.

    Example:

    ```python
    flag_values = flags.FlagValues()
    keras_plasticity.experiments.define_flags(flag_values)
    flag_values(["trainer", "--method=cbp", "--replacement_rate=1e-5"])
    flag_values.replacement_rate  # 1e-5
    ```
    """
    check_flag_values(flag_values)
    check_parts(parts)
    if defaults is not None:
        validation.check_mapping("defaults", defaults)
    parts = method_file.known(parts)
    if data_set is not None:
        validation.check_string("data_set", data_set)
        flags.DEFINE_string(
            "data_dir",
            None,
            f"Folder of tensorflow_datasets with {data_set} in it. By default "
            "its own folder, to which the data are downloaded if need be.",
            flag_values=flag_values,
        )
    _define_method_flags(flag_values, parts, defaults)
    flags.DEFINE_integer(
        "num_learners",
        None,
        "Independent learners of each method. "
        + _problem_default("num_learners", defaults),
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "Of initial weights, tasks and all that is drawn. Learner i has `seed "
        "+ i`, with every method.",
        lower_bound=0,
        flag_values=flag_values,
    )
    device.define_flags(flag_values)
    flags.DEFINE_enum(
        "on_nan",
        "stop",
        ["stop", "continue"],
        "What to do when a learner diverges: stop its method, or continue with "
        "the others.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "log_dir",
        None,
        "Where results go. Default: logs/<problem>/<methods>-seed<seed>-"
        "<time>.",
        # absl has one of its own, for its own log files.
        allow_override=True,
        flag_values=flag_values,
    )
    flags.DEFINE_flag(
        flags.Flag(
            parser=_ResumeParser(),
            serializer=flags.ArgumentSerializer(),
            name="resume",
            default=False,
            help_string="Resume the run in --log_dir, to the same results as "
            "without an interruption. A run that has ended can be resumed with "
            "more tasks. With --resume=auto, or where there is no terminal, a "
            f"new one is started if there is none. {exit_status.ABOUT}",
            boolean=True,
        ),
        flag_values=flag_values,
    )
    flags.DEFINE_boolean(
        "overwrite",
        False,
        "Remove the run that is in --log_dir, and start again.",
        flag_values=flag_values,
    )
    flags.DEFINE_boolean(
        "dry_run",
        False,
        "Check the flags, and end before anything is trained or written.",
        flag_values=flag_values,
    )
    flags.DEFINE_boolean(
        "diagnostics",
        None,
        "Measure ranks, dead units and weights at the start of each task. "
        + _problem_default("diagnostics", defaults),
        flag_values=flag_values,
    )
    trackers.define_flags(flag_values)
    side_by_side.define_flags(flag_values)
    method_file.define_flags(flag_values)


def has_defaults(flag_values: flags.FlagValues, names: Sequence[str]) -> bool:
    """Whether flags have their default values, such as the paper's settings.

    Args:
        flag_values: The parsed `absl.flags.FlagValues`.
        names: Sequence of strings, the flags' names.

    Returns:
        Boolean; also `True` where a default was given.

    Example:

    ```python
    is_protocol = has_defaults(flag_values, ["epochs", "batch_size"])
    ```
    """
    check_flag_values(flag_values)
    for name in validation.check_list("names", names, str, "a list of strings"):
        if name not in flag_values:
            rule = "names of flags that are defined in `flag_values`"
            raise validation.error("names", rule, names)
    return all(
        flag_values[name].value == flag_values[name].default for name in names
    )


def launch(
    define_flags: Callable[[flags.FlagValues], None],
    run: Callable[[flags.FlagValues], Any],
):
    """Runs a trainer from the command line. It does not return.

    The exit status is 0 if all was done, 1 if something failed, 2 for wrong
    flags, and 128 and the signal's number if a signal has ended it in order.

    Args:
        define_flags: Function that defines the trainer's flags in the
            `absl.flags.FlagValues` that it is called with.
        run: Function that is called with the parsed `absl.flags.FlagValues`.
            An `absl.flags.Error` that it raises is told as one of the command
            line.

    Example:

    ```python
    if __name__ == "__main__":
        experiments.launch(define_flags, run)
    ```
    """
    validation.check_function("define_flags", define_flags)
    validation.check_function("run", run)

    def parse(argv):
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            exit_status.end(
                f"{error}\n--help shows all flags.", exit_status.WRONG_FLAGS
            )
        if len(rest) > 1:
            exit_status.end(
                f"All arguments are flags. Received: {' '.join(rest[1:])}\n"
                "--help shows them.",
                exit_status.WRONG_FLAGS,
            )
        return rest

    def main(_):
        if not flags.FLAGS["verbosity"].present:
            # What JAX looks for, and how data are read, is no news.
            logging.set_verbosity(logging.WARNING)
        try:
            run(flags.FLAGS)
        except flags.Error as error:
            exit_status.end(str(error), exit_status.WRONG_FLAGS)

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(method_file.using(sys.argv[1:]))
        except ValueError as error:
            exit_status.end(str(error), exit_status.WRONG_FLAGS)
        define_flags(flags.FLAGS)
        app.run(main, flags_parser=parse)


def _problem_default(name, defaults):
    if defaults is None or name not in defaults:
        return "Default: the problem's."
    return f"Default: {defaults[name]}."


class _ResumeParser(flags.BooleanParser):
    """Parses `--resume`, `--noresume`, and `--resume=auto`."""

    syntactic_help = '<true|false|"auto">'

    def parse(self, argument):
        return "auto" if argument == "auto" else super().parse(argument)


def _define_method_flags(flag_values, parts, defaults):
    flags.DEFINE_multi_string(
        "method",
        None,
        "What to train with; repeat the flag for several. One or more, joined "
        f"by commas, of {', '.join(part.name for part in parts)}. "
        + _problem_default("method", defaults),
        flag_values=flag_values,
    )

    def check_methods(names):
        for name in names or ():
            try:
                find_parts(name, parts)
            except ValueError as error:
                raise flags.ValidationError(str(error)) from error
        return True

    flags.register_validator("method", check_methods, flag_values=flag_values)
    for flag, needed_by in all_flags(parts).items():
        text = default_in_words(flag, parts, defaults)
        _define_method_flag(flag, needed_by, text, flag_values)


def _define_method_flag(flag, needed_by, default, flag_values):
    text = f"{', '.join(needed_by)}: {flag.help}" if needed_by else flag.help
    if flag.interval is not None:
        text += f", in {flag.interval}"
    text += f". {default}"
    # Without a default, to know whether it was given.
    if flag.choices:
        flags.DEFINE_enum(
            flag.name, None, list(flag.choices), text, flag_values=flag_values
        )
    else:
        _DEFINE[flag.type](flag.name, None, text, flag_values=flag_values)
    if flag.interval is not None:
        flags.register_validator(
            flag.name,
            lambda value: value is None or flag.allows(value),
            f"must be in {flag.interval}",
            flag_values=flag_values,
        )
