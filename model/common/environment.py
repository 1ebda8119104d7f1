"""Reads settings from the environment and from ``.env`` in the working directory, and collects all faults."""

from __future__ import annotations

import difflib
import io
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .errors import SettingsError
from .settings import SETTINGS, InvalidValue, Setting

__all__ = ["Environment", "SettingsError", "environment", "misspelt"]

LOG = logging.getLogger("scroogevm")

T = TypeVar("T")

#: First words of keys that no other program uses: an unknown key that starts so is a mistake wherever it is set.
_OWN_PREFIXES = ("AGGREG", "SCHED", "BALLOONING")
#: Similarity from which an unknown key of the environment counts as a misspelt one of ours (difflib's ratio).
_SIMILAR = 0.93


class Environment:
    """Reads settings one by one and collects their faults.

    Parameters
    ----------
    values : mapping of key to text
    hint : str
        Added to the fault of a setting that is missing.
    """

    def __init__(self, values: Mapping[str, str | None], hint: str = "") -> None:
        self._values = values
        self._read: set[str] = set()
        self.hint = hint
        self.faults: list[str] = []

    def fault(self, setting: Setting[T], message: str) -> None:
        """Add a fault; ``message`` must not repeat a secret."""
        line = f"{self._source(setting)}: {message}"
        if line not in self.faults:
            self.faults.append(line)

    def is_faulty(self, *settings: Setting[Any]) -> bool:
        """Whether one of the settings has a fault."""
        return any(fault.startswith(f"{self._source(setting)}:") for fault in self.faults for setting in settings)

    def is_set(self, setting: Setting[T]) -> bool:
        """Whether the setting, or an older name of it, is set and not empty."""
        return bool(self._text(setting))

    def read(self, setting: Setting[T], default: T | None = None) -> T:
        """The value of a setting; its default when it is unset, empty or faulty.

        Parameters
        ----------
        default : optional
            Used instead of the declared default.
        """
        default = setting.default if default is None else default
        text = self._text(setting)
        if not text:
            return default
        if not text.isprintable():
            self.fault(setting, "contains characters that cannot be printed")
            return default
        try:
            return setting.parse(text)
        except InvalidValue as error:
            self.fault(setting, str(error))
            return default

    def require(self, setting: Setting[T], reason: str) -> T:
        """The value of a setting that must be set."""
        if not self.is_set(setting):
            self.fault(setting, f"is not set; {reason}")
        return self.read(setting)

    def check(self) -> None:
        """Raise all faults.

        Raises
        ------
        SettingsError
            When there are any.
        """
        if self.faults:
            raise SettingsError(self.faults)

    def _source(self, setting: Setting[T]) -> str:
        """The key under which the setting is set: its own, or an older one."""
        return next((key for key in (setting.key, *setting.aliases) if self._values.get(key)), setting.key)

    def _text(self, setting: Setting[T]) -> str:
        return self._values.get(self._source(setting)) or ""


def environment(given: Mapping[str, str] | None = None) -> Environment:
    """The process' environment over the settings in ``.env``, which is read without ``${}`` interpolation.

    Parameters
    ----------
    given : mapping of key to text, optional
        Values of the command line, which override both.

    Keys that look like misspelt settings are logged, in whichever of the two they stand.

    Raises
    ------
    SettingsError
        When ``.env`` cannot be read or parsed.
    """
    written = _dotenv()
    for source, line in misspelt(written or {}, os.environ):
        LOG.warning("%s: %s", source, line)
    if written is None:
        return Environment({**os.environ, **(given or {})}, " (there is no .env in this folder)")
    return Environment({**written, **os.environ, **(given or {})})


def _dotenv() -> dict[str, str | None] | None:
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    try:
        text = Path(".env").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise SettingsError([".env: is not UTF-8"]) from None
    except OSError as error:
        raise SettingsError([f".env: {error.strerror}"]) from None
    bad_lines = [binding.original.line for binding in parse_stream(io.StringIO(text)) if binding.error]
    if bad_lines:
        raise SettingsError([f".env, line {line}: is not a setting such as KEY='value'" for line in bad_lines])
    return dotenv_values(stream=io.StringIO(text), interpolate=False)


def misspelt(written: Iterable[str], environ: Iterable[str]) -> list[tuple[str, str]]:
    """Source and message of each key that looks like a misspelt setting.

    A key in ``.env`` is one when its first word is that of a setting, or when it resembles a setting; a key of the
    environment, which other programs share, only when its first word is ours alone, or when it resembles a setting.
    """
    keys = {key for setting in SETTINGS.values() for key in (setting.key, *setting.aliases)}
    prefixes = {key.partition("_")[0] for key in keys} - {"OS"}
    found = []
    for source, names, own in ((".env", written, prefixes), ("environment", environ, set(_OWN_PREFIXES))):
        for name in names:
            if name in keys:
                continue
            similar = difflib.get_close_matches(name, keys, 1, _SIMILAR)
            if similar or name.partition("_")[0] in own:
                similar = similar or difflib.get_close_matches(name, keys, 1)
                hint = f"; did you mean {similar[0]}?" if similar else ""
                found.append((source, f"{name} is not a setting{hint}"))
    return found
