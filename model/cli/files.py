"""The files that an argument of a command line names: itself, or those of a folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..common.errors import UsageError
from ..common.text import printable


def json_files(path: Path) -> list[Path]:
    """A file itself; of a folder its ``*.json``, sorted, which may be none.

    Raises
    ------
    OSError
    """
    if not stat.S_ISDIR(path.stat().st_mode):
        return [path]
    with os.scandir(path) as entries:
        return [path / name for name in sorted(entry.name for entry in entries if entry.name.endswith(".json"))]


def json_files_of(argument: str) -> list[Path]:
    """The files that an argument names, at least one; see :func:`json_files`.

    Raises
    ------
    UsageError
        When the file or folder is missing or unreadable, or when the folder has no such file.
    """
    try:
        files = json_files(Path(argument))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{printable(argument)}: no such file or folder") from None
    except OSError as error:
        raise UsageError(f"{printable(argument)}: {error.strerror}") from None
    if not files:
        raise UsageError(f"{printable(argument)}: no *.json in it")
    return files
