"""Notebooks, which are kept as scripts: executed, and as Markdown."""

import os
import pathlib

import jupytext
import nbclient
import nbconvert
from traitlets.config import Config

# Seconds that a cell may take.
_TIMEOUT = 600


def convert(path: pathlib.Path, execute: bool) -> tuple[str, dict[str, bytes]]:
    """Executes a notebook.

    Args:
        path: A script with cells, as jupytext has them.
        execute: Whether to execute it; otherwise it has no results.

    Returns:
        Its Markdown, and a dict from the names of its pictures to their bytes.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell fails.
        RuntimeError: If a cell warns of something.
    """
    notebook = jupytext.read(path, fmt="py:percent")
    if execute:
        client = nbclient.NotebookClient(
            notebook,
            timeout=_TIMEOUT,
            kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}},
        )
        client.execute(env=_environment())
        _drop_log_lines(notebook)
    # What is printed in a row is one block.
    config = Config({"CoalesceStreamsPreprocessor": {"enabled": True}})
    exporter = nbconvert.MarkdownExporter(config=config)
    text, resources = exporter.from_notebook_node(
        notebook, {"unique_key": path.stem, "output_files_dir": path.stem}
    )
    pictures = {
        name.removeprefix(f"{path.stem}/"): data
        for name, data in resources["outputs"].items()
    }
    return text, pictures


def _drop_log_lines(notebook):
    """Leaves out what backends write to the standard error."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr" and "Warning: " in output.text:
                raise RuntimeError(f"A notebook warns: {output.text}")
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if output.get("name") != "stderr"
            ]


def _environment():
    # Frozen modules slow a debugger down, of which it warns, and we have none.
    return {**os.environ, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
