"""Pages of the API reference: one for each public name."""

import ast
import importlib
import inspect
import pathlib
import pkgutil

import keras_plasticity

_ROOT = keras_plasticity.__name__
# Modules that only one backend can import, and what is public in them.
_OF_A_BACKEND = {
    "native.optax": ("ContinualBackpropState", "continual_backprop"),
    "native.torch": ("ContinualBackprop",),
}
# What a public name stands for that is neither a class nor a function.
_VALUES = {
    "experiments.PARTS": "All parts that methods are made of, a tuple of "
    "`experiments.Part`. [Methods](../../methods/index.md) has a page for each "
    "of them.",
}


def packages() -> list:
    """The package and its public subpackages."""
    found = [keras_plasticity]
    for info in pkgutil.iter_modules(keras_plasticity.__path__):
        if info.ispkg:
            module = importlib.import_module(f"{_ROOT}.{info.name}")
            if hasattr(module, "__all__"):
                found.append(module)
    return found


def short_name(module, name: str) -> str:
    """A public name without the name of the library."""
    return f"{module.__name__}.{name}".removeprefix(f"{_ROOT}.")


def names_of(module) -> list[str]:
    """The public names that are documented: no subpackages, no version."""
    return [
        name
        for name in module.__all__
        if name != "__version__" and not inspect.ismodule(getattr(module, name))
    ]


def page_of_each_name() -> dict[str, str]:
    """From a public name, such as `optimizers.L2`, to the path of its page.

    A name that is in two packages has its page in the first one.
    """
    found = {}
    seen = {}
    for module in packages():
        folder = _folder(module)
        for name in names_of(module):
            value = getattr(module, name)
            page = seen.setdefault(id(value), f"{folder}/{name}.md")
            found[short_name(module, name)] = page
    for path, names in _OF_A_BACKEND.items():
        for name in names:
            found[f"{path}.{name}"] = f"api/{path}/{name}.md"
    return found


def pages() -> dict[str, str]:
    """From the path of each page of the reference to its Markdown."""
    page_of = page_of_each_name()
    result = {"api/index.md": _contents()}
    for module in packages():
        if module is not keras_plasticity:
            result[f"{_folder(module)}/index.md"] = _index(module, page_of)
        for name in names_of(module):
            path = f"{_folder(module)}/{name}.md"
            if page_of[short_name(module, name)] == path:
                result[path] = _page(module, name)
    for path, names in _OF_A_BACKEND.items():
        result[f"api/{path}/index.md"] = _index_of_a_backend(path, names)
        for name in names:
            text = f"::: {_ROOT}.{path}.{name}\n"
            result[f"api/{path}/{name}.md"] = text
    return result


def navigation() -> list:
    """The part of the site's navigation, as `mkdocs.yml` has it."""
    page_of = page_of_each_name()
    result = ["api/index.md"]
    for module in packages():
        folder = _folder(module)
        entries = [
            {name: page_of[short_name(module, name)]}
            for name in names_of(module)
            if page_of[short_name(module, name)] == f"{folder}/{name}.md"
        ]
        if module is keras_plasticity:
            result.extend(entries)
        else:
            title = module.__name__.removeprefix(f"{_ROOT}.")
            result.append({title: [f"{folder}/index.md", *entries]})
    for path, names in _OF_A_BACKEND.items():
        entries = [{name: f"api/{path}/{name}.md"} for name in names]
        result.append({path: [f"api/{path}/index.md", *entries]})
    return result


def _folder(module):
    parts = module.__name__.split(".")[1:]
    return "/".join(["api", *parts])


def _page(module, name):
    whole = f"{module.__name__}.{name}"
    value = getattr(module, name)
    if not callable(value):
        return f"# {whole}\n\n{_VALUES[short_name(module, name)]}\n"
    return f"::: {whole}\n"


def _contents():
    lines = [
        "# API reference",
        "",
        "All public names. What is not listed here is not public, and may "
        "change.",
        "",
        "## `keras_plasticity`",
        "",
        *_table(keras_plasticity, page_of_each_name(), "api"),
        "",
        "## Packages",
        "",
        "| package | what it has |",
        "| --- | --- |",
    ]
    for module in packages()[1:]:
        title = module.__name__.removeprefix(f"{_ROOT}.")
        lines.append(
            f"| [`{title}`]({title}/index.md) | {_first_line(module)} |"
        )
    for path in _OF_A_BACKEND:
        about = ast.get_docstring(_source(path)).split("\n")[0]
        lines.append(f"| [`{path}`]({path}/index.md) | {about} |")
    return "\n".join(lines) + "\n"


def _source(path):
    """The syntax of a module that may not be imported."""
    folder = pathlib.Path(keras_plasticity.__file__).parent
    file = folder.joinpath(*path.split(".")).with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _index_of_a_backend(path, names):
    source = _source(path)
    lines = [f"# `{_ROOT}.{path}`", "", ast.get_docstring(source), ""]
    lines += ["| name | what it is |", "| --- | --- |"]
    for node in source.body:
        if getattr(node, "name", None) in names:
            about = ast.get_docstring(node).split("\n\n")[0]
            lines.append(
                f"| [`{node.name}`]({node.name}.md) | "
                f"{about.replace(chr(10), ' ')} |"
            )
    return "\n".join(lines) + "\n"


def _index(module, page_of):
    title = module.__name__.removeprefix(f"{_ROOT}.")
    lines = [
        f"# `keras_plasticity.{title}`",
        "",
        inspect.getdoc(module),
        "",
        *_table(module, page_of, _folder(module)),
    ]
    return "\n".join(lines) + "\n"


def _table(module, page_of, folder):
    lines = ["| name | what it is |", "| --- | --- |"]
    for name in names_of(module):
        page = page_of[short_name(module, name)]
        if page.startswith(f"{folder}/"):
            link = page.removeprefix(f"{folder}/")
        else:
            link = "../" * folder.count("/") + page.removeprefix("api/")
        value = getattr(module, name)
        about = _first_line(value) if callable(value) else "a constant"
        lines.append(f"| [`{name}`]({link}) | {about} |")
    return lines


def _first_line(value):
    return inspect.getdoc(value).split("\n\n")[0].replace("\n", " ")
