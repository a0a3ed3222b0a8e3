"""Every public name and every method has its page, and can be found."""

import importlib
import re

import keras
import pytest

from keras_plasticity import experiments
from tests import api_test
from tests.site import pages

_GENERATED = pages.generated()
_PAGES = {**pages.written(), **_GENERATED}


def _paths(navigation):
    """All pages in a part of the navigation."""
    if isinstance(navigation, str):
        return [navigation]
    if isinstance(navigation, dict):
        navigation = navigation.values()
    return [path for entry in navigation for path in _paths(entry)]


def test_every_public_name_has_its_page():
    page_of = pages.reference.page_of_each_name()
    for module, name in (param.values for param in api_test._NAMES):
        if module.__name__ == "keras_plasticity" and (
            name == "__version__" or f"api/{name}/index.md" in _PAGES
        ):
            continue
        text = _PAGES[page_of[pages.reference.short_name(module, name)]]
        assert name in text.splitlines()[0]


def test_names_of_a_backend_are_those_of_its_module():
    backend = {"jax": "optax", "torch": "torch"}.get(keras.backend.backend())
    if backend is None:
        pytest.skip("TensorFlow has none")
    if backend == "optax":
        pytest.importorskip("optax")
    module = importlib.import_module(f"keras_plasticity.native.{backend}")
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    }
    names = pages.reference.page_of_each_name()
    prefix = f"native.{backend}."
    found = {n.removeprefix(prefix) for n in names if n.startswith(prefix)}
    assert found == public
    for name in found:
        assert _PAGES[f"api/native.{backend}/{name}.md"]


def test_every_method_has_its_page():
    for part in experiments.PARTS:
        text = _PAGES[f"methods/{part.name}.md"]
        assert text.startswith(f"# `{part.name}`\n")
        for flag in part.flags:
            assert f"\n| `--{flag.name}` | {flag.help} |" in text


def test_defaults_are_those_of_the_trainers():
    text = _PAGES["methods/cbp.md"]
    (row,) = re.findall(r"^\| `--replacement_rate` .*$", text, re.MULTILINE)
    assert row.endswith("| `0.001` | `1e-06` | `0.0003` |")


@pytest.mark.parametrize("what", ["method_pages", "reference"])
def test_navigation_has_all_pages(what):
    generator = getattr(pages, what)
    found = _paths(generator.navigation())
    assert len(found) == len(set(found))
    assert set(found) == set(generator.pages())
