"""Runs a command line: exit codes, interruption, missing libraries, output that cannot be written."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ..common.errors import PassingFault, UsageError
from ..common.signals import raise_on_signals
from .parser import Parser, discard_output


def run_cli(parser: Parser, job: Callable[[], int], setup: str = "all") -> int:
    """Run the job of a program; the exit code.

    Parameters
    ----------
    job : callable
        Imports what it needs itself, so that ``-h`` is quick.
    setup : str
        Argument of ``misc/setup.sh`` that installs the libraries of the job.
    """
    # No matrix is multiplied anywhere; a thread per core for that would cost as much as a small replay.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _open_standard_streams()
    try:
        code = job()
        sys.stdout.flush()
    except UsageError as error:
        for line in str(error).splitlines():
            print(f"{parser.prog}: {line}", file=sys.stderr)
        return 2
    except PassingFault as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        parser.error(_not_installed(error, setup))
    except BrokenPipeError:
        discard_output()
        return 1
    except PermissionError as error:
        # Wherever it occurs, the operator has to mend it, and the file name says where.
        if error.filename is None:
            raise
        parser.error(f"{error.filename}: {error.strerror}")
    except OSError as error:
        if error.filename is not None or not _output_fails():
            raise
        print(f"{parser.prog}: standard output: {error.strerror}", file=sys.stderr)
        return 1
    return code


def _open_standard_streams() -> None:
    """Open closed standard streams on the null device: else the next file that is opened takes their place."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="replace", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="replace", closefd=False)


def _output_fails() -> bool:
    """Whether standard output cannot be written; what waits for it is discarded then."""
    try:
        # A failed write leaves nothing to flush: only another one shows that it fails.
        print(flush=True)
    except OSError:
        discard_output()
        return True
    return False


@contextlib.contextmanager
def require_libraries(setup: str) -> Iterator[None]:
    """Wrap the imports at the head of a program: a library that is missing is one line and exit code 2."""
    try:
        yield
    except ModuleNotFoundError as error:
        print(f"{Path(sys.argv[0]).name}: {_not_installed(error, setup)}", file=sys.stderr)
        sys.exit(2)


def _not_installed(error: ModuleNotFoundError, setup: str) -> str:
    if __name__.startswith("model."):
        return f"{error.name} is not installed; misc/setup.sh {setup} prepares .venv/bin/python"
    extra = "[ballooning]" if error.name == "libvirt" else ""
    return f"{error.name} is not installed; pip install 'scroogevm{extra}' installs it"


def run_interruptible(job: Callable[[], int], on_interrupt: Callable[[], int]) -> int:
    """Run a job that SIGINT and SIGTERM interrupt by an exception; the exit code.

    Parameters
    ----------
    on_interrupt : callable
        Reports the interruption and returns the exit code.
    """
    interrupted = raise_on_signals()
    try:
        return job()
    except (KeyboardInterrupt, Exception):
        # A compiled library that is interrupted while it is loaded raises another error instead.
        if not interrupted.is_set():
            raise
        return on_interrupt()
