"""What the commands share: the `--json` option, tables, and progress bars that only a terminal sees."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vidweights.progress import Progress, silent

if TYPE_CHECKING:
    from rich.console import Console

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")

no_validate_option = click.option(
    "--no-validate", is_flag=True, help="Do not prove the result; it then counts as unvalidated."
)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace a folder that exists, once the new one is complete."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the plan, tensor by tensor, and write nothing.")

clip_option = click.option(
    "--clip",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Validate with this real clip too: an .npy file (1, T, H, W, C), float32 in [-1, 1].",
)

# A bar appears when a job has run this long, in seconds.
_PATIENCE = 1.0


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def console() -> Console:
    """Standard output as rich prints to it: as wide as the terminal, and not wrapped where there is none."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # which main() takes for what it is: a reader that has seen enough

    out = Output(highlight=False)
    return out if out.is_terminal else Output(highlight=False, width=max(out.width, 200))


def printable(text: str) -> str:
    """The text with its control characters escaped; a name in a file must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their headings; a row of one cell stands above those that follow it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in headings:
        grid.add_column(heading, overflow="fold")  # a name is folded in a narrow terminal, and never cut
    for number, row in enumerate(rows):
        title = len(row) == 1 < len(headings)
        if title and number:
            grid.add_row()
        cells = (Text(printable(cell)) for cell in row)  # Text: a bracket in a name is no markup
        grid.add_row(*cells, style="bold" if title else "")
    console().print(grid)


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A callback (what, done, total) that draws a bar on a terminal once the job takes over a second."""
    if not sys.stderr.isatty():
        yield silent
        return
    started, bar = time.monotonic(), _Bar()

    def tell(what: str, done: int, total: int) -> None:
        if time.monotonic() - started > _PATIENCE:
            bar.show(what, done, total)

    try:
        yield tell
    finally:
        bar.stop()


class _Bar:
    """rich's progress display, made when it is first needed."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None

    def show(self, what: str, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress.start()
            self._task = self._progress.add_task(what, total=total)
        self._progress.update(self._task, description=what, completed=done, total=total)

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
