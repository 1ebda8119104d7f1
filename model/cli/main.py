"""Runs a command line: exit codes, interruption, missing libraries."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ..common.errors import UsageError
from .parser import Parser


def run_cli(parser: Parser, job: Callable[[], int], setup: str = "all") -> int:
    """Do a program's job; its exit code.

    Parameters
    ----------
    job : callable
        Does it; imports what it needs first, so that ``-h`` need not wait for that.
    setup : str
        What ``misc/setup.sh`` has to make ready for it.
    """
    # No matrix is multiplied anywhere, and a thread per core for that would cost as much as a small replay.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        return job()
    except UsageError as error:
        for line in str(error).splitlines():
            print(f"{parser.prog}: {line}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        parser.error(_not_installed(error, setup))
    except PermissionError as error:
        # Wherever it is met, it is the operator's to mend, and the name says where.
        if error.filename is None:
            raise
        parser.error(f"{error.filename}: {error.strerror}")


@contextlib.contextmanager
def require_libraries(setup: str) -> Iterator[None]:
    """Around the imports at the head of a program: what is not installed is one line and exit code 2, too."""
    try:
        yield
    except ModuleNotFoundError as error:
        print(f"{Path(sys.argv[0]).name}: {_not_installed(error, setup)}", file=sys.stderr)
        sys.exit(2)


def _not_installed(error: ModuleNotFoundError, setup: str) -> str:
    return f"{error.name} is not installed here; misc/setup.sh {setup} makes .venv/bin/python ready"


def run_interruptible(job: Callable[[], int], when_interrupted: Callable[[], int]) -> int:
    """Do a job that Ctrl-C and SIGTERM break off, with all that it has to take back; its exit code.

    Parameters
    ----------
    when_interrupted : callable
        Says so; answers with the exit code then.
    """
    interrupted = threading.Event()

    def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
        interrupted.set()
        raise KeyboardInterrupt

    def not_raised(unraisable: sys.UnraisableHookArgs) -> None:
        if interrupted.is_set() and isinstance(unraisable.exc_value, KeyboardInterrupt):
            # It came while an object was taken apart, where an error ends nothing: once more, a moment later.
            threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = not_raised

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        return job()
    except BrokenPipeError:
        # The reader of our output has left; without this the interpreter complains at its own end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, Exception):
        # A compiled library that is interrupted while it is loaded makes another error of it.
        if not interrupted.is_set():
            raise
        return when_interrupted()
