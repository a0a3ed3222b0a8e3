"""What a page shows of Markdown, as a browser reads its HTML."""

import html.parser
import warnings

import markdown

with warnings.catch_warnings():
    # Of a part of html5lib that TensorBoard brings and does not use.
    warnings.simplefilter("ignore", DeprecationWarning)
    from tensorboard import plugin_util

# What a table is made of; a line break is `br`.
_TABLE = {"table", "thead", "tbody", "tr", "th", "td", "br"}


class _Table(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows = []
        self.others = []
        self._is_in_cell = False

    def handle_starttag(self, tag, attrs):
        if tag not in _TABLE or attrs:
            self.others.append((tag, attrs))
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
            self._is_in_cell = True
        elif tag == "br":
            self.rows[-1][-1] += "\n"

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self._is_in_cell = False

    def handle_data(self, data):
        if self._is_in_cell:
            self.rows[-1][-1] += data
        elif data.strip():
            self.others.append(data)

    def handle_comment(self, data):
        self.others.append(data)


def _read(page):
    table = _Table()
    table.feed(page)
    table.close()
    return table


def shown_tables(text):
    """The tables of a Markdown text: by TensorBoard, and before it cleans.

    Args:
        text: String.

    Returns:
        List of lists of rows, which are lists of strings.
    """
    extensions = ["tables", "fenced_code"]
    pages = [
        plugin_util.markdown_to_safe_html(text),
        markdown.markdown(text, extensions=extensions),
    ]
    tables = [_read(page) for page in pages]
    for table in tables:
        assert not table.others
    return [table.rows for table in tables]
