"""The oldest versions that are tested are those that are stated."""

import tomllib

from packaging.requirements import Requirement
from packaging.version import Version

from tests import run


def _stated():
    """Name -> the oldest version, for all packages that have no other one."""
    project = tomllib.loads((run.ROOT / "pyproject.toml").read_text())
    project = project["project"]
    groups = project["optional-dependencies"]
    # The site is built with the newest ones.
    lines = [line for name in groups if name != "docs" for line in groups[name]]
    versions = {}
    for line in [*project["dependencies"], *lines]:
        requirement = Requirement(line)
        if any(each.operator == "==" for each in requirement.specifier):
            continue
        (bound,) = requirement.specifier
        assert bound.operator == ">=", line
        version = versions.setdefault(requirement.name, Version(bound.version))
        assert version == Version(bound.version), line
    return versions


def test_the_oldest_versions_are_those_that_are_stated():
    tested = {}
    for line in (run.ROOT / run.OLDEST).read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            tested[name] = Version(version)
    assert tested == _stated()
