"""Settings of the ballooning daemon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.environment import Environment
from ..common.settings import Section, Setting
from ..common.targets import METRICS_ADDRESS, node_name
from ..store.settings import StoreSettings, status_path, store_settings
from .rules import Rules


def parse_hosts(value: Any) -> dict[str, str]:
    """Check the decoded value of ``LIBVIRT_NODES``: node to libvirt URI.

    Raises
    ------
    ValueError
        Names the node.
    """
    if not isinstance(value, dict) or not all(isinstance(uri, str) and uri.isprintable() for uri in value.values()):
        raise ValueError('is not an object such as {"http://worker1:9100/metrics": "qemu+ssh://root@worker1/system"}')
    hosts: dict[str, str] = {}
    for node, uri in value.items():
        name = node_name(node)
        if ":" not in uri:
            raise ValueError(f"{name}: has no libvirt URI such as qemu+ssh://root@worker1/system")
        if name in hosts:
            raise ValueError(f"{name}: is listed twice")
        if uri in hosts.values():
            raise ValueError(f"{name}: has the URI of another node")
        hosts[name] = uri
    return hosts


def parse_patterns(value: Any) -> tuple[str, ...]:
    """Check the decoded value of ``BALLOONING_EXCLUDE``.

    Raises
    ------
    ValueError
        When it is not a list of strings.
    """
    if not isinstance(value, list) or not all(isinstance(pattern, str) and pattern for pattern in value):
        raise ValueError('is not a list of patterns such as ["db-*"]')
    return tuple(value)


_SECTION = Section("Ballooning (vmballooning.py)")
LIBVIRT_NODES: Setting[dict[str, str]] = _SECTION.json(
    "LIBVIRT_NODES",
    {},
    parse_hosts,
    "The libvirt URI of each node, a JSON object. Nodes have the names that the aggregator gives them.",
    example='{"http://worker1:9100/metrics": "qemu+ssh://root@worker1/system"}',
)
SCOPE_S = _SECTION.number(
    "BALLOONING_SCOPE_S",
    3600.0,
    1,
    10**6,
    "Seconds over which the usage of a VM is computed (90th percentile). BALLOONING_SCOPE_MN, in minutes, is read from "
    "old files when this is not set.",
)
SCOPE_MN = _SECTION.number(
    "BALLOONING_SCOPE_MN", 0.0, 0, 10_000, "Older form of BALLOONING_SCOPE_S, in minutes.", shown=""
)
THRESHOLD_GAIN_MB = _SECTION.number(
    "BALLOONING_THRESHOLD_GAIN_MB",
    512.0,
    0,
    10**9,
    "A VM is squeezed when its resident memory exceeds its usage by more than this, MB.",
)
GRACE_PERIOD_S = _SECTION.number(
    "BALLOONING_GRACE_PERIOD_S",
    3600.0,
    0,
    10**7,
    "Seconds between the end of a session and the next of the same VM.",
)
SCOPE_SLEEP_S = _SECTION.number("BALLOONING_SCOPE_SLEEP_S", 60.0, 0.1, 86400, "Seconds between two plans.")
MIN_CONFIG_MB = _SECTION.number("BALLOONING_MIN_CONFIG_MB", 1024.0, 1, 10**9, "No VM is squeezed below this, MB.")
HEADROOM_PCT = _SECTION.number(
    "BALLOONING_HEADROOM_PCT", 20.0, 0, 1000, "Headroom that a squeezed VM keeps above its usage, percent of the usage."
)
HEADROOM_MB = _SECTION.number("BALLOONING_HEADROOM_MB", 64.0, 16, 10**9, "Smallest headroom, MB.")
STEP_PCT = _SECTION.number(
    "BALLOONING_STEP_PCT", 5.0, 0, 100, "Memory that one step takes from a VM, percent of its memory."
)
STEP_MB = _SECTION.number("BALLOONING_STEP_MB", 128.0, 1, 10**9, "Smallest step, MB.")
CHECK_S = _SECTION.number("BALLOONING_CHECK_S", 2.0, 0.1, 60, "Seconds between two observations of a squeezed VM.")
SESSION_S = _SECTION.number("BALLOONING_SESSION_S", 120.0, 1, 86400, "Longest duration of a session, seconds.")
STUCK_S = _SECTION.number(
    "BALLOONING_STUCK_S", 10.0, 1, 3600, "Seconds without progress after which a VM gets its memory back."
)
STATS_AGE_S = _SECTION.number(
    "BALLOONING_STATS_AGE_S",
    30.0,
    2,
    3600,
    "Largest age of a guest's own statistics, seconds. A squeezed VM whose statistics are older gets its memory back.",
)
SESSIONS_PER_HOST = _SECTION.whole(
    "BALLOONING_SESSIONS_PER_HOST", 4, 1, 1000, "Largest number of simultaneous sessions on one host."
)
EXCLUDE: Setting[tuple[str, ...]] = _SECTION.json(
    "BALLOONING_EXCLUDE",
    (),
    parse_patterns,
    'Names of VMs that are never squeezed, a JSON list of patterns such as ["db-*"].',
    shown="[]",
)
TIMEOUT_S = _SECTION.number("BALLOONING_TIMEOUT_S", 5.0, 0.5, 120, "Seconds that a call to a host may take.")
JOURNAL_PATH = _SECTION.text(
    "BALLOONING_JOURNAL_PATH",
    "",
    "File in which a squeeze is recorded before it starts, so that a killed daemon restores the VM at its next start. "
    "The default is ballooning.json beside STATE_ENDPOINT.",
    shown="/var/lib/scroogevm/ballooning.json",
)
METRICS_PORT = _SECTION.whole(
    "BALLOONING_METRICS_PORT", 0, 0, 65535, "Port of the daemon's Prometheus metrics. 0 disables them."
)


@dataclass(frozen=True, slots=True)
class BallooningSettings:
    """Settings of ``vmballooning.py``.

    Attributes
    ----------
    hosts : mapping of node to libvirt URI
    rules : Rules
    sleep_s, check_s : float
        Between two plans; between two observations of a squeezed guest.
    timeout_s : float
        For each call to a host.
    journal_path : Path
    metrics_port : int
        0 for none.
    metrics_address : str
    store : StoreSettings
    """

    hosts: Mapping[str, str]
    rules: Rules
    sleep_s: float
    check_s: float
    timeout_s: float
    journal_path: Path
    metrics_port: int
    metrics_address: str
    store: StoreSettings


def ballooning_settings(env: Environment) -> BallooningSettings:
    """Read the settings of ``vmballooning.py``.

    Raises
    ------
    SettingsError
        With all faults.
    """
    hosts: dict[str, str] = env.read(LIBVIRT_NODES)
    if not hosts and not env.is_faulty(LIBVIRT_NODES):
        env.fault(LIBVIRT_NODES, f"names no node{env.hint}; e.g. {LIBVIRT_NODES.example}")
    rules = Rules(
        scope_s=env.read(SCOPE_S, 60 * env.read(SCOPE_MN) or SCOPE_S.default),
        grace_s=env.read(GRACE_PERIOD_S),
        threshold_gain_mb=env.read(THRESHOLD_GAIN_MB),
        min_config_mb=env.read(MIN_CONFIG_MB),
        headroom_share=env.read(HEADROOM_PCT) / 100,
        headroom_mb=env.read(HEADROOM_MB),
        step_share=env.read(STEP_PCT) / 100,
        step_mb=env.read(STEP_MB),
        session_s=env.read(SESSION_S),
        stuck_s=env.read(STUCK_S),
        stats_age_s=env.read(STATS_AGE_S),
        sessions_per_host=env.read(SESSIONS_PER_HOST),
        excluded=env.read(EXCLUDE),
    )
    settings = BallooningSettings(
        hosts=hosts,
        rules=rules,
        sleep_s=env.read(SCOPE_SLEEP_S),
        check_s=env.read(CHECK_S),
        timeout_s=env.read(TIMEOUT_S),
        journal_path=Path(env.read(JOURNAL_PATH, str(status_path(env).parent / "ballooning.json"))),
        metrics_port=env.read(METRICS_PORT),
        metrics_address=env.read(METRICS_ADDRESS),
        store=store_settings(env),
    )
    env.check()
    return settings
