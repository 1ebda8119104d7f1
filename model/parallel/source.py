"""The source of this package: its modules, and a digest of them."""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Traversable

#: The root package: ``model`` in a checkout, ``scroogevm`` where it is installed.
ROOT_PACKAGE = __name__.partition(".")[0]


def source_files() -> Iterator[tuple[str, bytes]]:
    """Name and text of every module of this package, which may be inside a zip file."""
    return _modules(importlib.resources.files(ROOT_PACKAGE), ROOT_PACKAGE)


def _modules(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        name = f"{prefix}/{entry.name}"
        if entry.is_dir():
            yield from _modules(entry, name)
        elif name.endswith(".py"):
            yield name, entry.read_bytes()


def _digest() -> str:
    digest = hashlib.sha256()
    for name, text in source_files():
        digest.update(name.encode() + b"\0" + text + b"\0")
    return digest.hexdigest()


#: Identifies this version of the code: results of another version are computed again, and workers that have imported
#: another version are refused.
SOURCE_DIGEST = _digest()
