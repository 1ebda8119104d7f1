"""The Grafana dashboard: every query runs on a real InfluxDB, and every name in it exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from influxdb_client.client.influxdb_client import InfluxDBClient
from prometheus_client import CollectorRegistry, generate_latest

from misc.fakeworkers.machines import Plan, Shapes, build_worker
from misc.fakeworkers.pages import render_vmprobe
from model.aggregator.rates import NodeRates
from model.aggregator.vmprobe import VmprobeReader
from model.publishers.placement.reconciler import PlacementCounts
from model.publishers.prometheus import EstimatorCounts, EstimatorMetrics
from model.status import Figures, NodeStatus, ResourceStatus
from model.store.influxdb import InfluxStore
from tests.conftest import ROOT, strict_json
from tests.support.servers import make_bucket, settings_of_bucket

PATH = ROOT / "misc" / "grafana-dashboard.json"
DASHBOARD: dict[str, Any] = strict_json(PATH.read_bytes())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]
FLUX = [(f"{title}-{target['refId']}", target["query"]) for title, target in TARGETS if "query" in target]
PROMQL = [target["expr"] for _, target in TARGETS if "expr" in target]

#: Fields that are stored and that the dashboard may query, by measurement.
FIELDS = {
    "node": {
        *("cpu", "mem", "cpu_time", "cpu_usage", "mem_usage", "elapsed_time", "elapsed_cpu_time"),
        *("sched_runtime", "sched_waittime", "sched_timeslices", "sched_busy", "freq", "minfreq", "maxfreq"),
        *("vm_number", "oc_cpu", "oc_mem", "oc_cpu_d", "oc_mem_d"),
    },
    "domain": {
        *("cpu", "mem", "cpu_time", "cpu_usage", "mem_usage", "mem_rss", "elapsed_cpu_time"),
        *("sched_runtime", "sched_waittime", "sched_timeslices", "sched_busy"),
    },
}
NODES = ("http://worker1:9100/metrics", "http://worker2:9100/metrics", "http://other:9100/a+b(c)")


def fields_of(query: str) -> tuple[str, set[str]]:
    """Measurement and fields of a query."""
    (measurement,) = set(re.findall(r'r\._measurement == "(\w+)"', query))
    return measurement, set(re.findall(r'r\._field == "(\w+)"', query))


def escaped(*values: str) -> str:
    """Selected values of a variable as Grafana inserts them for ``:regex``."""
    patterns = [re.sub(r"[\\^$*+?.()|\[\]{}/]", r"\\\g<0>", value) for value in values]
    return patterns[0] if len(patterns) == 1 else f"({'|'.join(patterns)})"


def filled(query: str, bucket: str, node: str = ".*", domain: str = ".*") -> str:
    """The query with all macros replaced, as InfluxDB receives it."""
    now_s = time.time()
    start, stop = (
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment_s)) for moment_s in (now_s - 3600, now_s + 60)
    )
    for macro, value in {
        "v.timeRangeStart": start,
        "v.timeRangeStop": stop,
        "v.windowPeriod": "20s",
        "${bucket}": bucket,
        "${node:regex}": node,
        "${domain:regex}": domain,
    }.items():
        query = query.replace(macro, value)
    assert "${" not in query
    assert "v." not in query
    return query


def test_dashboard_has_no_address_and_no_fixed_data_source() -> None:
    assert DASHBOARD.get("id") is None
    assert not re.search(r"https?://|localhost|127\.0\.0\.1", PATH.read_text())
    sources = [source for source in re.findall(r'"uid": "([^"]*)"', PATH.read_text()) if source != DASHBOARD["uid"]]
    assert set(sources) == {"${influx}", "${prometheus}"}
    assert {VARIABLES[name]["query"] for name in ("influx", "prometheus")} == {"influxdb", "prometheus"}


def test_panels_have_unique_ids_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    occupied = set()
    for position in (panel["gridPos"] for panel in panels):
        cells = {(position["x"] + i, position["y"] + j) for i in range(position["w"]) for j in range(position["h"])}
        assert not cells & occupied
        assert max(x for x, _ in cells) < 24
        occupied |= cells


def test_file_is_formatted_for_diffs() -> None:
    """A panel spans several lines, which are short."""
    lines = PATH.read_text().splitlines()
    assert len(lines) > 300
    assert all(len(line) < 140 for line in lines if '"query":' not in line and '"description":' not in line)


@pytest.mark.parametrize("query", [query for _, query in FLUX], ids=[name for name, _ in FLUX])
def test_every_field_is_stored(query: str) -> None:
    measurement, fields = fields_of(query)
    assert fields
    assert fields <= FIELDS[measurement]
    mapped = set(re.findall(r"\br\.([a-z]\w*)", query)) - {"url", "domain"}
    assert mapped <= fields


def test_every_metric_of_the_estimator_exists() -> None:
    figures = Figures(8.0, 4.0, 4.0, 2.0, 0.0, 6.0, 6.0, 60.0)
    resource = ResourceStatus("ok", figures, {"borg": 6.0})
    registry = CollectorRegistry()
    metrics = EstimatorMetrics(registry, EstimatorCounts(), lambda: PlacementCounts(1, 1, {"timeout": 1}, ""))
    metrics.publish([NodeStatus("n", "borg", 60.0, resource, resource)])
    samples = re.findall(r"^(scroogevm_\w+)(?:\{(.*)\})?", generate_latest(registry).decode(), flags=re.M)
    labels = {name: set(re.findall(r'(\w+)="', text)) for name, text in samples}
    for expression in PROMQL:
        (name,) = re.findall(r"scroogevm_\w+", expression)
        assert name in labels
        queried = re.findall(r"(\w+)=~?\"", expression) + re.findall(r"by \((\w+)\)", expression)
        assert set(queried) <= labels[name]


def test_promtool_accepts_every_expression(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not on PATH (Debian package prometheus)")
    rules = [
        {"record": f"r{i}", "expr": expression.replace("$node", ".*").replace("$__rate_interval", "1m")}
        for i, expression in enumerate(PROMQL)
    ]
    # JSON is YAML.
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "g", "rules": rules}]}))
    command = ["promtool", "check", "rules", str(tmp_path / "rules.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- a real InfluxDB ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class FilledBucket:
    """A bucket with ten minutes of three workers."""

    client: InfluxDBClient
    bucket: str

    def rows(self, query: str, **selected: str) -> list[dict[str, Any]]:
        tables = self.client.query_api().query(filled(query, self.bucket, **selected))
        return [record.values for table in tables for record in table.records]


@pytest.fixture(scope="module")
def dashboard(influx: tuple[str, str, str]) -> Iterator[FilledBucket]:
    url, token, org = influx
    bucket = "dashboard"
    make_bucket(url, token, org, bucket)
    store = InfluxStore(settings_of_bucket(url, token, org, bucket))
    plan, now_ms = Plan(workers=3, vms=12, stats_period_s=0), int(time.time() * 1000)
    shapes = Shapes(plan.seed)
    for i, node in enumerate(NODES):
        worker, rates, pages = build_worker(plan, shapes, i), NodeRates(node), VmprobeReader(plan.prefix)
        samples = []
        for at_ms in range(now_ms - 600_000, now_ms, 5000):
            page = render_vmprobe(worker, worker.epoch_ms(at_ms))
            sample = rates.update(pages.read(page)).sample
            if sample is not None:
                samples.append(store.encode(sample))
        assert store.write(samples) == 0
    store.close()
    with InfluxDBClient(url=url, token=token, org=org, timeout=20_000) as client:
        yield FilledBucket(client, bucket)


@pytest.mark.parametrize("query", [query for _, query in FLUX], ids=[name for name, _ in FLUX])
def test_every_query_returns_rows(query: str, dashboard: FilledBucket) -> None:
    measurement, fields = fields_of(query)
    rows = dashboard.rows(query)
    assert rows
    assert all(isinstance(row["_value"], (int, float)) for row in rows)
    assert {row["url"] for row in rows} <= set(NODES)
    # Grafana names a series by its field and labels it by its tags; a table has neither.
    if "aggregateWindow" in query:
        assert {row["url"] for row in rows} == set(NODES)
        assert {row["_field"] for row in rows} == ({"booked"} if "booked" in query else fields)
        assert all(row["_measurement"] == measurement and row["_time"] for row in rows)
    else:
        assert len(rows) == 10
        assert [row["_value"] for row in rows] == sorted((row["_value"] for row in rows), reverse=True)
    if measurement == "domain":
        assert all(row["domain"] for row in rows)


@pytest.mark.parametrize("query", [query for _, query in FLUX], ids=[name for name, _ in FLUX])
def test_every_query_filters_by_the_selected_nodes_and_domains(query: str, dashboard: FilledBucket) -> None:
    one = dashboard.rows(query, node=escaped(NODES[2]))
    assert {row["url"] for row in one} == {NODES[2]}
    two = dashboard.rows(query, node=escaped(*NODES[1:]))
    assert {row["url"] for row in two} <= set(NODES[1:])
    if fields_of(query)[0] == "domain":
        name = one[0]["domain"]
        assert {row["domain"] for row in dashboard.rows(query, domain=escaped(name))} == {name}


def test_selection_without_a_match_returns_no_rows(dashboard: FilledBucket) -> None:
    for _, query in FLUX:
        assert dashboard.rows(query, node=escaped("absent")) == []


def test_variables_list_the_stored_values(dashboard: FilledBucket) -> None:
    offered = {
        name: [row["_value"] for row in dashboard.rows(VARIABLES[name]["query"], **selected)]
        for name, selected in (("bucket", {}), ("node", {}), ("domain", {"node": escaped(NODES[0])}))
    }
    assert dashboard.bucket in offered["bucket"]
    assert not [name for name in offered["bucket"] if name.startswith("_")]
    assert sorted(offered["node"]) == sorted(NODES)
    assert len(offered["domain"]) == 12


def test_booked_is_the_sum_of_the_allocations_of_the_vms(dashboard: FilledBucket) -> None:
    (query,) = [query for name, query in FLUX if name.startswith("CPU: used") and "booked" in query]
    (domains,) = [query for name, query in FLUX if name.startswith("CPU of VMs")]
    booked = {row["_value"] for row in dashboard.rows(query, node=escaped(NODES[0]))}
    rows = dashboard.rows(domains, node=escaped(NODES[0]))
    allocated = {row["domain"]: row["_value"] for row in rows if row["_field"] == "cpu"}
    assert max(booked) == pytest.approx(min(booked)) == pytest.approx(sum(allocated.values()))
