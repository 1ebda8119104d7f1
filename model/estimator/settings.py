"""Settings of the estimator."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cli.model_options import ModelOptions, chosen_strategies, risk_fault, strategies_of
from ..common.environment import Environment
from ..common.errors import UsageError
from ..common.settings import InvalidValue, Section, Setting
from ..common.targets import FETCH_DELAY, METRICS_ADDRESS, STUB_LIST, Stub, is_url, node_name
from ..contention import ContentionSettings
from ..publishers.settings import (
    PLACEMENT_STATE_PATH,
    PlacementSettings,
    StatusFileSettings,
    placement_settings,
    status_file_settings,
)
from ..slices import RESOURCES
from ..stability import STABILITY_DETECTORS
from ..store.settings import STATE_ENDPOINT, STORE_PATH, StoreSettings, store_settings
from .contention_settings import CHECK_S, contention_settings
from .shards import Shard, parse_shard
from .slicing import Calendar, SliceRules

LOG = logging.getLogger("scroogevm")

DEFAULT_STRATEGY = "clt"
#: Of each node; more would keep the estimator busy for hours.
_MOST_SLICES_AT_START = 100_000


def parse_nodes(value: Any) -> tuple[str, ...]:
    """Check a decoded list of node URLs.

    Raises
    ------
    ValueError
    """
    if not isinstance(value, list) or not value or not all(isinstance(node, str) and node for node in value):
        raise ValueError('is not a list of URLs such as ["http://node:9100/metrics"]')
    nodes = tuple(node_name(node) for node in value)
    for i, node in enumerate(nodes):
        if not node.isprintable():
            raise ValueError(f"entry {i + 1} contains characters that cannot be printed")
        if node in nodes[:i]:
            raise ValueError(f"entry {i + 1}: node {node} is listed twice")
    return nodes


def nodes_of_option(text: str | None) -> tuple[str, ...]:
    """The nodes that ``--url`` names: one URL, or a JSON list of them; none when it is not given.

    Raises
    ------
    UsageError
    """
    if text is None:
        return ()
    try:
        return parse_nodes([text] if is_url(text) else json.loads(text))
    except json.JSONDecodeError:
        raise UsageError("--url: is neither an http(s) URL nor JSON") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--url: {error}") from None


def _strategy(text: str) -> str:
    try:
        chosen_strategies(text)
    except ValueError as error:
        raise InvalidValue(str(error)) from None
    return text


_SECTION = Section("Estimator (scroogevm.py)")
NODES: Setting[tuple[str, ...]] = _SECTION.json(
    "SCHED_NODES",
    (),
    parse_nodes,
    "The nodes whose free resources are computed, a JSON list of URLs. The default is the nodes of AGGREG_STUB_LIST. "
    "--url overrides it.",
)
SHARD: Setting[Shard] = _SECTION.value(
    "SCHED_SHARD",
    Shard(),
    parse_shard,
    "The part of the nodes that this master computes, such as 2/3: the second of three masters with the same nodes in "
    "their settings. Which part a node is in depends on its name alone.",
    shown="1/1",
)
SCOPE_S = _SECTION.whole(
    "SCHED_SCOPE_S", 86400, 1, 10**9, 'Length of a scope ("virtual day"), seconds. A multiple of SCHED_SCOPE_SLICE_S.'
)
SLICE_S = _SECTION.whole("SCHED_SCOPE_SLICE_S", 1800, 1, 10**9, 'Length of a slice ("virtual hour"), seconds.')
HISTORICAL = _SECTION.whole(
    "SCHED_SCOPE_HISTORICAL",
    3,
    0,
    10_000,
    "h, the number of earlier slices at the same position of the scope that a window holds beside the current slice.",
)
PREVIOUS_SCOPES = _SECTION.whole(
    "SCHED_SCOPE_INIT_FETCH_PREVIOUS",
    4,
    0,
    10_000,
    "Number of scopes before the current one that are read from the store when there is no checkpoint.",
)
SETTLE_S = _SECTION.number(
    "SCHED_SETTLE_S",
    10.0,
    0,
    3600,
    "Seconds from the end of a slice until it is read, so that late samples arrive; at most a quarter of the slice.",
)
STRATEGY = _SECTION.text(
    "SCHED_STRATEGY",
    DEFAULT_STRATEGY,
    "Strategies with commas between them. All are computed, the first is published. --strategy overrides it.",
    parse=_strategy,
)
PERCENTILE_CPU = _SECTION.number(
    "SCHED_PERCENTILE_CPU", 90.0, 0, 100, "Percentile of the strategies percentile and greedy for CPU (--cpu)."
)
PERCENTILE_MEM = _SECTION.number(
    "SCHED_PERCENTILE_MEM", 90.0, 0, 100, "Percentile of the strategies percentile and greedy for memory (--mem)."
)
AGGREGATION = _SECTION.whole(
    "SCHED_AGGREGATION",
    1,
    1,
    10**6,
    "Number of successive samples that are averaged before the figures of a slice (--aggreg).",
)
RISK = _SECTION.number(
    "SCHED_RISK", 0.01, 0, 1, "Target risk of clt and conformal: the share of slices that may be violated (--risk)."
)


def _risk(text: str) -> float | None:
    return RISK.parse(text)


RISK_CPU: Setting[float | None] = _SECTION.value(
    "SCHED_RISK_CPU",
    None,
    _risk,
    "Target risk for CPU alone (--risk-cpu). The default is SCHED_RISK.",
    limits=RISK.limits,
)
RISK_MEM: Setting[float | None] = _SECTION.value(
    "SCHED_RISK_MEM",
    0.001,
    _risk,
    "Target risk for memory (--risk-mem): a VM that lacks CPU waits, one that lacks memory is killed.",
    limits=RISK.limits,
    shown="0.001",
)
GUARDS = _SECTION.whole(
    "SCHED_GUARDS",
    1,
    0,
    1,
    "1 lets guards lower what is published, so that a scheduler may fill it; 0 publishes the bare figure of the "
    "strategy (--guards, --no-guards).",
)
STABILITY = _SECTION.choice(
    "SCHED_STABILITY",
    "mean",
    tuple(STABILITY_DETECTORS),
    "Detector of stable slices for greedy and scroogevm (--stability).",
)
CHECKPOINT_PATH = _SECTION.text(
    "SCHED_CHECKPOINT_PATH",
    "",
    "File of the models' states, from which a restart continues. The default is beside STATE_ENDPOINT.",
    shown="/var/lib/scroogevm/estimator.sqlite",
    aliases=("SCHED_MEMORY_PATH",),
)
MIN_SAMPLES = _SECTION.whole(
    "SCHED_MIN_SAMPLES",
    4,
    1,
    10**4,
    "A slice with fewer samples has no figures: they do not suffice for a percentile. Its node is stale.",
)
VM_HOLD_S = _SECTION.number(
    "SCHED_VM_HOLD_S",
    900.0,
    0,
    10**6,
    "For how long the last known VMs of a node count after its libvirt exporter has failed, in seconds. Afterwards the "
    "node is stale.",
)
DUMP_SLICES = _SECTION.whole("SCHED_DUMP_SLICES", 500, 1, 10**6, "Number of slices that a dump of --debug=1 holds.")


def _master(text: str) -> str:
    if text.endswith("\\"):
        raise InvalidValue("ends with a backslash, which a tag of InfluxDB cannot")
    return text


MASTER = _SECTION.text(
    "SCHED_MASTER",
    "",
    "Name of this master, under which it writes to the store what its nodes have learnt, for the other masters of the "
    "store. The default is the host name.",
    parse=_master,
)
METRICS_PORT = _SECTION.whole(
    "SCHED_METRICS_PORT", 0, 0, 65535, "Port of the status page (/) and of the metrics (/metrics). 0 disables them."
)

#: The setting of each model option.
_MODEL: Mapping[str, Setting[Any]] = {
    "strategy": STRATEGY,
    "cpu": PERCENTILE_CPU,
    "mem": PERCENTILE_MEM,
    "aggreg": AGGREGATION,
    "risk": RISK,
    "risk_cpu": RISK_CPU,
    "risk_mem": RISK_MEM,
    "stability": STABILITY,
    "guards": GUARDS,
}


@dataclass(frozen=True, slots=True)
class EstimatorSettings:
    """Settings of ``scroogevm.py`` when it does not replay.

    Attributes
    ----------
    nodes : tuple of str
        Those of the part that this master computes.
    calendar : Calendar
        Slices and scopes.
    historical : int
        h.
    previous_scopes : int
        How many scopes before the current one are read where there is no checkpoint.
    settle_s : float
        From the end of a slice until it is read.
    status : StatusFileSettings
    checkpoint_path : Path
    dump_slices : int
        How many slices a dump holds at most.
    rules : SliceRules
        What a slice needs to have figures.
    metrics_port : int
        0 for none.
    metrics_address : str
    store : StoreSettings
    placement : PlacementSettings or None
    model : ModelOptions
        Strategies and their parameters: the options of the command line over the settings.
    master : str
        Name of this master; without it, nothing is exchanged with other masters.
    contention : ContentionSettings
    fleet : tuple of str
        The nodes of all parts.
    contention_check_s : float
        Seconds between two looks for contention within a slice; 0 for none.
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
    rules: SliceRules = field(default_factory=SliceRules)
    model: ModelOptions = field(default_factory=ModelOptions)
    master: str = ""
    contention: ContentionSettings = field(default_factory=ContentionSettings)
    contention_check_s: float = 30.0
    fleet: tuple[str, ...] = ()

    @property
    def strategies(self) -> tuple[str, ...]:
        """The strategies that are computed; the first is published."""
        return strategies_of(self.model, DEFAULT_STRATEGY)


def estimator_settings(
    env: Environment, nodes: tuple[str, ...] = (), given: Mapping[str, Any] | None = None
) -> EstimatorSettings:
    """Read the settings of ``scroogevm.py``.

    Parameters
    ----------
    env : Environment
    nodes : tuple of str
        From the command line, instead of ``SCHED_NODES``.
    given : mapping, optional
        Model options of the command line by name, which override the settings.

    Raises
    ------
    SettingsError
        With all faults.
    UsageError
        When an option of the command line is wrong.
    """
    calendar = _calendar(env)
    status = status_file_settings(env)
    fleet, shard = nodes or _nodes(env), env.read(SHARD)
    settings = EstimatorSettings(
        nodes=shard.select(fleet),
        fleet=fleet,
        calendar=calendar,
        historical=env.read(HISTORICAL),
        previous_scopes=env.read(PREVIOUS_SCOPES),
        settle_s=min(env.read(SETTLE_S), calendar.slice_s / 4),
        status=status,
        checkpoint_path=Path(env.read(CHECKPOINT_PATH, str(status.path.parent / "estimator.sqlite"))),
        dump_slices=env.read(DUMP_SLICES),
        metrics_port=env.read(METRICS_PORT),
        metrics_address=env.read(METRICS_ADDRESS),
        store=store_settings(env),
        placement=placement_settings(env, calendar.slice_s),
        rules=SliceRules(env.read(MIN_SAMPLES), env.read(VM_HOLD_S)),
        model=_model(env, given or {}),
        master=env.read(MASTER, socket.gethostname()),
        contention=contention_settings(env),
        contention_check_s=env.read(CHECK_S),
    )
    _check_files(env, settings)
    if fleet and not settings.nodes:
        env.fault(SHARD, f"none of the {len(fleet)} nodes is in part {shard}")
    if settings.previous_scopes * calendar.positions > _MOST_SLICES_AT_START:
        env.fault(PREVIOUS_SCOPES, f"asks for more than {_MOST_SLICES_AT_START} slices at the start")
    delay_s = env.read(FETCH_DELAY)
    env.check()
    if 4 * delay_s > calendar.slice_s:
        LOG.warning(
            "SCHED_SCOPE_SLICE_S: a slice of %g s holds fewer than four scrapes, one every %g s",
            *(calendar.slice_s, delay_s),
        )
    return settings


def _nodes(env: Environment) -> tuple[str, ...]:
    stubs: tuple[Stub, ...] = env.read(STUB_LIST)
    nodes = env.read(NODES, tuple(stub.node for stub in stubs))
    if not nodes and not env.is_faulty(NODES, STUB_LIST):
        env.fault(NODES, f'names no node{env.hint}; e.g. ["http://worker1:9100/metrics"]')
    return nodes


def _calendar(env: Environment) -> Calendar:
    scope_s, slice_s = env.read(SCOPE_S), env.read(SLICE_S)
    if scope_s % slice_s and not env.is_faulty(SCOPE_S, SLICE_S):
        env.fault(SCOPE_S, f"{scope_s} is not a multiple of SCHED_SCOPE_SLICE_S, {slice_s}")
    return Calendar(slice_s, max(scope_s // slice_s, 1))


def _model(env: Environment, given: Mapping[str, Any]) -> ModelOptions:
    """The options of the command line over the settings, with the faults of either."""
    values = {name: given[name] if name in given else env.read(setting) for name, setting in _MODEL.items()}
    options = ModelOptions(**{**values, "guards": bool(values["guards"])})
    strategies = strategies_of(options, DEFAULT_STRATEGY)
    for resource in RESOURCES:
        source = options.risk_source(resource.name)
        if fault := risk_fault(options.risk_of(resource.name), strategies):
            if source in given:
                raise UsageError(f"--{source.replace('_', '-')}: {fault}")
            env.fault(_MODEL[source], fault)
    return options


def _check_files(env: Environment, settings: EstimatorSettings) -> None:
    """Each file has its own path: a status file written over the store would destroy it."""
    files: dict[Setting[str], Path] = {STATE_ENDPOINT: settings.status.path, CHECKPOINT_PATH: settings.checkpoint_path}
    if settings.checkpoint_path.is_dir():
        env.fault(CHECKPOINT_PATH, f"{settings.checkpoint_path} is a folder, not a file")
    if settings.store.influx is None:
        files[STORE_PATH] = settings.store.path
    if settings.placement is not None and settings.placement.state_path is not None:
        files[PLACEMENT_STATE_PATH] = settings.placement.state_path
    owners: dict[str, Setting[str]] = {}
    for setting, path in files.items():
        owner = owners.setdefault(os.path.realpath(path.expanduser()), setting)
        if owner is not setting:
            env.fault(setting, f"is the file of {owner.key}")
