"""Settings of the aggregator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..common.environment import Environment
from ..common.settings import Section
from ..common.targets import FETCH_DELAY, METRICS_ADDRESS, STUB_LIST, Stub
from ..store.settings import StoreSettings, store_settings
from .limits import PageLimits

#: More than ten scrapes a second load a node for no gain.
_SHORTEST_DELAY_S = 0.1

_LIMITS = PageLimits()

_SECTION = Section("Aggregator (vmaggreg.py)")
TIMEOUT_S = _SECTION.number(
    "AGGREG_TIMEOUT_S", 4.0, 0.05, 600, "Seconds that a scrape may take, from name resolution to the last byte."
)
MAX_PAGE_MB = _SECTION.whole("AGGREG_MAX_PAGE_MB", 8, 1, 1024, "Largest page that is read, MB.")
MAX_VMS = _SECTION.whole(
    "AGGREG_MAX_VMS",
    _LIMITS.vms,
    1,
    100_000,
    "Most VMs of a node. A page with more is refused, and a page that brings more than twice as many names within an "
    "hour.",
)
MAX_SERIES = _SECTION.whole(
    "AGGREG_MAX_SERIES",
    _LIMITS.series,
    100,
    10_000_000,
    "Most series of a page that are used. A page with more is refused.",
)
QUEUE_MB = _SECTION.whole(
    "AGGREG_QUEUE_MB",
    256,
    1,
    2**20,
    "Samples that wait in RAM while the store is unavailable, MB. What has waited for half a minute, or fills three "
    "quarters of this, is moved to AGGREG_SPOOL_PATH. Above it the oldest are dropped and counted.",
)
SPOOL_MB = _SECTION.whole(
    "AGGREG_SPOOL_MB",
    1024,
    0,
    2**20,
    "Samples that wait on disk while the store is unavailable, MB. Above this the oldest are dropped and counted. 0 "
    "disables it: then what waits is lost when the aggregator ends.",
)
SPOOL_PATH = _SECTION.text(
    "AGGREG_SPOOL_PATH",
    "",
    "Folder of the samples that wait on disk. The default is the path of the embedded store with .spool appended.",
    shown="/var/lib/scroogevm/store.sqlite.spool",
)
METRICS_PORT = _SECTION.whole(
    "AGGREG_METRICS_PORT", 0, 0, 65535, "Port of the aggregator's own Prometheus metrics. 0 disables them."
)


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """Folder of the samples that wait on disk, and its largest size."""

    path: Path
    most_bytes: int


@dataclass(frozen=True, slots=True)
class AggregatorSettings:
    """Settings of ``vmaggreg.py``.

    Attributes
    ----------
    stubs : tuple of Stub
        The targets.
    fetch_delay_s : float
        Between two scrapes; 0 takes the delay that each probe reports.
    timeout_s : float
        Of a scrape as a whole.
    max_page_bytes, queue_bytes : int
        Largest page that is read; limit of what waits for the store in RAM.
    page_limits : PageLimits
    spool : SpoolSettings or None
    metrics_port : int
        0 for none.
    metrics_address : str
    store : StoreSettings
    """

    stubs: tuple[Stub, ...]
    fetch_delay_s: float
    timeout_s: float
    max_page_bytes: int
    queue_bytes: int
    page_limits: PageLimits
    metrics_port: int
    metrics_address: str
    store: StoreSettings
    spool: SpoolSettings | None = None


def aggregator_settings(env: Environment) -> AggregatorSettings:
    """Read the settings of ``vmaggreg.py``.

    Raises
    ------
    SettingsError
        With all faults.
    """
    stubs: tuple[Stub, ...] = env.read(STUB_LIST)
    if not stubs and not env.is_faulty(STUB_LIST):
        env.fault(STUB_LIST, f"names no worker node{env.hint}; e.g. {STUB_LIST.example}")
    fetch_delay_s = env.read(FETCH_DELAY)
    if 0 < fetch_delay_s < _SHORTEST_DELAY_S:
        env.fault(FETCH_DELAY, f"is neither 0 nor at least {_SHORTEST_DELAY_S}")
    store = store_settings(env, written=True)
    settings = AggregatorSettings(
        stubs=stubs,
        fetch_delay_s=fetch_delay_s,
        timeout_s=env.read(TIMEOUT_S),
        max_page_bytes=env.read(MAX_PAGE_MB) * 2**20,
        queue_bytes=env.read(QUEUE_MB) * 2**20,
        page_limits=PageLimits(env.read(MAX_VMS), env.read(MAX_SERIES)),
        metrics_port=env.read(METRICS_PORT),
        metrics_address=env.read(METRICS_ADDRESS),
        store=store,
        spool=_spool(env, store),
    )
    env.check()
    return settings


def _spool(env: Environment, store: StoreSettings) -> SpoolSettings | None:
    path = Path(env.read(SPOOL_PATH, f"{store.path}.spool"))
    if path.exists() and not path.is_dir():
        env.fault(SPOOL_PATH, f"{path} is a file, not a folder")
    most_bytes = env.read(SPOOL_MB) * 2**20
    return SpoolSettings(path, most_bytes) if most_bytes else None
