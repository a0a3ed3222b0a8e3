"""The pages of the site, and the code in them."""

import dataclasses
import pathlib
import re
import sys
import textwrap

ROOT = pathlib.Path(__file__).parents[2]
SITE = ROOT / ".docs"

# What generates pages is no part of the package.
sys.path.insert(0, str(SITE))

from site_generator import method_pages  # noqa: E402
from site_generator import readme  # noqa: E402
from site_generator import reference  # noqa: E402

_FENCE = re.compile(
    r'^( *)```(\w+)(?: title="([^"]*)")?\n(.*?)^\1```$',
    re.MULTILINE | re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code in a page.

    Attributes:
        language: String, such as `"python"`.
        title: String that stands above it, or `None`: the name of a backend, if
            it is for that backend alone.
        code: String.
        line: Integer, of the page, at which the code begins.
    """

    language: str
    title: str | None
    code: str
    line: int


def written():
    """From the path of each page that is written to its Markdown."""
    folder = SITE / "pages"
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*.md"))
    }


def generated():
    """The same of the pages that are generated, but for notebooks."""
    return {**method_pages.pages(), **readme.pages(), **reference.pages()}


def blocks(text):
    """The blocks of code in a page, those within tabs among them."""
    return [
        Block(
            language,
            title,
            textwrap.dedent(code),
            text[: match.start(4)].count("\n") + 1,
        )
        for match in _FENCE.finditer(text)
        for _, language, title, code in [match.groups()]
    ]
