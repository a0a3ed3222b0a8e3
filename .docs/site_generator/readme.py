"""Pages that are a section of README, whose tables are held to the code."""

import pathlib
import re

_README = pathlib.Path(__file__).parents[2] / "README.md"
# From the path of a page to its title, and the heading of the section.
_SECTIONS = {
    "guides/layers.md": ("Layers and models", "Which layers, which models"),
    "results/leaderboard.md": ("Leaderboard", "Leaderboard"),
}
_LINK = re.compile(r"(!?)\[([^]]*)\]\(([^)]*)\)")


def pages() -> dict[str, str]:
    """From the path of each page to its Markdown."""
    text = _README.read_text(encoding="utf-8")
    result = {}
    for path, (title, heading) in _SECTIONS.items():
        section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        section = _LINK.sub(_from_the_site, section.strip())
        result[path] = f"# {title}\n\n{section}\n"
    return result


def _from_the_site(match):
    """A link of README as a page has it, which lies in a folder."""
    is_picture, words, target = match.groups()
    if target.startswith("https:"):
        return match[0]
    if target.startswith(".docs/pages/"):
        return f"[{words}](../{target.removeprefix('.docs/pages/')})"
    if is_picture:
        return f"![{words}](../assets/{target.removeprefix('.github/')})"
    # A file of the repository, which the site has not.
    return words
