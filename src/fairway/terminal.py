"""What a person sees while a command works: notes and progress on standard error, results on standard output."""

import sys
import time
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0  # between two lines of progress where there is no terminal to draw a bar on


class Terminal:
    """Notes, progress bars and tables. Silent where `quiet` (the ranks beyond the first)."""

    def __init__(self, quiet=False):
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False, emoji=False)

    def note(self, line):
        """One line on standard error."""
        if not self.quiet:
            self.console.print(line, markup=False, soft_wrap=True)

    def complain(self, line):
        """How a command ended, on one line; never silent, since a fault may be one rank's alone."""
        self.console.print(f"fairway: {line}", markup=False, soft_wrap=True)

    @contextmanager
    def progress(self, title):
        """Yields `show(done, total, text)`: a live bar on a terminal, a line every ten seconds elsewhere."""
        if self.quiet:
            yield lambda done, total, text="": None
        elif self.console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
            with Progress(*columns, TextColumn("{task.fields[text]}"), console=self.console) as bars:
                task = bars.add_task(title, total=None, text="")
                yield lambda done, total, text="": bars.update(task, completed=done, total=total, text=text)
        else:
            yield PlainProgress(self, title).show


class PlainProgress:
    """Progress as lines of text, for logs."""

    def __init__(self, terminal, title):
        self.terminal, self.title, self.last = terminal, title, time.monotonic()

    def show(self, done, total, text=""):
        """Prints if the last line is ten seconds old."""
        if time.monotonic() - self.last >= PLAIN_SECONDS:
            self.last = time.monotonic()
            self.terminal.note(f"{self.title}: {100 * done / total:.0f} % {text}")


def print_table(title, columns, rows):
    """A plain table on standard output; the first column is text, the others are numbers as formatted strings."""
    widths = [max(len(str(row[i])) for row in [columns, *rows]) for i in range(len(columns))]

    def line(row):
        cells = [
            str(row[0]).ljust(widths[0]),
            *(str(cell).rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        return "  ".join(cells).rstrip()

    sys.stdout.write("\n".join([title, line(columns), "  ".join("-" * width for width in widths), *map(line, rows)]) + "\n")
