"""A `rich` progress bar for terminals, notebooks and log files."""

import io
import time

from rich import console as consoles
from rich import progress

from keras_plasticity import validation

_SECONDS_BETWEEN_LINES = 60.0
_SECONDS_BETWEEN_REDRAWS = 0.5
_WIDTH_IN_A_NOTEBOOK = 80


class ProgressBar(progress.Progress):
    """A progress bar that logs one line a minute when there is no terminal.

    On a terminal the bar is redrawn in place. In other output, such as the log
    file of a batch job, it adds a line for each minute with some progress. In a
    notebook it is one line of text that is redrawn, and remains in the file.

    Args:
        *columns: Columns of `rich.progress`, between the bar and the times.
        console: `rich.console.Console` to print to. Defaults to `None`:
            standard output.
        speed_estimate_period: Float, the time left is estimated from the
            speed over this many seconds: long enough to see a few steps.

    Example:

    ```python
    with keras_plasticity.utils.ProgressBar() as bar:
        task = bar.add_task("images", total=1000)
        for _ in range(1000):
            bar.advance(task)
    ```
    """

    def __init__(
        self,
        *columns: progress.ProgressColumn,
        console: consoles.Console | None = None,
        speed_estimate_period: float = 30.0,
    ):
        for column in columns:
            validation.check_type(
                "columns",
                column,
                (progress.ProgressColumn, str),
                "columns of `rich.progress`",
            )
        if console is not None:
            validation.check_type(
                "console", console, consoles.Console, "a `rich.console.Console`"
            )
        speed_estimate_period = validation.check_positive(
            "speed_estimate_period", speed_estimate_period
        )
        console = console or consoles.Console()
        super().__init__(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            *columns,
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            speed_estimate_period=speed_estimate_period,
            # `rich` draws in a notebook by ipywidgets, which may not be there,
            # and of which a notebook that was saved shows nothing.
            disable=console.is_jupyter,
        )
        self._cell = None
        self._line_time = time.monotonic()

    def start(self):
        self._line_time = time.monotonic()
        super().start()
        if self.console.is_jupyter:
            self._draw_in_notebook()

    def stop(self):
        super().stop()
        if self.console.is_jupyter:
            self._draw_in_notebook()

    def advance(self, *args, **kwargs):
        super().advance(*args, **kwargs)
        self._print_line()

    def update(self, *args, **kwargs):
        super().update(*args, **kwargs)
        self._print_line()

    def _print_line(self):
        now = time.monotonic()
        seconds = now - self._line_time
        if self.console.is_jupyter:
            if seconds >= _SECONDS_BETWEEN_REDRAWS:
                self._line_time = now
                self._draw_in_notebook()
        elif seconds >= _SECONDS_BETWEEN_LINES and (
            not self.console.is_interactive
        ):
            self._line_time = now
            self.console.print(self.get_renderable())

    def _draw_in_notebook(self):
        # Only where a notebook runs is it sure to be there.
        from IPython import display

        text = io.StringIO()
        console = consoles.Console(
            file=text,
            width=_WIDTH_IN_A_NOTEBOOK,
            force_jupyter=False,
            force_terminal=False,
        )
        console.print(self.get_renderable())
        data = {"text/plain": text.getvalue().rstrip()}
        if self._cell is None:
            self._cell = display.display(data, raw=True, display_id=True)
        else:
            self._cell.update(data, raw=True)
