"""Pages that are a section of README, whose tables are held to the code."""

import pathlib

_README = pathlib.Path(__file__).parents[2] / "README.md"
# From the path of a page to its title, and the heading of the section.
_SECTIONS = {
    "guides/layers.md": ("Layers and models", "Which layers, which models"),
}


def pages() -> dict[str, str]:
    """From the path of each page to its Markdown."""
    text = _README.read_text(encoding="utf-8")
    result = {}
    for path, (title, heading) in _SECTIONS.items():
        section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        result[path] = f"# {title}\n\n{section.strip()}\n"
    return result
