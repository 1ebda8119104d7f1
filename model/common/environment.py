"""The environment, with ``.env`` below it: what stands there, and where it is wrong."""

from __future__ import annotations

import difflib
import io
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from .targets import is_url

LOG = logging.getLogger("scroogevm")

T = TypeVar("T")

#: Every setting of our own, by the first word of its key; OpenStack has more than those that we read.
_KEYS = {
    "AGGREG": "STUB_LIST FETCH_DELAY TIMEOUT_S MAX_PAGE_MB QUEUE_MB METRICS_PORT",
    "METRICS": "ADDRESS",
    "SCHED": "NODES SCOPE_S SCOPE_SLICE_S SCOPE_HISTORICAL SCOPE_INIT_FETCH_PREVIOUS SETTLE_S MEMORY_PATH DUMP_SLICES "
    "METRICS_PORT",
    "STATE": "ENDPOINT MODE OWNER",
    "LIBVIRT": "NODES",
    "BALLOONING": "SCOPE_S SCOPE_MN THRESHOLD_GAIN_MB GRACE_PERIOD_S SCOPE_SLEEP_S MIN_CONFIG_MB HEADROOM_PCT "
    "HEADROOM_MB STEP_PCT STEP_MB CHECK_S SESSION_S STUCK_S STATS_AGE_S SESSIONS_PER_HOST EXCLUDE TIMEOUT_S "
    "JOURNAL_PATH METRICS_PORT",
    "INFLUXDB": "URL TOKEN ORG BUCKET TIMEOUT_S RETENTION_S LISTEN USER PASSWORD IMAGE NAME WAIT_S",
    "STORE": "PATH RETENTION_S",
    "PLACEMENT": "PROVIDERS ENDPOINT TOKEN TIMEOUT_S ROUND_TIMEOUT_S ALLOW_BELOW_ONE MAX_RATIO",
}

KEYS = frozenset(f"{first}_{rest}" for first, words in _KEYS.items() for rest in words.split())


class SettingsError(ValueError):
    """Settings that can't be used.

    Attributes
    ----------
    faults : sequence of str
        One line each, starting with the key.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class Environment:
    """Reads settings one by one and collects what is wrong with them.

    Parameters
    ----------
    values : mapping of key to text
    without : str
        What is not here and may be missed, to be told where a setting is.
    """

    def __init__(self, values: Mapping[str, str | None], without: str = "") -> None:
        self._values = values
        self.without = without
        self.faults: list[str] = []

    def fault(self, key: str, words: str) -> None:
        """Take down what is wrong with a key; no value is repeated, it may be a secret."""
        self.faults.append(f"{key}: {words}")

    def text(self, key: str, default: str = "") -> str:
        """A text; empty counts as unset."""
        value = self._values.get(key) or default
        if not value.isprintable():
            self.fault(key, "holds characters that can't be printed")
            return default
        return value

    def required(self, key: str, why: str) -> str:
        """A text that must be there."""
        value = self.text(key)
        if not value and not self._values.get(key):
            self.fault(key, f"is not set; {why}")
        return value

    def number(self, key: str, default: float, least: float, most: float = 1e12) -> float:
        """A number within bounds."""
        text = self.text(key)
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            self.fault(key, f"{text!r} is not a number from {least:g} to {most:g}")
            return default
        return value

    def whole(self, key: str, default: int, least: int, most: int = 10**12) -> int:
        """A whole number within bounds."""
        value = self.number(key, default, least, most)
        if value != int(value):
            self.fault(key, f"{value:g} is not a whole number")
        return int(value)

    def json(self, key: str, parse: Callable[[Any], T], default: T) -> T:
        """What ``parse`` makes of JSON text; a ValueError of its tells what is wrong."""
        text = self.text(key)
        if not text:
            return default
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            self.fault(key, "is not JSON")
            return default
        try:
            return parse(value)
        except ValueError as error:
            self.fault(key, str(error))
            return default

    def url(self, key: str) -> str:
        """An http URL, or nothing when it is unset or wrong."""
        text = self.text(key)
        if text and not is_url(text):
            self.fault(key, "is not an http(s) URL")
            return ""
        return text


def environment() -> Environment:
    """The process' environment over what ``.env`` in the working directory says.

    Raises
    ------
    SettingsError
        When that file can't be read or understood.
    """
    try:
        text = Path(".env").read_text(encoding="utf-8")
    except FileNotFoundError:
        return Environment(os.environ, " (there is no .env in this folder)")
    except UnicodeDecodeError:
        raise SettingsError([".env: is not UTF-8"]) from None
    except OSError as error:
        raise SettingsError([f".env: {error.strerror}"]) from None
    unclear = [binding.original.line for binding in parse_stream(io.StringIO(text)) if binding.error]
    if unclear:
        raise SettingsError([f".env, line {line}: is no setting such as KEY='value'" for line in unclear])
    written = dotenv_values(stream=io.StringIO(text))
    for key in written:
        if key not in KEYS and key.partition("_")[0] in _KEYS:
            like = difflib.get_close_matches(key, KEYS, 1)
            LOG.warning(".env: %s is no setting%s", key, f"; is {like[0]} meant?" if like else "")
    return Environment({**written, **os.environ})
