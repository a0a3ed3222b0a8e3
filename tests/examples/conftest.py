import importlib
import pathlib
import sys

import pytest
from absl import flags

_EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def import_trainer():
    """Function that imports a trainer by name.

    All trainers define flags of the same names in absl's one registry, so
    each has it for itself until the tests of its module are through.
    """
    names = set()

    def function(name):
        names.add(name)
        sys.path.insert(0, str(_EXAMPLES))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.pop(0)

    yield function
    for name in names:
        for flag in flags.FLAGS.get_flags_for_module(name):
            if flag.name != "log_dir":  # absl's own, which was overridden.
                delattr(flags.FLAGS, flag.name)
        del sys.modules[name]
