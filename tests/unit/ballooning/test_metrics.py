"""The metrics of the ballooning daemon: per host, from the first scrape on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from model.ballooning.counts import BallooningCounts
from model.ballooning.journal import Journal
from model.ballooning.metrics import BallooningMetrics
from model.ballooning.sessions import Session

#: Its latest end is at 1000 s.
SESSION = Session("u1", "a", "h1", 4096.0, 2000.0, 1000.0, 1200.0)


class Site:
    """Metrics of a journal, at a time that the test sets."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.counts = BallooningCounts()
        self.now_s = 0.0
        self._registry = CollectorRegistry()
        self._registry.register(BallooningMetrics(self.counts, journal, lambda: self.now_s))

    def by_host(self, name: str) -> dict[str, float]:
        return {
            sample.labels["host"]: sample.value
            for family in self._registry.collect()
            for sample in family.samples
            if sample.name == f"scroogevm_balloon_{name}"
        }


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Journal(tmp_path / "ballooning.json") as journal:
        yield Site(journal)


def test_session_is_overdue_from_its_latest_end_until_the_guest_has_its_memory(site: Site) -> None:
    site.counts.up.update(h1=True, h2=True)
    assert site.by_host("overdue_seconds") == {"h1": 0.0, "h2": 0.0}
    site.journal.put(SESSION)
    site.now_s = 999.0
    assert site.by_host("overdue_seconds") == {"h1": 0.0, "h2": 0.0}
    site.now_s = 1060.0
    assert site.by_host("overdue_seconds") == {"h1": 60.0, "h2": 0.0}
    site.journal.put(replace(SESSION, restore_reason="time limit"))
    assert site.by_host("overdue_seconds")["h1"] == 60.0
    site.journal.put(replace(SESSION, restore_reason="time limit", restored_s=1061.0))
    assert site.by_host("overdue_seconds")["h1"] == 0.0


def test_longest_overdue_session_of_a_host_counts(site: Site) -> None:
    for uuid, until_s in (("u1", 1000.0), ("u2", 900.0), ("u3", 950.0)):
        site.journal.put(replace(SESSION, uuid=uuid, until_s=until_s))
    site.now_s = 1010.0
    # No call has reached the host yet.
    assert site.by_host("overdue_seconds") == {"h1": 110.0}


def test_host_without_errors_has_counters_of_0(site: Site) -> None:
    site.counts.up.update(h1=True, h2=False)
    site.counts.errors["h2"] += 3
    site.counts.restore_failures["h2"] += 1
    assert site.by_host("errors_total") == {"h1": 0.0, "h2": 3.0}
    assert site.by_host("restore_failures_total") == {"h1": 0.0, "h2": 1.0}
    assert site.by_host("host_up") == {"h1": 1.0, "h2": 0.0}
