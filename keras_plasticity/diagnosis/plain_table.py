"""Tables in plain text."""


def plain_table(rows, num_headings=1):
    """A table: the first column to the left, the others to the right.

    Args:
        rows: List of tuples of strings, as many each; the headings first.
        num_headings: Integer, how many rows they are.

    Returns:
        String, with a line below the headings.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]
    lines.insert(num_headings, "-" * len(lines[0]))
    return "\n".join(map(str.rstrip, lines))
