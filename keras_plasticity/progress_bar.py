"""How long work is going to take, for whoever looks at it now or later."""

import time

from rich import console as consoles
from rich import progress

_SECONDS_BETWEEN_LINES = 60.0


class ProgressBar(progress.Progress):
    """A bar with the time that is left; in a file, a line of it once a minute.

    A terminal is drawn over. Other output, such as the file of a batch job,
    cannot be: there each minute in which something is done adds a line.

    Args:
        *columns: Columns of `rich.progress`, between the bar and the times.
        console: `rich.console.Console` to print to. Defaults to `None`:
            standard output.
        speed_estimate_period: Float, how many seconds back the time that is
            left is estimated from: long enough to see a few steps.
    """

    def __init__(
        self,
        *columns: progress.ProgressColumn,
        console: consoles.Console | None = None,
        speed_estimate_period: float = 30.0,
    ):
        super().__init__(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            *columns,
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            speed_estimate_period=speed_estimate_period,
        )
        self._line_time = time.monotonic()

    def start(self):
        self._line_time = time.monotonic()
        super().start()

    def advance(self, *args, **kwargs):
        super().advance(*args, **kwargs)
        self._print_line()

    def update(self, *args, **kwargs):
        super().update(*args, **kwargs)
        self._print_line()

    def _print_line(self):
        now = time.monotonic()
        is_due = now - self._line_time >= _SECONDS_BETWEEN_LINES
        if is_due and not self.console.is_interactive:
            self._line_time = now
            self.console.print(self.get_renderable())
