"""``scroogevm.py --scan``: the history of a whole fleet, and what each node may offer."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from ..cli.files import json_files
from ..cli.model_options import ModelOptions, chosen_detectors, model_settings, strategies_of
from ..cli.progress import ProgressBar
from ..cli.tables import print_json
from ..common.atomic_files import staged
from ..common.environment import Environment, SettingsError, environment
from ..common.errors import PassingFault, UsageError
from ..common.logs import set_up_logging
from ..common.text import printable
from ..estimator.found_nodes import FoundNodes
from ..estimator.settings import EstimatorSettings, estimator_settings
from ..estimator.slicing import Calendar, SliceRules
from ..parallel.workers import finish
from ..simulation.draw import SampledVm
from ..simulation.summary import Comparison
from ..simulation.tables import print_comparisons
from ..slices import CPU, RESOURCES
from ..store.base import StoreUnavailable
from ..store.factory import store_name
from ..store.prometheus import PrometheusStore
from .closed_loop import MOST_VMS, simulate_fleet
from .finding import NodeFinding
from .options import ScanOptions
from .tables import as_csv, as_json, print_explanation, print_findings
from .tasks import ScanPlan, ScanTask, scan_work
from .totals import totals_of

#: Nodes on a Prometheus server that a process reads together.
_MOST_AT_ONCE = 8

#: The first strategy is the one whose figures are shown.
DEFAULT_STRATEGIES = "clt,conformal"


def run_scan(options: ScanOptions) -> int:
    """Scan all nodes and show the result; the exit code is 1 when a node has no figures.

    Raises
    ------
    UsageError
        When nothing can be scanned, or the result not be written.
    PassingFault
        When a Prometheus server cannot be asked now.
    """
    set_up_logging(options.debug > 0)
    plan, tasks, settings = _plan_traces(options) if options.traces is not None else _plan_store(options)
    ratios = {} if settings is None or settings.placement is None else _placement_ratios(settings)
    if options.simulate:
        plan = replace(plan, vms_per_node=max(1, MOST_VMS // sum(len(task.nodes) for task in tasks)))
    work = scan_work(plan)
    findings: list[NodeFinding] = []
    sampled: list[SampledVm] = []
    with ProgressBar().counted("scanning", sum(len(task.nodes) for task in tasks)) as advance:
        for _, found in finish(work, tasks, options.jobs, options.dask):
            for one in found:
                sampled += one.sampled
                findings.append(with_ratios(replace(one, sampled=()), ratios.get(one.node, {})))
                advance()
    findings.sort(key=NodeFinding.sort_key)
    comparison = None
    if options.simulate:
        comparison, errors = simulate_fleet(sampled, findings, plan.model, options.jobs, options.dask)
        for line in errors:
            print(f"scroogevm.py: --simulate: {line}", file=sys.stderr)
    _show(options, findings, comparison, plan.model.cpu.risk)
    return 1 if any(one.error for one in findings) else 0


def _placement_ratios(settings: EstimatorSettings) -> Mapping[str, Mapping[str, float]]:
    """The ratios that OpenStack Placement has, by node and resource name; a fault is logged, and leaves them out."""
    from ..publishers.placement.check import present_ratios

    assert settings.placement is not None  # noqa: S101  # the caller has looked
    ratios, problems = present_ratios(settings.placement, settings.fleet)
    for problem in problems:
        print(f"scroogevm.py: placement: {problem}", file=sys.stderr)
    return ratios


def with_ratios(finding: NodeFinding, ratios: Mapping[str, float]) -> NodeFinding:
    """The finding with the present ratios of Placement, by resource name, in place of what is booked."""
    for resource in RESOURCES:
        if (one := finding.of(resource)) is not None and resource.name in ratios:
            changed = replace(one, ratio_now=ratios[resource.name])
            finding = replace(finding, cpu=changed) if resource is CPU else replace(finding, mem=changed)
    return finding


def _show(options: ScanOptions, findings: Sequence[NodeFinding], comparison: Comparison | None, risk: float) -> None:
    totals = totals_of(findings)
    # Not-a-number becomes null.
    encoded = b""
    if options.output or options.json:
        answer = as_json(findings, totals, risk)
        if comparison is not None:
            answer["closed_loop"] = comparison.as_json()
        encoded = msgspec.json.encode(answer)
    if options.output is not None:
        from .report import render_report

        try:
            options.output.mkdir(parents=True, exist_ok=True)
            with staged() as files:
                files.write(options.output / "scan.html", render_report(findings, totals, risk, comparison).encode())
                files.write(options.output / "scan.json", encoded)
                files.write(options.output / "scan.csv", as_csv(findings).encode())
        except OSError as error:
            raise UsageError(f"--output: {error.filename or options.output}: {error.strerror}") from None
    if options.node is not None:
        (finding,) = findings
        print_explanation(finding)
    elif options.json:
        print_json(msgspec.json.decode(encoded))
    elif options.csv:
        sys.stdout.write(as_csv(findings))
    else:
        print_findings(findings, totals, risk)
        if comparison is not None:
            print_comparisons([comparison])


def _model(options: ScanOptions) -> ModelOptions:
    """The model options of a scan without settings: those of the estimator."""
    return replace(ModelOptions(risk=0.01, risk_mem=0.001, guards=True), **options.model)


def _plan_traces(options: ScanOptions) -> tuple[ScanPlan, list[ScanTask], None]:
    model = _model(options)
    chosen_detectors(model)
    assert options.traces is not None  # noqa: S101  # the caller has looked
    paths = _trace_paths(Path(options.traces))
    tasks = [ScanTask((path.stem,), str(path.absolute())) for path in paths]
    tasks = _only(tasks, options)
    settings = model_settings(model, strategies_of(model, DEFAULT_STRATEGIES), 0)
    return ScanPlan(settings, model.stability, None, Calendar(1.0, 1), SliceRules(), 0, 0), tasks, None


def _trace_paths(path: Path) -> list[Path]:
    try:
        paths = json_files(path)
    except OSError as error:
        raise UsageError(f"--load: {printable(str(path))}: {error.strerror}") from None
    if not paths:
        raise UsageError(f"--load: {printable(str(path))}: no *.json in it")
    return paths


def _only(tasks: Sequence[ScanTask], options: ScanOptions) -> list[ScanTask]:
    """The tasks of the node that is to be explained, or all."""
    if options.node is None:
        return list(tasks)
    chosen = [ScanTask((options.node,), task.trace) for task in tasks if options.node in task.nodes]
    if not chosen:
        raise UsageError(f"--node: {options.node}: no such node")
    return chosen[:1]


def _plan_store(options: ScanOptions) -> tuple[ScanPlan, list[ScanTask], EstimatorSettings]:
    try:
        settings = estimator_settings(_environment(options), options.nodes, options.model)
    except SettingsError as error:
        raise UsageError(str(error)) from None
    calendar = settings.calendar
    until_s = time.time() if options.until_s is None else options.until_s
    since_s = until_s - options.days * 86400 if options.since_s is None else options.since_s
    first, last = calendar.last_ended(since_s) + 1, calendar.last_ended(until_s)
    if last < first:
        raise UsageError("--since: no slice has ended between it and --until")
    strategies = strategies_of(settings.model, DEFAULT_STRATEGIES)
    if "strategy" not in options.model:
        strategies = tuple(dict.fromkeys((*strategies, *DEFAULT_STRATEGIES.split(","))))
    model = model_settings(settings.model, strategies, settings.historical)
    jobs = options.jobs or os.cpu_count() or 1
    settings = _with_nodes(settings, 1 if options.dask is not None else jobs)
    plan = ScanPlan(model, settings.model.stability, settings.store, calendar, settings.rules, first, last)
    size = 1 if settings.store.prometheus is None else max(1, min(_MOST_AT_ONCE, len(settings.fleet) // (4 * jobs)))
    groups = [settings.fleet[start : start + size] for start in range(0, len(settings.fleet), size)]
    return plan, _only([ScanTask(group) for group in groups], options), settings


def _environment(options: ScanOptions) -> Environment:
    if options.prometheus is None:
        return environment()
    return environment({"PROMETHEUS_URL": options.prometheus, "INFLUXDB_URL": ""})


def _with_nodes(settings: EstimatorSettings, jobs: int) -> EstimatorSettings:
    """The settings with the nodes that are found on a Prometheus server, for some processes that read from it.

    Raises
    ------
    PassingFault
        When the server cannot be asked now, or has no nodes.
    """
    prometheus = settings.store.prometheus
    if prometheus is None:
        return settings
    with contextlib.closing(PrometheusStore(prometheus)) as store:
        settings = FoundNodes().complete(settings, store)
        try:
            pairs = store.pairs()
        except StoreUnavailable as error:
            raise PassingFault(f"{store_name(settings.store)}: {error}") from None
    access = replace(prometheus.access, queries_at_once=max(1, prometheus.access.queries_at_once // jobs))
    return replace(settings, store=replace(settings.store, prometheus=replace(prometheus, access=access, nodes=pairs)))
