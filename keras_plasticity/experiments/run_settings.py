"""The settings of a run: which they are, and what becomes of them."""

import os
import shlex
import sys

import keras

from keras_plasticity.experiments.methods import all_flags

# Flags that the command which resumes a run has otherwise, or not at all.
_NOT_TO_RESUME = ("log_dir", "resume", "noresume", "overwrite", "nooverwrite")
# Flags that may change when a run is resumed.
_NOT_SETTINGS = (
    "log_dir",
    "resume",
    "overwrite",
    "dry_run",
    "on_nan",
    "data_dir",
    "cache_dir",
    # What the file says is told of each method.
    "side_by_side",
    # Results differ by rounding at most; not so by `--matmul_precision`.
    "device",
)


def command_to_resume(log_dir):
    """The command of this process, with the flags that resume its run."""
    words = []
    is_value = False
    for word in sys.orig_argv:
        name, equals, _ = word.partition("=")
        is_left_out = is_value or name.lstrip("-") in _NOT_TO_RESUME
        # `--log_dir x` in two words.
        is_value = not equals and name.lstrip("-") == "log_dir"
        if not is_left_out:
            words.append(word)
    words += [f"--log_dir={log_dir}", "--resume"]
    backend = os.environ.get("KERAS_BACKEND")
    return f"KERAS_BACKEND={backend} " * bool(backend) + shlex.join(words)


def settings_of(flag_values, problem, chosen):
    """The trainer's flags that were given or have a default."""
    # The module that called `define_flags`.
    trainer = flag_values.find_module_defining_flag("method")
    settings = {"method": [method.name for method in chosen]}
    for flag in flag_values.get_flags_for_module(trainer):
        if flag.name not in _NOT_SETTINGS and flag.value is not None:
            settings.setdefault(flag.name, flag.value)
    settings.setdefault("num_learners", problem.num_learners)
    settings.setdefault("diagnostics", problem.diagnostics)
    return settings


def all_that_matters(settings, variants, parts):
    """All that the results depend on: what two runs may differ in.

    Args:
        settings: Dict, see `settings_of`.
        variants: List of lists of `Method`s, one for each setting that is
            trained side by side.
        parts: Sequence of all `Part`s.

    Returns:
        Dict from name to value.
    """
    # A flag of methods is told for each of them, given or not.
    of_methods = {flag.name for flag in all_flags(parts)}
    result = {
        name: value
        for name, value in settings.items()
        if name not in of_methods
    }
    result["backend"] = keras.backend.backend()
    for number, chosen in enumerate(variants):
        which = f"{number}, " if len(variants) > 1 else ""
        for method in chosen:
            for name, value in method.settings.items():
                result[f"{which}{method.name}: {name}"] = value
    return result


def check_batch_size(chosen, batch_size, examples_per_task):
    if batch_size > examples_per_task:
        raise ValueError(
            "--batch_size must not be larger than a task, which has "
            f"{examples_per_task} examples. Received: --batch_size={batch_size}"
        )
    for method in chosen:
        for part in method.parts:
            if batch_size < part.smallest_batch:
                raise ValueError(
                    f"{part.name} needs batches of at least "
                    f"{part.smallest_batch} examples. Use --batch_size where "
                    "the problem has it, or leave the part out. Received: "
                    f"--method={method.name}, batch size {batch_size}"
                )
