"""A page for each method of the trainers, from its record and its class."""

import functools
import importlib.util
import inspect
import pathlib
import re
import sys

import keras
import numpy as np
from absl import flags

import keras_plasticity
from keras_plasticity import experiments
from keras_plasticity import functional
from keras_plasticity.experiments.parts import base_optimizers
from keras_plasticity.experiments.parts import events
from keras_plasticity.experiments.parts import hidden_layers
from keras_plasticity.experiments.parts import regularizers
from keras_plasticity.experiments.parts import unit_resets
from keras_plasticity.experiments.parts import weights
from site_generator import plots

_ROOT = pathlib.Path(__file__).parents[2]
_KINDS = {
    "Units replaced": (
        unit_resets,
        "Hidden units of little use get a new start: all at once, or by a part "
        "of the way. They need plastic layers.",
    ),
    "Penalties": (
        regularizers,
        "They add a penalty to what the optimizer descends, or take steps "
        "along its gradient.",
    ),
    "Weights changed after each update": (
        weights,
        "They act after the optimizer's own step, in each update or every so "
        "many of them.",
    ),
    "When a task begins": (
        events,
        "Callbacks, of `fit` as well as of the engine: somebody has to know "
        "when a task begins.",
    ),
    "Layers": (
        hidden_layers,
        "Another activation, normalization or dropout: no optimizer is needed.",
    ),
    "Optimizers": (
        base_optimizers,
        "What the others are compared with, and joined with.",
    ),
}
_TRAINERS = {
    "slowly_changing_regression": "regression",
    "online_permuted_mnist": "Permuted MNIST",
    "continual_imagenet": "Continual ImageNet",
}
# Of what stands in no docstring of the library.
_ABOUT = {
    "bp": "Stochastic gradient descent, in which plasticity is lost: "
    "`w <- w - learning_rate * gradient`, with `--momentum` the velocity "
    "`v <- momentum * v - learning_rate * gradient` in the gradient's place. "
    "The trainers call it `bp`, as the paper does: backpropagation.",
    "adam": "Keras' Adam, with the epsilon of PyTorch, `1e-8`. With running "
    "means `m` of the gradient and `v` of its square, both bias-corrected: "
    "`w <- w - learning_rate * m / (sqrt(v) + epsilon)`.",
    "weight_decay": "`w <- w - learning_rate * weight_decay * w` before each "
    "update. The gradient does not see it, which sets it apart from `l2` "
    "wherever the optimizer rescales gradients, as Adam does. Any Keras "
    "optimizer has it as the argument `weight_decay`.",
    "dropout": "After each hidden layer, in training, `h <- h * mask / (1 - "
    "rate)`, where the mask is 0 for a random part of the units, the `rate`, "
    "and 1 for the others.",
    "batch_norm": "Between the weights of each hidden layer and its "
    "activation, "
    "`gamma * (x - mean) / sqrt(variance + epsilon) + beta`, with the moments "
    "of each unit over the batch.",
    "layer_norm": "Between the weights of each hidden layer and its "
    "activation, "
    "`gamma * (x - mean) / sqrt(variance + epsilon) + beta`, with the moments "
    "of each example over the units.",
    "linear": "The network without its hidden layers. It has no units to lose: "
    "where a deep network ends below it, depth has become a burden.",
    "head_reset": "When a task begins, from the second one on, the output "
    "layer gets new weights, and the optimizer's state for them starts anew.",
    "layer_reset": "When a task begins, from the second one on, the last "
    "layers get new weights, and the optimizer's state for them starts anew.",
    "reset": "A network that has nothing to lose, and nothing to go on from: "
    "the line that the others are compared with.",
}
# Parts whose formula is a choice among functions of `functional`.
_CHOICES = {"cbp": "utility"}
_DIFFERENCE = re.compile(
    r"^\| `([\w,]+)` \| [\d.]+ \| [\d.]+ \| ([+-][\d.]+) ± ([\d.]+) \|$",
    re.MULTILINE,
)


def pages() -> dict[str, str]:
    """From the path of each page to its Markdown."""
    result = {"methods/index.md": _contents()}
    for part in experiments.PARTS:
        result[f"methods/{part.name}.md"] = _page(part)
    return result


def page_of_each_name() -> dict[str, str]:
    """From the name of a method to the path of its page."""
    return {p.name: f"methods/{p.name}.md" for p in experiments.PARTS}


def navigation() -> list:
    """The part of the site's navigation, as `mkdocs.yml` has it."""
    return [
        "methods/index.md",
        *(
            {kind: [{p.name: f"methods/{p.name}.md"} for p in module.PARTS]}
            for kind, (module, _) in _KINDS.items()
        ),
    ]


def _contents():
    lines = [
        "# Methods",
        "",
        f"The library has {len(experiments.PARTS)} parts of methods. Each is a "
        "method by itself, and most can be joined: `--method=cbp,l2` in a "
        "trainer is `ContinualBackprop(L2(SGD))` in code. Which one to take is "
        "told in [Choosing a method](../guides/choosing.md).",
    ]
    for kind, (module, about) in _KINDS.items():
        lines += [
            "",
            f"## {kind}",
            "",
            about,
            "",
            "| method | what it is | in code |",
            "| --- | --- | --- |",
        ]
        lines += [
            f"| [`{part.name}`]({part.name}.md) | {part.about} | "
            f"{part.implementation} |"
            for part in module.PARTS
        ]
    lines += [
        "",
        "Not a `--method`, but here as well: "
        "`optimizers.ChurnRegularization`, and the base classes for "
        "[a method of your own](../guides/method.md).",
    ]
    return "\n".join(lines) + "\n"


def _page(part):
    about = part.about[0].upper() + part.about[1:]
    sections = [
        f"# `{part.name}`",
        f"{about}.",
        _in_code(part),
        "## What it does",
        *_what_it_does(part),
    ]
    if part.name in _CHOICES:
        sections.append(_choices(part))
    figure = _curve(part)
    if figure:
        sections.append(figure)
    example = _example(part)
    if example:
        sections += ["## In a model", example]
    sections += ["## In the trainers", *_in_the_trainers(part)]
    difference = _in_comparison(part)
    if difference:
        sections += ["## In our comparison", *difference]
    if part.flags:
        sections += ["## Settings", *_settings(part)]
    sources = _sources(part)
    if sources:
        sections += ["## Sources", sources]
    return "\n\n".join(sections) + "\n"


def _in_code(part):
    if not part.implementation:
        return "It is a choice of layers, not a class."
    return f"In code: {part.implementation}."


def _classes(part):
    """The classes of the library that a part is made of."""
    names = re.findall(r"`(\w+)\.(\w+)`", part.implementation)
    return [getattr(getattr(keras_plasticity, a), b) for a, b in names]


def _docstring(part):
    """The last of the classes says what happens."""
    classes = _classes(part)
    return inspect.getdoc(classes[-1]) if classes else ""


def _what_it_does(part):
    if part.name in _ABOUT:
        return [_ABOUT[part.name]]
    text = re.split(r"\n(?:Args|Example|References):\n", _docstring(part))[0]
    # The first line is what the page begins with, in other words.
    return [text.strip()]


def _choices(part):
    """A table of the formulas that one of a part's flags chooses among."""
    (flag,) = [f for f in part.flags if f.name == _CHOICES[part.name]]
    lines = [f"| `{flag.name}` | what it is |", "| --- | --- |"]
    for name in flag.choices:
        function = getattr(functional, name, None)
        about = "a number drawn at random"
        if function is not None:
            about = inspect.getdoc(function).split("\n")[0]
            name = f"functional.{name}"
        lines.append(f"| `{name}` | {about} |")
    lines += [
        "",
        "`h` is what a unit hands to its readers, `f` its running mean, `w_in` "
        "and `w_out` are its incoming and outgoing weights.",
    ]
    return "\n".join(lines)


def _example(part):
    found = re.search(r"```python\n.*?```", _docstring(part), re.DOTALL)
    return found[0] if found else None


def _sources(part):
    text = _docstring(part).partition("\nReferences:\n")[2].strip()
    if text:
        return text
    links = re.findall(r"\[[^]]+\]\([^)]+\)", part.about)
    return "\n".join(f"- {link}" for link in links)


def _in_the_trainers(part):
    trainer, further = "slowly_changing_regression", ""
    if part.smallest_batch > 1:
        trainer, further = "online_permuted_mnist", " --batch_size=16"
    line = (
        f"KERAS_BACKEND=jax python examples/{trainer}.py "
        f"--method={part.name}{further}"
    )
    others = [p.name for p in experiments.PARTS if p.contradicts(part)]
    others = [f"`{name}`" for name in others if name != part.name]
    words = [f"```shell\n{line}\n```"]
    if others:
        words.append(f"It cannot be joined with {', '.join(others)}.")
    return words


def _settings(part):
    """A table of the flags, with the defaults of each trainer."""
    defaults = {trainer: _defaults(part, trainer) for trainer in _TRAINERS}
    lines = [
        "Flags of the trainers, and the values that they have without them:",
        "",
        f"| flag | what it sets | allowed | {' | '.join(_TRAINERS.values())} |",
        f"| --- | --- | --- | {' | '.join(['---'] * len(_TRAINERS))} |",
    ]
    for flag in part.flags:
        allowed = ", ".join(f"`{c}`" for c in flag.choices)
        if flag.type is bool:
            allowed = "`--`, `--no`"
        allowed = allowed or (f"`{flag.interval}`" if flag.interval else "")
        values = [f"`{_show(each[flag.name])}`" for each in defaults.values()]
        lines.append(
            f"| `--{flag.name}` | {flag.help} | {allowed} | "
            f"{' | '.join(values)} |"
        )
    words = ["\n".join(lines)]
    classes = [f"`{_public_name(each)}`" for each in _classes(part)]
    if classes:
        words.append(
            f"The arguments of {' and '.join(classes)}, with defaults of their "
            "own, are in the API reference."
        )
    return words


def _public_name(kind):
    package = kind.__module__.split(".")[1]
    return f"{package}.{kind.__name__}"


def _show(value):
    return f"{value:g}" if isinstance(value, float) else str(value)


def _defaults(part, trainer):
    flag_values, problem = _problem(trainer)
    (method,) = experiments.choose_methods(
        flag_values, problem.defaults, [part.name]
    )
    return method.settings


@functools.cache
def _problem(name):
    """What a trainer makes of no flags at all."""
    path = _ROOT / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    trainer = importlib.util.module_from_spec(spec)
    # absl looks there for the module that defines a flag.
    sys.modules[name] = trainer
    spec.loader.exec_module(trainer)
    flag_values = flags.FlagValues()
    trainer.define_flags(flag_values)
    flag_values([name])
    parameters = inspect.signature(trainer.make_problem).parameters
    further = {"num_tasks": 100} if "num_tasks" in parameters else {}
    return flag_values, trainer.make_problem(flag_values, **further)


def _curve(part):
    """The activation that a part is, at its first weights."""
    if part.activation is None:
        return None
    settings = {flag.name: flag.default for flag in part.flags}
    x = np.linspace(-4.0, 4.0, 161, dtype="float32")
    y = keras.ops.convert_to_numpy(
        part.activation(settings, "activation")(x[:, None])
    )
    lines = [list(map(float, column)) for column in y.T]
    words = "The activation"
    if len(lines) > 1:
        words += ", its second feature dashed"
    return f"{plots.curves(list(map(float, x)), lines, words)}\n\n{words}."


@functools.cache
def _differences():
    """From a method to its difference from Adam, as the results have it."""
    text = (_ROOT / ".docs/pages/results/methods.md").read_text(
        encoding="utf-8"
    )
    return {
        name.removesuffix(",adam"): (float(value), float(half))
        for name, value, half in _DIFFERENCE.findall(text)
    }


def _in_comparison(part):
    values = {k: v for k, v in _differences().items() if k != "adam"}
    if part.name not in values:
        return []
    value, half = values[part.name]
    words = (
        f"{value:+.2f} ± {half:.2f} points of accuracy, compared with Adam "
        "alone, over the last ten of forty tasks of Online Permuted MNIST"
    )
    return [
        plots.intervals(values, part.name, words),
        f"{words} (3 x 100 units, five seeds, paired, 95 % interval). Nothing "
        "was tuned for it: see [Results](../results/methods.md"
        "#in-the-published-direction).",
    ]
