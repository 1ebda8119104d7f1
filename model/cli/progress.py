"""Progress on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

T = TypeVar("T")


class ProgressBar:
    """A progress bar on stderr where that is a terminal; invisible elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        stream = stream or sys.stderr
        self._console = Console(file=stream)
        self._visible = stream.isatty()

    def busy(self, what: str) -> Progress:
        """A context during which a spinner runs: for work of unknown length."""
        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._visible,
        )
        progress.add_task(what, total=None)
        return progress

    @contextlib.contextmanager
    def counted(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """A context with a function to call after each of ``total`` steps."""
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True, disable=not self._visible) as progress:
            task = progress.add_task(what, total=total)
            yield lambda: progress.advance(task)

    def track(self, items: Iterable[T], total: int) -> Iterator[T]:
        """Yield the items and show how many are done."""
        columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True, disable=not self._visible) as progress:
            yield from progress.track(items, total=total, update_period=0.2)
