"""Prints the plan of a dry run: a line per VM, as text or as JSON."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TextIO

from ..common.text import printable
from .guests import ObservedGuest
from .sessions import Action


def plan_lines(host: str, actions: Iterable[Action]) -> Iterator[str]:
    """The plan as text: host, VM, action, from and to in MB, reason."""
    for action in actions:
        sizes = "" if math.isnan(action.to_mb) else f"  {action.from_mb:.0f} -> {action.to_mb:.0f} MB"
        yield f"{host}  {printable(action.name)}  {action.kind}{sizes}  {action.reason}"


def plan_json(host: str, actions: Iterable[Action]) -> Iterator[str]:
    """The plan as JSON lines with ``host``, ``vm``, ``action``, ``from_mb``, ``to_mb`` and ``reason``.

    Sizes are null where nothing changes.
    """
    for action in actions:
        fields = {
            "host": host,
            "vm": action.name,
            "action": action.kind,
            "from_mb": _finite(action.from_mb),
            "to_mb": _finite(action.to_mb),
            "reason": action.reason,
        }
        yield json.dumps(fields)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class PlanOutput:
    """The output of a dry run, shared by the threads of all hosts.

    Parameters
    ----------
    stream : TextIO
    as_json : bool
    on_failure : callable
        Called when the stream cannot be written; the error is in :attr:`failure`.
    """

    def __init__(self, stream: TextIO, on_failure: Callable[[], object], *, as_json: bool) -> None:
        self.failure: OSError | None = None
        self._stream = stream
        self._on_failure = on_failure
        self._format = plan_json if as_json else plan_lines
        self._lock = threading.Lock()

    def write(self, host: str, actions: Iterable[Action]) -> None:
        """Print the plan of a host; does not raise."""
        with self._lock:
            if self.failure is not None:
                return
            try:
                self._stream.writelines(f"{line}\n" for line in self._format(host, actions))
                self._stream.flush()
            except OSError as error:
                self.failure = error
                self._on_failure()


class PlanPrinter:
    """Prints the actions of a host instead of applying them.

    Parameters
    ----------
    host : str
    output : PlanOutput
    """

    def __init__(self, host: str, output: PlanOutput) -> None:
        self._host = host
        self._output = output

    def apply(self, actions: Sequence[Action], guests: Mapping[str, ObservedGuest]) -> None:  # noqa: ARG002
        """Print actions."""
        self._output.write(self._host, actions)
