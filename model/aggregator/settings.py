"""Settings of the aggregator."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.environment import Environment, SettingsError
from ..common.targets import Stub, parse_stubs
from ..store.settings import StoreSettings, store_settings

#: Who asks a node more often than ten times a second harms it.
_SHORTEST_DELAY_S = 0.1


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


def aggregator_settings(env: Environment) -> AggregatorSettings:
    """The settings of ``vmaggreg.py``.

    Raises
    ------
    SettingsError
        With all faults.
    """
    stubs: tuple[Stub, ...] = env.json("AGGREG_STUB_LIST", parse_stubs, ())
    if not stubs and not any(fault.startswith("AGGREG_STUB_LIST") for fault in env.faults):
        example = '[["http://worker1:9100/metrics", "vmprobe"]]'
        env.fault("AGGREG_STUB_LIST", f"names no worker node{env.without}; e.g. {example}")
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
