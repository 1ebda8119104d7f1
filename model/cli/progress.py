"""Progress on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

T = TypeVar("T")


class ProgressBar:
    """A progress bar on stderr where that is a terminal; invisible elsewhere, where rich is not imported either."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._visible = self._stream.isatty()

    def busy(self, what: str) -> AbstractContextManager[object]:
        """A context during which a spinner runs: for work of unknown length."""
        if not self._visible:
            return contextlib.nullcontext()
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        progress = self._progress(SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        progress.add_task(what, total=None)
        return progress

    @contextlib.contextmanager
    def counted(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """A context with a function to call after each of ``total`` steps."""
        if not self._visible:
            yield lambda: None
            return
        with self._counting(what) as progress:
            task = progress.add_task(what, total=total)
            yield lambda: progress.advance(task)

    def track(self, items: Iterable[T], total: int) -> Iterator[T]:
        """Yield the items and show how many are done."""
        if not self._visible:
            yield from items
            return
        with self._counting("replaying") as progress:
            yield from progress.track(items, total=total, update_period=0.2)

    def _counting(self, what: str) -> Progress:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

        return self._progress(TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())

    def _progress(self, *columns: ProgressColumn) -> Progress:
        from rich.console import Console
        from rich.progress import Progress

        return Progress(*columns, console=Console(file=self._stream), transient=True)
