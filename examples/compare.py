"""Joins runs of a trainer into figures and one Markdown table.

    python examples/compare.py logs/run_a logs/run_b --output=logs/both

writes `comparison.png`, `comparison.svg` and `comparison.md` there, the figures
`comparison_diagnostics` and `comparison_epochs` if the runs have them, and
prints the tables: of each run, and of the differences between them, paired by
seed, with their intervals. The runs must be of the same problem; of longer ones
than the others `--num_tasks` takes the beginning. Where two runs have the same
method, the settings in which they differ tell them apart. A table of a sweep,
or of your own, does in place of a log folder, such as what a sweep with
`--report_seeds` reports of the best setting of each method:

    python examples/compare.py logs/sweep/report.csv --baseline=bp
"""

import os
import sys

from absl import app
from absl import flags

from keras_plasticity import experiments


def define_flags(flag_values):
    flags.DEFINE_string(
        "output",
        "logs/comparison",
        "Folder for the figure and the tables.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_tasks",
        None,
        "Show only the first tasks of each run, at most this number.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "baseline",
        None,
        "The method, as the tables name it, that the others are compared with. "
        "Default: each with each, but of more than six the first with the "
        "others.",
        flag_values=flag_values,
    )


def run(flag_values, folders):
    if not folders:
        print(
            "Name the log folders of one or more runs, or tables.",
            file=sys.stderr,
        )
        sys.exit(2)
    try:
        table = experiments.compare(
            [os.path.normpath(folder) for folder in folders],
            flag_values.output,
            flag_values.num_tasks,
            flag_values.baseline,
        )
    except (ImportError, OSError, ValueError) as error:
        sys.exit(str(error))
    path = os.path.join(flag_values.output, "comparison")
    print(f"{table}\n\nFigure: {path}.png, .svg\nTables: {path}.md")


def main(argv):
    run(flags.FLAGS, argv[1:])


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
