"""Settings of the ballooning daemon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.environment import Environment, SettingsError
from ..common.targets import node_name
from ..store.settings import StoreSettings, status_path, store_settings
from .rules import Rules


@dataclass(frozen=True, slots=True)
class BallooningSettings:
    """What ``vmballooning.py`` does.

    Attributes
    ----------
    hosts : mapping of node to libvirt URI
    rules : Rules
    sleep_s, check_s : float
        Between two plans; between two looks at a guest that is squeezed.
    timeout_s : float
        For each call to a host.
    journal_path : Path
    metrics_port : int
        Of our own metrics; 0 for none.
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


def parse_hosts(value: Any) -> dict[str, str]:
    """``LIBVIRT_NODES``, decoded: node to libvirt URI.

    Raises
    ------
    ValueError
        Naming the node.
    """
    if not isinstance(value, dict) or not all(isinstance(uri, str) and uri.isprintable() for uri in value.values()):
        raise ValueError('is not an object such as {"http://worker1:9100/metrics": "qemu+ssh://root@worker1/system"}')
    hosts: dict[str, str] = {}
    for node, uri in value.items():
        name = node_name(node)
        if ":" not in uri:
            raise ValueError(f"{name}: is not given a libvirt URI such as qemu+ssh://root@worker1/system")
        if name in hosts:
            raise ValueError(f"{name}: is there already")
        if uri in hosts.values():
            raise ValueError(f"{name}: has the URI of another node")
        hosts[name] = uri
    return hosts


def parse_patterns(value: Any) -> tuple[str, ...]:
    """``BALLOONING_EXCLUDE``, decoded.

    Raises
    ------
    ValueError
        When it is no list of texts.
    """
    if not isinstance(value, list) or not all(isinstance(pattern, str) and pattern for pattern in value):
        raise ValueError('is not a list of patterns such as ["db-*"]')
    return tuple(value)


def _scope_s(env: Environment) -> float:
    minutes = env.number("BALLOONING_SCOPE_MN", 0.0, 0, 10_000)
    return env.number("BALLOONING_SCOPE_S", 60 * minutes or 3600.0, 1, 10**6)


def ballooning_settings(env: Environment) -> BallooningSettings:
    """The settings of ``vmballooning.py``.

    Raises
    ------
    SettingsError
        With all faults.
    """
    hosts: dict[str, str] = env.json("LIBVIRT_NODES", parse_hosts, {})
    if not hosts and not any(fault.startswith("LIBVIRT_NODES") for fault in env.faults):
        example = '{"http://worker1:9100/metrics": "qemu+ssh://root@worker1/system"}'
        env.fault("LIBVIRT_NODES", f"names no node{env.without}; e.g. {example}")
    rules = Rules(
        scope_s=_scope_s(env),
        grace_s=env.number("BALLOONING_GRACE_PERIOD_S", 3600.0, 0, 10**7),
        threshold_gain_mb=env.number("BALLOONING_THRESHOLD_GAIN_MB", 512.0, 0, 10**9),
        min_config_mb=env.number("BALLOONING_MIN_CONFIG_MB", 1024.0, 1, 10**9),
        headroom_share=env.number("BALLOONING_HEADROOM_PCT", 20.0, 0, 1000) / 100,
        headroom_mb=env.number("BALLOONING_HEADROOM_MB", 64.0, 16, 10**9),
        step_share=env.number("BALLOONING_STEP_PCT", 5.0, 0, 100) / 100,
        step_mb=env.number("BALLOONING_STEP_MB", 128.0, 1, 10**9),
        session_s=env.number("BALLOONING_SESSION_S", 120.0, 1, 86400),
        stuck_s=env.number("BALLOONING_STUCK_S", 10.0, 1, 3600),
        stats_age_s=env.number("BALLOONING_STATS_AGE_S", 30.0, 2, 3600),
        sessions_per_host=env.whole("BALLOONING_SESSIONS_PER_HOST", 4, 1, 1000),
        excluded=env.json("BALLOONING_EXCLUDE", parse_patterns, ()),
    )
    settings = BallooningSettings(
        hosts=hosts,
        rules=rules,
        sleep_s=env.number("BALLOONING_SCOPE_SLEEP_S", 60.0, 0.1, 86400),
        check_s=env.number("BALLOONING_CHECK_S", 2.0, 0.1, 60),
        timeout_s=env.number("BALLOONING_TIMEOUT_S", 5.0, 0.5, 120),
        journal_path=Path(env.text("BALLOONING_JOURNAL_PATH", str(status_path(env).parent / "ballooning.json"))),
        metrics_port=env.whole("BALLOONING_METRICS_PORT", 0, 0, 65535),
        metrics_address=env.text("METRICS_ADDRESS", "127.0.0.1"),
        store=store_settings(env),
    )
    if env.faults:
        raise SettingsError(env.faults)
    return settings
