"""What each daemon is set to: every fault is found before anything starts, and all are told together."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.environment import Environment, SettingsError
from ..common.targets import Stub, node_name, parse_stubs
from ..publishers.settings import (
    PlacementSettings,
    StatusFileSettings,
    placement_settings,
    status_file_mode,
    status_file_owner,
)
from ..store.settings import StoreSettings, status_path, store_settings
from .slicing import Calendar

LOG = logging.getLogger("scroogevm")

#: Of each node; more would keep the estimator from its work for hours.
_MOST_SLICES_AT_START = 100_000


@dataclass(frozen=True, slots=True)
class EstimatorSettings:
    """What ``scroogevm.py`` does when it is not replaying.

    Attributes
    ----------
    nodes : tuple of str
    calendar : Calendar
        Slices and scopes.
    historical : int
        h.
    previous_scopes : int
        How many scopes before the current one are read where nothing is remembered.
    settle_s : float
        From the end of a slice until it is read.
    status : StatusFileSettings
    checkpoint_path : Path
        Where the models' memory is kept.
    dump_slices : int
        How many slices a dump holds at most.
    metrics_port : int
        Of our own metrics; 0 for none.
    metrics_address : str
    store : StoreSettings
    placement : PlacementSettings or None
        OpenStack's, if it is to be kept up to date.
    """

    nodes: tuple[str, ...]
    calendar: Calendar
    historical: int
    previous_scopes: int
    settle_s: float
    status: StatusFileSettings
    checkpoint_path: Path
    dump_slices: int
    metrics_port: int
    metrics_address: str
    store: StoreSettings
    placement: PlacementSettings | None = None


def parse_nodes(value: Any) -> tuple[str, ...]:
    """A list of node URLs, decoded.

    Raises
    ------
    ValueError
        When it is none.
    """
    if not isinstance(value, list) or not value or not all(isinstance(node, str) and node for node in value):
        raise ValueError('is not a list of URLs such as ["http://node:9100/metrics"]')
    nodes = tuple(node_name(node) for node in value)
    for i, node in enumerate(nodes):
        if not node.isprintable():
            raise ValueError(f"entry {i + 1} holds characters that can't be printed")
        if node in nodes[:i]:
            raise ValueError(f"entry {i + 1}: node {node} is there already")
    return nodes


def _calendar(env: Environment) -> Calendar:
    faults = len(env.faults)
    scope_s = env.whole("SCHED_SCOPE_S", 86400, 1, 10**9)
    slice_s = env.whole("SCHED_SCOPE_SLICE_S", 1800, 1, 10**9)
    if scope_s % slice_s and len(env.faults) == faults:
        env.fault("SCHED_SCOPE_S", f"{scope_s} is not a multiple of SCHED_SCOPE_SLICE_S, {slice_s}")
    return Calendar(slice_s, max(scope_s // slice_s, 1))


def _refuse_one_file_for_two(env: Environment, settings: EstimatorSettings) -> None:
    """A status file written over the store would be the end of what is stored."""
    files = {"STATE_ENDPOINT": settings.status.path, "SCHED_MEMORY_PATH": settings.checkpoint_path}
    if settings.store.influx is None:
        files["STORE_PATH"] = settings.store.path
    owners: dict[str, str] = {}
    for key, path in files.items():
        if (owner := owners.setdefault(os.path.realpath(path.expanduser()), key)) != key:
            env.fault(key, f"is the file of {owner}")


def estimator_settings(env: Environment, nodes: tuple[str, ...] = ()) -> EstimatorSettings:
    """The settings of ``scroogevm.py``.

    Parameters
    ----------
    env : Environment
    nodes : tuple of str
        From the command line, instead of ``SCHED_NODES``.

    Raises
    ------
    SettingsError
        With all faults.
    """
    if not nodes:
        # The same machines, unless it is said otherwise.
        stubs: tuple[Stub, ...] = env.json("AGGREG_STUB_LIST", parse_stubs, ())
        nodes = env.json("SCHED_NODES", parse_nodes, tuple(stub.node for stub in stubs))
    if not nodes and not any(fault.startswith(("SCHED_NODES", "AGGREG_STUB_LIST")) for fault in env.faults):
        env.fault("SCHED_NODES", f'names no node{env.without}; e.g. ["http://worker1:9100/metrics"]')
    calendar = _calendar(env)
    path, mode, (uid, gid) = status_path(env), status_file_mode(env), status_file_owner(env)
    settings = EstimatorSettings(
        nodes=nodes,
        calendar=calendar,
        historical=env.whole("SCHED_SCOPE_HISTORICAL", 3, 0, 10_000),
        previous_scopes=env.whole("SCHED_SCOPE_INIT_FETCH_PREVIOUS", 4, 0, 10_000),
        settle_s=min(env.number("SCHED_SETTLE_S", 10.0, 0, 3600), calendar.slice_s / 4),
        status=StatusFileSettings(path, mode, uid, gid),
        checkpoint_path=Path(env.text("SCHED_MEMORY_PATH", str(path.parent / "estimator.sqlite"))),
        dump_slices=env.whole("SCHED_DUMP_SLICES", 500, 1, 10**6),
        metrics_port=env.whole("SCHED_METRICS_PORT", 0, 0, 65535),
        metrics_address=env.text("METRICS_ADDRESS", "127.0.0.1"),
        store=store_settings(env),
        placement=placement_settings(env),
    )
    _refuse_one_file_for_two(env, settings)
    delay_s = env.number("AGGREG_FETCH_DELAY", 0.0, 0, 86400)
    if settings.previous_scopes * calendar.positions > _MOST_SLICES_AT_START:
        env.fault("SCHED_SCOPE_INIT_FETCH_PREVIOUS", f"asks for more than {_MOST_SLICES_AT_START} slices at the start")
    if env.faults:
        raise SettingsError(env.faults)
    if 4 * delay_s > calendar.slice_s:
        LOG.warning(
            "SCHED_SCOPE_SLICE_S: a slice of %g s holds fewer than four scrapes, one every %g s",
            *(calendar.slice_s, delay_s),
        )
    return settings
