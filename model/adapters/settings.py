"""The environment, validated: every fault is found before anything starts, and all are told together."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from dotenv import dotenv_values

T = TypeVar("T")

#: Who asks a node more often than ten times a second harms it.
_SHORTEST_DELAY_S = 0.1


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


@dataclass(frozen=True, slots=True)
class VmprobeStub:
    """A worker node that runs vmprobe.

    Attributes
    ----------
    node : str
        Its name everywhere: the URL, without a password if it holds one.
    url : str
    prefix : str
        Of vmprobe's metrics on the page.
    """

    node: str
    url: str = field(repr=False)
    prefix: str


@dataclass(frozen=True, slots=True)
class LabelStub:
    """A worker node that runs node_exporter and a libvirt exporter."""

    node: str
    node_exporter: str = field(repr=False)
    libvirt_exporter: str = field(repr=False)


Stub = VmprobeStub | LabelStub


@dataclass(frozen=True, slots=True)
class InfluxSettings:
    """Where InfluxDB is, and who we are there."""

    url: str
    token: str = field(repr=False)
    org: str
    bucket: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where samples are kept: in InfluxDB, or in a file of our own.

    Attributes
    ----------
    influx : InfluxSettings or None
    path : Path
        The file of the embedded store.
    retention_s : float
        How long the embedded store keeps a sample; InfluxDB's bucket has its own.
    """

    influx: InfluxSettings | None
    path: Path
    retention_s: float


@dataclass(frozen=True, slots=True)
class AggregatorSettings:
    """What ``vmaggreg.py`` does.

    Attributes
    ----------
    stubs : tuple of Stub
    fetch_delay_s : float
        Between two scrapes; 0 takes each probe's own.
    timeout_s : float
        For a scrape as a whole.
    max_page_bytes, queue_bytes : int
        The largest page that is read; how much waits for a store that is away.
    metrics_port : int
        Of our own metrics; 0 for none.
    metrics_address : str
    store : StoreSettings
    """

    stubs: tuple[Stub, ...]
    fetch_delay_s: float
    timeout_s: float
    max_page_bytes: int
    queue_bytes: int
    metrics_port: int
    metrics_address: str
    store: StoreSettings


class Environment:
    """Reads settings one by one and collects what is wrong with them.

    Parameters
    ----------
    values : mapping of key to text
    """

    def __init__(self, values: Mapping[str, str | None]) -> None:
        self._values = values
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
    """The process' environment over what ``.env`` in the working directory says."""
    try:
        written = dotenv_values(".env")
    except UnicodeDecodeError:
        raise SettingsError([".env: is not UTF-8"]) from None
    return Environment({**written, **os.environ})


def is_url(text: str) -> bool:
    """Whether this is an http or https URL with a host."""
    try:
        parts = urlsplit(text)
        # The port is looked at only when it is asked for.
        return (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and parts.port != 0
            and text.isprintable()
            and " " not in text
        )
    except ValueError:
        return False


def without_password(url: str) -> str:
    """The URL as it may be shown and stored."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def parse_stubs(value: Any) -> tuple[Stub, ...]:
    """``AGGREG_STUB_LIST``, decoded.

    Raises
    ------
    ValueError
        Naming the place in the list.
    """
    if not isinstance(value, list):
        raise ValueError("is not a list")
    stubs = tuple(_parse_stub(entry, f"entry {i + 1}") for i, entry in enumerate(value))
    seen: set[str] = set()
    for i, stub in enumerate(stubs):
        if stub.node in seen:
            raise ValueError(f"entry {i + 1}: node {stub.node} is there already")
        seen.add(stub.node)
    return stubs


def _parse_stub(entry: Any, place: str) -> Stub:
    if isinstance(entry, list):
        if len(entry) != 2 or not all(isinstance(part, str) and part for part in entry):
            raise ValueError(f'{place}: is not ["http://worker:9100/metrics", "prefix"]')
        url, prefix = entry
        if not is_url(url):
            raise ValueError(f"{place}: is not an http(s) URL")
        if not all(c.isascii() and (c.isalnum() or c in "_:") for c in prefix) or prefix[0].isdigit():
            raise ValueError(f"{place}: {prefix!r} can't be the prefix of a metric")
        if not prefix.strip("_:"):
            raise ValueError(f"{place}: {prefix!r} can't be the prefix of a metric")
        return VmprobeStub(without_password(url), url, prefix.rstrip("_"))
    keys = {"node", "node_exporter", "libvirt_exporter"}
    if isinstance(entry, dict) and set(entry) == keys and all(isinstance(entry[key], str) for key in keys):
        for key in ("node_exporter", "libvirt_exporter"):
            if not is_url(entry[key]):
                raise ValueError(f"{place}: {key} is not an http(s) URL")
        if not entry["node"] or not entry["node"].isprintable():
            raise ValueError(f"{place}: node is no name")
        return LabelStub(
            without_password(entry["node"]) if is_url(entry["node"]) else entry["node"],
            entry["node_exporter"],
            entry["libvirt_exporter"],
        )
    raise ValueError(f"{place}: is neither [URL, prefix] nor an object with {', '.join(sorted(keys))}")


def _influx(env: Environment) -> InfluxSettings | None:
    url = env.url("INFLUXDB_URL")
    if not env.text("INFLUXDB_URL"):
        return None
    why = "INFLUXDB_URL asks for it"
    token = env.required("INFLUXDB_TOKEN", why)
    if not token.isascii() or not token.isprintable():
        env.fault("INFLUXDB_TOKEN", "can't be sent: it holds characters that no token has")
    return InfluxSettings(
        url=url,
        token=token,
        org=env.required("INFLUXDB_ORG", why),
        bucket=env.required("INFLUXDB_BUCKET", why),
        timeout_s=env.number("INFLUXDB_TIMEOUT_S", 10.0, 0.1, 600),
    )


def store_settings(env: Environment) -> StoreSettings:
    """Which store is meant, by all three daemons."""
    state = Path(env.text("STATE_ENDPOINT", "/var/lib/scroogevm/status.json"))
    return StoreSettings(
        influx=_influx(env),
        path=Path(env.text("STORE_PATH", str(state.parent / "store.sqlite"))),
        retention_s=env.number("STORE_RETENTION_S", 30 * 86400.0, 3600),
    )


def aggregator_settings(env: Environment) -> AggregatorSettings:
    """The settings of ``vmaggreg.py``.

    Raises
    ------
    SettingsError
        With all faults.
    """
    stubs: tuple[Stub, ...] = env.json("AGGREG_STUB_LIST", parse_stubs, ())
    if not stubs and not any(fault.startswith("AGGREG_STUB_LIST") for fault in env.faults):
        env.fault("AGGREG_STUB_LIST", 'names no worker node; e.g. [["http://worker1:9100/metrics", "vmprobe"]]')
    fetch_delay_s = env.number("AGGREG_FETCH_DELAY", 0.0, 0, 86400)
    if 0 < fetch_delay_s < _SHORTEST_DELAY_S:
        env.fault("AGGREG_FETCH_DELAY", f"is neither 0 nor at least {_SHORTEST_DELAY_S}")
    settings = AggregatorSettings(
        stubs=stubs,
        fetch_delay_s=fetch_delay_s,
        timeout_s=env.number("AGGREG_TIMEOUT_S", 4.0, 0.05, 600),
        max_page_bytes=env.whole("AGGREG_MAX_PAGE_MB", 8, 1, 1024) * 2**20,
        queue_bytes=env.whole("AGGREG_QUEUE_MB", 256, 1, 2**20) * 2**20,
        metrics_port=env.whole("AGGREG_METRICS_PORT", 0, 0, 65535),
        metrics_address=env.text("METRICS_ADDRESS", "127.0.0.1"),
        store=store_settings(env),
    )
    if env.faults:
        raise SettingsError(env.faults)
    return settings
