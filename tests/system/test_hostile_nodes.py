"""One aggregator among good and hostile nodes: every attack at once, with real processes."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from misc.benchmarks.processes import control, daemon, fake_workers, rss_mb
from misc.fakeworkers.attacks import ATTACKS
from model.aggregator.settings import MAX_PAGE_MB
from tests.conftest import ROOT, bare_environment
from tests.support.servers import fetch, free_port, wait_for

GOOD = 10

#: Reasons of failures of each attack; none: its pages are read.
REASONS: dict[str, set[str]] = {
    "endless": {"size", "limit"},
    "gzip-bomb": {"page"},
    "long-line": {"size", "limit"},
    "large": {"limit"},
    "escaped": set(),
    "new-vms": {"limit"},
    # Each page is read until the node has had too many VMs within an hour.
    "renamed-vms": {"limit"},
    "new-perf": {"page"},
    "blanks": set(),
    "continue": {"limit"},
    "headers": {"limit"},
    "tiny-chunks": {"limit"},
    "chunk-extensions": {"limit"},
    "drip": {"limit"},
}


@dataclass
class Running:
    """An aggregator, its nodes and what it reports."""

    pid: int
    port: int
    good: list[str]
    hostile: dict[str, str]
    stubs: list[Any]
    store: Path
    log: Path

    def values(self) -> dict[str, Counter[str]]:
        """Values of each metric by node, summed over the other labels."""
        status, body = fetch(f"http://127.0.0.1:{self.port}/metrics", timeout=30)
        assert status == 200
        values: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                node = sample.labels.get("node", "")
                values[sample.name][node] += sample.value  # type: ignore[assignment]
                if "reason" in sample.labels:
                    values[sample.labels["reason"]][node] += sample.value  # type: ignore[assignment]
        return values

    def samples(self) -> Counter[str]:
        """Samples in the store by node."""
        query = "SELECT node.name, count(*) FROM tick JOIN node ON node.id = tick.node GROUP BY node.name"
        with closing(sqlite3.connect(self.store)) as store:
            return Counter(dict(store.execute(query).fetchall()))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    store, log, port = tmp_path / "store.sqlite", tmp_path / "log", free_port()
    with fake_workers(GOOD, 4, 500) as good, fake_workers(len(ATTACKS), 10, 100) as hostile:
        settings = {
            **bare_environment(),
            "AGGREG_STUB_LIST": json.dumps([*good, *hostile]),
            "AGGREG_FETCH_DELAY": "1",
            "AGGREG_TIMEOUT_S": "20",
            "AGGREG_MAX_VMS": "15",
            "AGGREG_METRICS_PORT": str(port),
            "STORE_PATH": str(store),
        }
        names = dict(zip(ATTACKS, (stub[0] for stub in hostile), strict=True))
        with log.open("wb") as stderr, daemon("vmaggreg.py", settings, cwd=tmp_path, stderr=stderr) as pid:
            yield Running(pid, port, [stub[0] for stub in good], names, hostile, store, log)


def test_every_attack_has_its_reasons() -> None:
    assert REASONS.keys() == ATTACKS.keys()


def test_good_nodes_keep_their_pace_among_all_attacks_at_once(running: Running) -> None:
    nodes = [*running.good, *running.hostile.values()]
    wait_for(lambda: all(running.values()["scroogevm_scrapes_total"][node] >= 3 for node in nodes), 60)
    assert all(running.values()["scroogevm_node_up"][node] == 1 for node in nodes)
    before, samples, memory_mb = running.values(), running.samples(), rss_mb(running.pid)
    for worker, attack in enumerate(running.hostile):
        control(running.stubs, worker=worker, fault=attack)

    def has_seen_all() -> bool:
        values = running.values()
        scraped = all(
            values["scroogevm_scrapes_total"][node] >= before["scroogevm_scrapes_total"][node] + 12
            for node in running.good
        )
        refused = all(
            sum(values[reason][running.hostile[attack]] for reason in reasons) > 0
            for attack, reasons in REASONS.items()
            if reasons
        )
        return scraped and refused

    wait_for(has_seen_all, 120)
    after = running.values()
    for node in running.good:
        scrapes = after["scroogevm_scrapes_total"][node] - before["scroogevm_scrapes_total"][node]
        assert after["scroogevm_scrape_failures_total"][node] == 0
        assert after["scroogevm_scrapes_throttled_total"][node] == 0
        assert after["scroogevm_scrapes_missed_total"][node] <= 0.2 * scrapes
        assert running.samples()[node] - samples[node] >= 0.7 * scrapes
    for attack, node in running.hostile.items():
        assert after["internal"][node] == 0, attack
        if REASONS[attack] & {"limit", "size"}:
            assert after["scroogevm_scrape_interval_seconds"][node] > 1, attack
    # A page is held in pieces and as a whole, and some are being read.
    assert rss_mb(running.pid) < memory_mb + 2.5 * MAX_PAGE_MB.default * len(ATTACKS)
    # A line for each cause, and not one for each scrape.
    lines = running.log.read_text().splitlines()
    for attack, node in running.hostile.items():
        assert sum(node in line for line in lines) <= 8, attack
    assert not any(node in line for line in lines for node in running.good)


def test_hostile_node_that_becomes_good_is_scraped_as_before(running: Running) -> None:
    node = running.hostile["continue"]
    control(running.stubs, worker=list(running.hostile).index("continue"), fault="continue", count=1)
    wait_for(lambda: running.values()["limit"][node] >= 1, 60)
    wait_for(lambda: running.values()["scroogevm_node_up"][node] == 1, 60)
    assert running.values()["scroogevm_scrape_interval_seconds"][node] == 1


def test_short_soak_prints_three_states_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "misc" / "benchmarks" / "soak.py", "--minutes=0.3", "--workers=3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [done.stdout.count(name) for name in ("s vmaggreg.py", "s scroogevm.py", "store.sqlite-wal")] == [3, 3, 3]
    assert "\n0 lines were logged" in done.stdout or "started: version" in done.stdout
    assert list(tmp_path.iterdir()) == []
