"""The command line of sweeps and suites."""

import argparse

from keras_plasticity.experiments import exit_status
from keras_plasticity.experiments import measures
from keras_plasticity.experiments.suites.driver import METHODS
from keras_plasticity.experiments.suites.driver import suite
from keras_plasticity.experiments.suites.problems import PROBLEMS
from keras_plasticity.experiments.suites.problems import SIZES
from keras_plasticity.experiments.sweeps import space as spaces
from keras_plasticity.experiments.sweeps.driver import sweep

_EXAMPLES = """\
All other flags are the trainer's, the same in all runs:

  python -m keras_plasticity.experiments sweep \\
      examples/slowly_changing_regression.py --processes=2 --log_dir=logs/l2 \\
      --grid=learning_rate=0.003,0.01 --grid=l2=1e-3,1e-2 \\
      --method=l2 --num_examples=100000
"""
_SUITE_EXAMPLES = """\
All methods and all problems are in README. Two of them:

  python -m keras_plasticity.experiments suite --size=minutes \\
      --methods=bp,cbp,l2 --problems=slowly_changing_regression \\
      --log_dir=logs/suite
"""


def make_parser():
    """The parser of `python -m keras_plasticity.experiments`."""
    parser = argparse.ArgumentParser(
        prog="python -m keras_plasticity.experiments", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "sweep",
        help="train many settings of a trainer into one table",
        description="Trains many settings of a trainer into one table. "
        + exit_status.ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = command.add_argument
    add("trainer", help="the trainer's file")
    add(
        "--grid",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="values of a flag, between commas; or between spaces, where they "
        "hold commas. Repeat it for other flags",
    )
    add(
        "--range",
        action="append",
        default=[],
        metavar="NAME=LOW..HIGH[:log]",
        help="numbers of a flag, for --sampler=random or optuna: integers if "
        "both ends are; with :log each power of ten as likely as another",
    )
    add(
        "--sampler",
        choices=spaces.SAMPLERS,
        help="all combinations of the values; or --num_settings that are "
        "drawn; or that Optuna proposes. Default: grid, or random if there is "
        "a --range",
    )
    add("--num_settings", type=int, help="how many settings are drawn")
    add("--sampler_seed", type=int, default=0, help="of what is drawn")
    add(
        "--measure",
        choices=tuple(measures.MEASURES),
        default="last_tenth",
        help="of learning curves: what Optuna improves, and settings are "
        "printed by; default: last_tenth",
    )
    add(
        "--processes",
        type=int,
        default=1,
        help="runs at a time on this machine; default: 1",
    )
    add(
        "--ray",
        metavar="ADDRESS",
        help="train on the cluster of Ray at this address, or auto",
    )
    add(
        "--retries",
        type=int,
        default=3,
        help="how often a run whose process died is tried again; default: 3",
    )
    add("--table", choices=("csv", "parquet"), default="csv")
    add(
        "--report_seeds",
        type=int,
        help="train the best setting of each method on so many seeds that it "
        "was not chosen by, into report.csv",
    )
    add("--log_dir", help="default: logs/sweeps/<trainer>-<time>")
    add(
        "--resume",
        action="store_true",
        help="resume the sweep in --log_dir, if there is one",
    )
    command.set_defaults(run=_sweep)
    _add_suite(commands)
    return parser


def _add_suite(commands):
    command = commands.add_parser(
        "suite",
        help="tune methods on problems, and compare them on fresh seeds",
        description="Tunes methods on problems with equal budgets, and "
        "compares them on fresh seeds. " + exit_status.ABOUT,
        epilog=_SUITE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = command.add_argument
    add("--size", required=True, choices=SIZES)
    add(
        "--methods",
        help="between commas; or between spaces, where they hold commas; "
        f"default: {','.join(METHODS)}",
    )
    add(
        "--problems",
        help="between commas; default: all that the size has of "
        f"{','.join(PROBLEMS)}",
    )
    add("--log_dir", help="default: logs/suites/<size>-<time>")
    add("--method_file", help="a file with methods of your own")
    add(
        "--against",
        metavar="reference|RESULTS",
        help="tell what differs from these results by more than chance",
    )
    add("--data_dir", help="folder of tensorflow_datasets with the data")
    add("--trainers", help="folder of the trainers; default: the examples")
    add(
        "--processes",
        type=int,
        default=1,
        help="runs at a time on this machine; default: 1",
    )
    add(
        "--ray",
        metavar="ADDRESS",
        help="train on the cluster of Ray at this address, or auto",
    )
    add(
        "--resume",
        action="store_true",
        help="resume the suite in --log_dir, if there is one",
    )
    command.set_defaults(run=_suite)


def _suite(known, rest):
    if rest:
        raise ValueError(
            f"A suite has no such flag; --help shows them. Received: {rest[0]}"
        )
    return suite(
        known.size,
        METHODS if known.methods is None else _names(known.methods),
        None if known.problems is None else _names(known.problems),
        known.log_dir,
        known.method_file,
        known.against,
        known.data_dir,
        known.trainers,
        known.processes,
        known.ray,
        known.resume,
    )


def _names(text):
    """Names between spaces, if there are any, or between commas."""
    return text.split() if " " in text else text.split(",")


def main(arguments=None):
    """Runs a command.

    Args:
        arguments: List of strings. Defaults to `None`: those of the process.
    """
    parser = make_parser()
    known, rest = parser.parse_known_args(arguments)
    try:
        known.run(known, rest)
    except (ValueError, FileExistsError) as error:
        exit_status.end(str(error), exit_status.WRONG_FLAGS)
    except (ImportError, OSError) as error:
        exit_status.end(str(error), exit_status.FAILED)


def _sweep(known, rest):
    pairs = [
        *map(spaces.parse_grid, known.grid),
        *map(spaces.parse_range, known.range),
    ]
    names = [name for name, _ in pairs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(
            "--grid and --range must have each flag once. "
            f"Received: {twice[0]} twice"
        )
    if not pairs:
        raise ValueError("Give --grid or --range: there is nothing to vary.")
    sampler = known.sampler or ("random" if known.range else "grid")
    return sweep(
        known.trainer,
        dict(pairs),
        known.log_dir,
        _parse_flags(rest),
        sampler,
        known.num_settings,
        known.sampler_seed,
        known.measure,
        known.processes,
        known.ray,
        known.retries,
        known.table,
        known.report_seeds,
        known.resume,
    )


def _parse_flags(words):
    """The trainer's flags, as a dict from name to one value or several."""
    found = {}
    words = list(words)
    while words:
        word = words.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or not name:
            raise ValueError(
                "All arguments but the trainer's file are flags. "
                f"Received: {word}"
            )
        if not equals and words and not words[0].startswith("-"):
            value = words.pop(0)
        elif not equals:
            # A flag of two values, such as `--flip_one` or `--noflip_one`.
            value = True
        found.setdefault(name, []).append(value)
    return {
        name: values if len(values) > 1 else values[0]
        for name, values in found.items()
    }
