"""Small figures as SVG, in the colours of the page, light or dark."""

from collections.abc import Mapping
from collections.abc import Sequence

_WIDTH, _HEIGHT, _MARGIN = 640, 300, 40


def curves(
    x: Sequence[float], lines: Sequence[Sequence[float]], about: str
) -> str:
    """Lines over one x axis, with the two axes through the origin.

    Args:
        x: Numbers, ascending, on both sides of 0.
        lines: Lists of as many numbers.
        about: String, what it shows, for those who cannot see it.
    """
    values = [value for line in lines for value in line]
    low, high = min(*values, -0.5), max(*values, 0.5)
    right = _scale(x[0], x[-1], _MARGIN, _WIDTH - _MARGIN)
    up = _scale(low, high, _HEIGHT - _MARGIN, _MARGIN)
    parts = [
        _line(right(x[0]), up(0), right(x[-1]), up(0), "axis"),
        _line(right(0), up(low), right(0), up(high), "axis"),
        _text(right(x[-1]), up(0) + 18, f"{x[-1]:g}", "end"),
        _text(right(x[0]), up(0) + 18, f"{x[0]:g}", "start"),
        _text(right(0) + 6, up(high) + 12, f"{high:.2g}", "start"),
    ]
    for number, line in enumerate(lines):
        points = " ".join(
            f"{right(a):.1f},{up(b):.1f}" for a, b in zip(x, line)
        )
        kind = "line second" if number else "line"
        parts.append(f'<polyline class="{kind}" points="{points}"/>')
    return _figure(parts, _HEIGHT, about)


def intervals(
    values: Mapping[str, tuple[float, float]], chosen: str, about: str
) -> str:
    """Differences with their intervals, one of them picked out.

    Args:
        values: Dict from a name to a difference and half its interval.
        chosen: String, the name that is picked out.
        about: String, what it shows, for those who cannot see it.
    """
    low = min(*(value for value, _ in values.values()), 0)
    high = max(*(value for value, _ in values.values()), 0)
    right = _scale(low - 1, high + 1, _MARGIN, _WIDTH - _MARGIN)
    top, height = 34, 96
    parts = [
        _line(_MARGIN, top, _WIDTH - _MARGIN, top, "axis"),
        _line(right(0), top - 16, right(0), top + 16, "axis"),
    ]
    for tick in range(-20, int(high) + 1, 5):
        if tick >= low - 1:
            parts.append(_text(right(tick), top + 34, f"{tick:+d}", "middle"))
    for name, (value, _) in values.items():
        if name != chosen:
            at = right(value)
            parts.append(_line(at, top - 9, at, top + 9, "other"))
    value, half = values[chosen]
    ends = (max(value - half, low - 1), min(value + half, high + 1))
    parts += [
        _line(right(ends[0]), top, right(ends[1]), top, "line"),
        f'<circle class="mark" cx="{right(value):.1f}" cy="{top}" r="6"/>',
        _text(
            _WIDTH / 2,
            top + 56,
            "points of accuracy above Adam alone (lines: other methods)",
            "middle",
        ),
    ]
    return _figure(parts, height, about)


def _scale(low, high, start, end):
    def place(value):
        return start + (value - low) / (high - low) * (end - start)

    return place


def _line(x1, y1, x2, y2, kind):
    return (
        f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" '
        f'y2="{y2:.1f}"/>'
    )


def _text(x, y, words, anchor):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'
    )


def _figure(parts, height, about):
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{about}">{"".join(parts)}</svg>'
    )
