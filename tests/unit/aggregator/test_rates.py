"""Rates from counters: the fields that the original stored of the same pages, and no rate where it is unknown."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.aggregator.node_clock import ClockBehind
from model.aggregator.rates import NodeRates
from model.aggregator.vmprobe import VmprobeReader
from model.machine_table import MachineTable, TableLayout
from model.samples import Scrape, ScrapeSample
from tests.conftest import SHARED

CAPTURES = SHARED / "captures"
NS = 1e9


def node(at_ms: float = 0.0, **changes: float) -> dict[str, float]:
    """A node of 4 cores whose counters confirm each other at a time."""
    busy = {"cpu_user": 100 * NS, "cpu_kernel": 10 * NS} | changes
    return {
        "cpu_total": 4.0,
        "cpu_user": 100 * NS,
        "cpu_kernel": 10 * NS,
        "cpu_idle": 4 * (1000 * NS + at_ms * 1e6) - busy["cpu_user"] - busy["cpu_kernel"],
        "memory_total": 8192 * 1024.0,
        "memory_available": 6144 * 1024.0,
        **changes,
    }


def vm(**changes: float) -> dict[str, float]:
    return {
        "cpu_alloc": 2.0,
        "cpu_cputime": 50 * NS,
        "memory_alloc": 1024 * 1024.0,
        "memory_unused": 768 * 1024.0,
        **changes,
    }


def samples_of(*scrapes: Scrape) -> list[ScrapeSample | None]:
    rates = NodeRates("http://w1/metrics")
    return [rates.update(scrape).sample for scrape in scrapes]


def problems_of(*scrapes: Scrape) -> list[str]:
    """Reasons of the last scrape."""
    rates = NodeRates("http://w1/metrics")
    return [problem.reason for problem in [rates.update(scrape) for scrape in scrapes][-1].problems]


def last(*scrapes: Scrape) -> ScrapeSample:
    sample = samples_of(*scrapes)[-1]
    assert sample is not None
    return sample


# --- the fields of the original ---------------------------------------------------------------------


def fields_of_original() -> dict[tuple[str, int], dict[str, float]]:
    rows: dict[tuple[str, int], dict[str, float]] = {}
    header: list[str] = []
    for row in csv.reader((CAPTURES / "influxdb_written_by_original.csv").read_text().splitlines()):
        if not row or row[0].startswith("#"):
            continue
        if row[1] == "result":
            header = row
            continue
        cells = dict(zip(header, row, strict=False))
        stamp = datetime.strptime(cells["_time"].rstrip("Z").ljust(23, "0"), "%Y-%m-%dT%H:%M:%S.%f")
        time_ms = round(stamp.replace(tzinfo=timezone.utc).timestamp() * 1000)
        rows.setdefault((cells.get("domain", ""), time_ms), {})[cells["_field"]] = float(cells["_value"])
    return rows


#: The original stores KiB / 1000 and bytes / 10^6; this project stores MB of 2^20 bytes.
RESCALED = {"mem": 1.024, "mem_rss": 1.024, "mem_usage": 1.024, "stat_vsize": 1.048576, "stat_rsslim": 1.048576}
#: The original wrote unknown sums as 0 at the first sample, and the last page twice, the second time without rates.
FIRST = {"oc_cpu_d", "minflt_sum", "majflt_sum"}
AGAIN = {"elapsed_time", "oc_cpu_d", "minflt_sum", "majflt_sum"}


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="needs the shared folder with captured pages")
def test_captured_pages_give_the_fields_that_the_original_stored() -> None:
    original = fields_of_original()
    pages = sorted(CAPTURES.glob("vmprobe_[01][0-9]_*.prom"))
    reader, rates = VmprobeReader("vmprobe"), NodeRates("u")
    compared = 0
    for k, page in enumerate(pages):
        sample, problems = rates.update(reader.read(page.read_bytes()))
        assert sample is not None
        assert problems == []
        for name, fields in [("", sample.fields), *sample.domains.items()]:
            stored = original[name, sample.time_ms]
            omitted = FIRST if k == 0 else AGAIN if k == len(pages) - 1 else set()
            assert fields.keys() - omitted == stored.keys() - omitted
            for field, value in fields.items():
                if field not in omitted:
                    assert value * RESCALED.get(field, 1) == pytest.approx(stored[field], rel=1e-9), (
                        page.name,
                        name,
                        field,
                    )
                    compared += 1
    assert compared > 600


# --- rates and their absence ------------------------------------------------------------------------


def test_usage_is_the_increase_of_cpu_time_since_the_last_scrape() -> None:
    # The node: 8 + 2 s of CPU in 5 s: 2 cores. The VM: 2.5 s in 5 s: half a core.
    sample = last(
        Scrape(10_000, node(10_000), {"a": vm()}),
        Scrape(15_000, node(15_000, cpu_user=108 * NS, cpu_kernel=12 * NS), {"a": vm(cpu_cputime=52.5 * NS)}),
    )
    assert sample.time_ms == 15_000
    assert sample.fields["cpu_usage"] == pytest.approx(2.0)
    assert sample.fields["elapsed_time"] == 5000
    assert sample.fields["elapsed_cpu_time"] == 10 * NS
    assert sample.domains["a"]["cpu_usage"] == pytest.approx(0.5)
    assert sample.fields["oc_cpu_d"] == pytest.approx(0.125)


def test_sizes_need_one_scrape_and_are_in_mb_of_2_to_the_20_bytes() -> None:
    sample = last(Scrape(1, node(1), {"a": vm(memory_rss=512 * 1024.0)}))
    assert (sample.fields["cpu"], sample.fields["mem"], sample.fields["mem_usage"]) == (4.0, 8192.0, 2048.0)
    assert sample.fields["vm_number"] == 1
    assert sample.fields["oc_cpu"] == 0.5
    assert sample.fields["oc_mem"] == 0.125
    a = sample.domains["a"]
    assert (a["cpu"], a["mem"], a["mem_rss"], a["mem_usage"]) == (2.0, 1024.0, 512.0, 256.0)


RATES = {"cpu_usage", "elapsed_cpu_time", "elapsed_time", "sched_busy", "sched_runtime", "stat_minflt"}
SCHED = {"sched_runtime": 5.0, "sched_waittime": 1.0, "sched_timeslices": 1.0, "stat_minflt": 7.0}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(None, Scrape(5000, node(5000), {"a": vm(**SCHED)}), id="first scrape"),
        pytest.param(
            Scrape(10_000, node(10_000), {"a": vm(**SCHED)}),
            Scrape(5000, node(5000, cpu_user=101 * NS), {"a": vm(**SCHED, cpu_usertime=1)}),
            id="clock went back",
        ),
        pytest.param(
            Scrape(1000, node(1000, cpu_user=200 * NS, **SCHED), {"a": vm(**{**SCHED, "cpu_cputime": 60 * NS})}),
            Scrape(5000, node(5000, **SCHED), {"a": vm(**SCHED)}),
            id="host and VM restarted",
        ),
    ],
)
def test_unknown_rates_are_absent(first: Scrape | None, second: Scrape) -> None:
    sample = last(*([first] if first else []), second)
    assert not RATES & sample.fields.keys()
    assert not RATES & sample.domains["a"].keys()
    assert "oc_cpu_d" not in sample.fields


def test_restarted_vm_alone_has_no_rates() -> None:
    sample = last(
        Scrape(1000, node(1000), {"a": vm(), "b": vm()}),
        Scrape(2000, node(2000, cpu_user=101 * NS), {"a": vm(cpu_cputime=0.1 * NS), "b": vm(cpu_cputime=51 * NS)}),
    )
    assert "cpu_usage" not in sample.domains["a"]
    assert sample.domains["b"]["cpu_usage"] == pytest.approx(1.0)
    assert "oc_cpu_d" not in sample.fields  # a sum with an unknown part is unknown


def test_one_decreased_counter_makes_all_rates_of_its_machine_unknown() -> None:
    sample = last(
        Scrape(1000, node(1000), {"a": vm(sched_runtime=9.0, sched_waittime=1.0)}),
        Scrape(2000, node(2000), {"a": vm(sched_runtime=1.0, sched_waittime=2.0, cpu_cputime=51 * NS)}),
    )
    assert not RATES & sample.domains["a"].keys()


def test_rates_are_unknown_after_the_clock_was_set() -> None:
    busy = {"a": vm(cpu_cputime=55 * NS)}
    sample = last(Scrape(1000, node(1000), {"a": vm()}), Scrape(1001, node(1001, cpu_user=105 * NS), busy))
    assert not RATES & sample.fields.keys()
    assert not RATES & sample.domains["a"].keys()


def test_page_with_the_same_time_gives_no_sample() -> None:
    first = Scrape(1000, node(1000), {"a": vm()})
    assert samples_of(first, first, Scrape(2000, node(2000, cpu_user=102 * NS), {"a": vm()}))[1] is None
    assert last(first, first, Scrape(2000, node(2000, cpu_user=102 * NS), {"a": vm()})).fields[
        "cpu_usage"
    ] == pytest.approx(2.0)


def test_vm_that_returns_starts_fresh() -> None:
    there = {"a": vm(), "b": vm(cpu_cputime=60 * NS)}
    sample = last(
        Scrape(1000, node(1000), there),
        Scrape(2000, node(2000), {"a": vm()}),
        Scrape(3000, node(3000), {"a": vm(), "b": vm(cpu_cputime=90 * NS)}),
    )
    assert "cpu_usage" not in sample.domains["b"]
    assert "cpu_usage" in sample.domains["a"]


def test_unknown_vms_are_stored_as_missing() -> None:
    sample = last(Scrape(1000, node(1000), {"a": vm()}), Scrape(2000, node(2000, cpu_user=101 * NS), None))
    assert sample.domains == {}
    assert "vm_number" not in sample.fields
    assert sample.fields["cpu_usage"] == pytest.approx(1.0)


def test_node_without_vms_has_sums_of_zero() -> None:
    sample = last(Scrape(1000, node(1000), {}), Scrape(2000, node(2000), {}))
    assert sample.fields["vm_number"] == 0
    assert (sample.fields["oc_cpu"], sample.fields["oc_cpu_d"], sample.fields["minflt_sum"]) == (0, 0, 0)


def test_missing_metric_is_a_missing_field() -> None:
    sample = last(Scrape(1000, {"cpu_total": 4.0}, {"a": {"cpu_alloc": 2.0}}))
    assert sample.fields == {"cpu": 4.0, "vm_number": 1.0, "oc_cpu": 0.5}
    assert sample.domains["a"] == {"cpu": 2.0}


def test_wait_ratio_without_run_time_is_zero() -> None:
    still = {"sched_runtime": 1.0, "sched_waittime": 1.0}
    assert last(Scrape(1, node(1, **still), {}), Scrape(2, node(2, **still), {})).fields["sched_busy"] == 0


def test_ratios_of_hardware_counters() -> None:
    perf = {
        "perf_hwcpucycles": 300.0,
        "perf_hwinstructions": 200.0,
        "perf_hwbranchmisses": 1.0,
        "perf_hwbranchinstructions": 10.0,
        "perf_hwcachemisses": 3.0,
        "perf_hwcachereferences": 0.0,
    }
    fields = last(Scrape(1, node(1, **perf), {})).fields
    assert (fields["cpi"], fields["bmr"], fields["hwcpucycles"]) == (1.5, 0.1, 300.0)
    assert "cmr" not in fields


# --- figures that confirm each other ----------------------------------------------------------------


def busy(at_ms: float, cores: float) -> dict[str, float]:
    """A node that has used some of its 4 cores since time 0."""
    return node(at_ms, cpu_user=100 * NS + cores * at_ms * 1e6)


def scrapes(*pages: tuple[float, dict[str, float]]) -> list[Scrape]:
    return [Scrape(at_ms, page, {}) for at_ms, page in pages]


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        pytest.param(busy(5000, 3.5), "cpu_still", id="counters stand still while the time goes on"),
        pytest.param(busy(10_500, 3.5), "cpu_time", id="counters of a tenth of the period"),
        pytest.param(busy(7500, 3.5), "cpu_time", id="counters of half of the period"),
        pytest.param(busy(25_000, 3.5), "cpu_time", id="counters of four times the period"),
        pytest.param({**busy(10_000, 3.5), "cpu_user": 117.5 * NS}, "cpu_time", id="busy time stands still"),
        pytest.param({**busy(10_000, 3.5), "cpu_idle": 9e18}, "cpu_time", id="impossible idle time"),
        pytest.param({**busy(10_000, 3.5), "cpu_total": 1e9}, "cpu_time", id="impossible number of cores"),
        pytest.param(
            {**busy(10_000, 3.5), "cpu_total": 1e300}, "cpu_time", id="number of cores near the largest float"
        ),
        pytest.param(
            {k: v for k, v in busy(10_000, 3.5).items() if k != "cpu_idle"}, "cpu_counters", id="no idle time"
        ),
        pytest.param(
            {k: v for k, v in busy(10_000, 3.5).items() if k != "cpu_user"}, "cpu_counters", id="no user time"
        ),
    ],
)
def test_usage_is_missing_when_busy_and_idle_time_do_not_make_up_the_period(
    second: dict[str, float], reason: str
) -> None:
    pages = scrapes((5000, busy(5000, 3.5)), (10_000, second))
    assert "cpu_usage" not in last(*pages).fields
    assert reason in problems_of(*pages)


def test_usage_is_known_within_the_tolerance() -> None:
    for period_ms in (4850, 5000, 5150):
        pages = scrapes((5000, busy(5000, 3.5)), (5000 + period_ms, busy(10_000, 3.5)))
        assert last(*pages).fields["cpu_usage"] == pytest.approx(3.5 * 5000 / period_ms)
        assert problems_of(*pages) == []


@given(st.integers(2, 6), st.floats(0, 4), st.integers(1, 5))
def test_counters_that_a_cache_repeats_give_the_usage_of_the_whole_period(every: int, cores: float, count: int) -> None:
    pages = [(1000.0 * k, busy(1000.0 * (k // every) * every, cores)) for k in range(every * count + 1)]
    samples = [sample for sample in samples_of(*scrapes(*pages)) if sample is not None]
    usage = [sample.fields["cpu_usage"] for sample in samples if "cpu_usage" in sample.fields]
    assert usage == pytest.approx([cores] * count)
    assert [sample.fields["elapsed_time"] for sample in samples if "elapsed_time" in sample.fields] == [
        1000.0 * every
    ] * count


def test_usage_of_a_node_is_missing_when_its_vms_used_more() -> None:
    pages = [
        Scrape(5000.0 * k, busy(5000.0 * k, 0.2), {"a": vm(cpu_alloc=4.0, cpu_cputime=15 * NS * k)}) for k in (1, 2)
    ]
    assert "cpu_usage" not in last(*pages).fields
    assert problems_of(*pages) == ["cpu_vms"]


@pytest.mark.parametrize("available", [8193 * 1024.0, 1e18, -1.0])
def test_memory_that_is_impossible_is_missing(available: float) -> None:
    page = Scrape(1000, node(1000, memory_available=available), {})
    assert "mem_usage" not in last(page).fields
    assert problems_of(page) == ["memory"]


def sized(at_ms: float, **sizes: float) -> Scrape:
    """A page; the time of its arrival is its own."""
    return Scrape(at_ms, node(at_ms, **sizes), {}, received_ms=at_ms)


TWICE = {"memory_total": 16384 * 1024.0, "memory_available": 14336 * 1024.0}


def sizes_of(*pages: Scrape) -> list[float]:
    return [sample.fields["mem"] for sample in samples_of(*pages) if sample]


def test_more_memory_than_ever_is_believed_after_an_hour() -> None:
    pages = [sized(0), *(sized(30_000.0 * k, **TWICE) for k in range(1, 124))]
    assert sizes_of(*pages) == [8192.0] * 121 + [16384.0] * 3
    assert problems_of(*pages[:4]) == ["size"]
    assert problems_of(*pages) == []
    # Few scrapes in a long time are no confirmation, and a clock may step.
    assert sizes_of(sized(0), *(sized(k * 7_200_000.0, **TWICE) for k in range(1, 60)))[-1] == 8192.0


def test_size_that_the_node_had_before_is_believed_after_a_minute() -> None:
    """One page with a tiny size, or CPUs that were offline for a while, do not cost the node."""
    tiny = {"memory_total": 64 * 1024.0, "memory_available": 1024.0}
    pages = [sized(0), sized(5000, **tiny), *(sized(5000.0 * k) for k in range(2, 18))]
    assert sizes_of(*pages) == [8192.0] + [64.0] * 13 + [8192.0] * 4


def test_size_after_a_boot_is_believed_after_a_minute() -> None:
    wrong = {"memory_total": 8192 * 2.0**14, "memory_available": 6144 * 2.0**14}
    booted = [sized(5000), *(sized(5000.0 * k, **wrong, cpu_user=1.0, cpu_kernel=1.0) for k in range(2, 40))]
    assert last(*booted).fields["mem"] == 8192.0 * 16


def test_smaller_size_is_believed_at_once() -> None:
    pages = [sized(5000), sized(10_000, memory_total=4096 * 1024.0, memory_available=2048 * 1024.0)]
    assert last(*pages).fields["mem"] == 4096.0


@pytest.mark.parametrize(
    "changes", [{"cpu_total": 1e9}, {"cpu_total": 0.0}, {"memory_total": 1e18}, {"memory_total": 2.0**32}]
)
def test_first_size_that_is_impossible_is_missing(changes: dict[str, float]) -> None:
    fields = last(sized(5000, **changes)).fields
    assert ("cpu" not in fields) == ("cpu_total" in changes)
    assert ("mem" not in fields) == ("memory_total" in changes)


def test_perf_counter_with_the_name_of_a_field_is_not_stored() -> None:
    hostile = dict.fromkeys(("perf_cpu", "perf_mem", "perf_cpu_usage", "perf_oc_cpu", "perf_vm_number"), 1e6)
    sample = last(Scrape(1000, node(1000, **hostile), {"a": vm(**hostile)}))
    assert (sample.fields["cpu"], sample.fields["mem"], sample.fields["oc_cpu"]) == (4.0, 8192.0, 0.5)
    assert (sample.domains["a"]["cpu"], sample.domains["a"]["mem"]) == (2.0, 1024.0)
    assert "cpu_usage" not in sample.fields


# --- clocks -----------------------------------------------------------------------------------------


def received(epoch_ms: float, received_ms: float, **changes: float) -> Scrape:
    return Scrape(epoch_ms, busy(epoch_ms, 2.0) | changes, {}, received_ms)


def test_sample_of_a_node_whose_clock_is_ahead_gets_the_time_of_this_host() -> None:
    hour = 3_600_000.0
    pages = [received(hour + 5000, 5000), received(hour + 10_000, 10_000)]
    sample = last(*pages)
    assert sample.time_ms == 10_000
    assert sample.fields["cpu_usage"] == pytest.approx(2.0)
    assert problems_of(*pages) == ["clock"]


@pytest.mark.parametrize("skew_ms", [-59_000, -2000, 0, 900])
def test_page_of_an_ordinary_age_keeps_its_time(skew_ms: float) -> None:
    sample = last(received(100_000 + skew_ms, 100_000))
    assert sample.time_ms == 100_000 + skew_ms
    assert problems_of(received(100_000 + skew_ms, 100_000)) == []


def test_old_page_is_refused_unless_its_probe_is_slow() -> None:
    with pytest.raises(ClockBehind, match="3600 s old"):
        last(received(5000, 3_605_000))
    assert last(received(5000, 3_605_000, probe_delay=1_800_000.0)).time_ms == 5000


# --- VMs --------------------------------------------------------------------------------------------


def vms_of(at_ms: float, **cpu_s: float) -> Scrape:
    domains = {name: vm(cpu_cputime=seconds * NS) for name, seconds in cpu_s.items()}
    return Scrape(at_ms, busy(at_ms, 3.0), domains)


def test_usage_of_vms_that_stop_together_is_missing_until_they_go_on() -> None:
    pages = [vms_of(5000, a=5, b=5), vms_of(10_000, a=10, b=8), vms_of(15_000, a=10, b=8), vms_of(20_000, a=20, b=14)]
    stopped, resumed = last(*pages[:3]), last(*pages)
    assert all("cpu_usage" not in fields for fields in stopped.domains.values())
    assert problems_of(*pages[:3]) == ["vms_still"]
    # 10 s of CPU time in the 10 s since the last change.
    assert resumed.domains["a"]["cpu_usage"] == pytest.approx(1.0)
    assert resumed.domains["b"]["cpu_usage"] == pytest.approx(0.6)


def node_with(at_ms: float, used_s: float, resident: int | None = None, **cpu_s: float) -> Scrape:
    """A node that has used some CPU time since time 0, its VMs, and the number of those that are in its memory."""
    domains = {name: vm(cpu_cputime=seconds * NS, memory_rss=512 * 1024.0) for name, seconds in cpu_s.items()}
    available = 7168 - 512 * (len(cpu_s) if resident is None else resident)
    return Scrape(at_ms, node(at_ms, cpu_user=(100 + used_s) * NS, memory_available=available * 1024.0), domains)


def test_vm_that_stops_alone_is_idle_when_the_node_uses_less_as_well() -> None:
    pages = [node_with(5000, 5, a=5, b=1), node_with(10_000, 12, a=10, b=2)]
    idle, busy_ = node_with(15_000, 14, a=10, b=3), node_with(15_000, 21, a=10, b=3)
    assert last(*pages, idle).domains["a"]["cpu_usage"] == 0.0
    assert problems_of(*pages, idle) == []
    # Its counter stands still: the usage of VMs is unknown until they agree with the node again.
    assert "cpu_usage" not in last(*pages, busy_).domains["a"]
    assert problems_of(*pages, busy_) == ["vms_cpu"]
    later = node_with(20_000, 23, a=10, b=4)
    assert last(*pages, busy_, later).domains["a"]["cpu_usage"] == 0.0


@pytest.mark.parametrize("left", [{}, {"b": 3.0}], ids=["all", "one of two"])
def test_vms_that_vanish_while_the_node_stays_busy_are_unknown(left: dict[str, float]) -> None:
    pages = [node_with(5000, 5, a=5, b=1), node_with(10_000, 12, a=10, b=2)]
    hidden, gone = node_with(15_000, 19, 2, **left), node_with(15_000, 14 - (not left), **left)
    assert last(*pages, hidden).domains == {}
    assert "oc_cpu" not in last(*pages, hidden).fields
    assert problems_of(*pages, hidden) == ["vms"]
    assert set(last(*pages, gone).domains) == set(left)
    # They are back on the next page.
    back = node_with(20_000, 26, a=20, b=4)
    assert set(last(*pages, hidden, back).domains) == {"a", "b"}


def test_idle_vm_that_vanishes_is_noticed_by_its_memory() -> None:
    pages = [node_with(5000, 5, a=5, b=0), node_with(10_000, 10, a=10, b=0)]
    assert problems_of(*pages, node_with(15_000, 15, 2, a=15)) == ["vms"]
    assert problems_of(*pages, node_with(15_000, 15, 1, a=15)) == []


def test_idle_vm_that_leaves_shared_memory_behind_is_gone() -> None:
    """With kernel same-page merging a VM may leave most of its memory to others."""
    pages = [node_with(5000, 5, a=5, b=0), node_with(10_000, 10, a=10, b=0)]
    left = node_with(15_000, 15, a=15)
    shared = replace(left, node={**left.node, "memory_available": left.node["memory_available"] - 400 * 1024.0})
    assert set(last(*pages, shared).domains) == {"a"}


def test_vm_whose_small_usage_the_node_may_have_of_its_own_is_missed_by_its_memory() -> None:
    """0.15 cores are more than nothing, and less than the node's own part may grow by."""
    pages = [node_with(5000, 5, a=5, b=0.75), node_with(10_000, 10.75, a=10, b=1.5)]
    assert problems_of(*pages, node_with(15_000, 16.5, 2, a=15)) == ["vms"]
    assert problems_of(*pages, node_with(15_000, 16.5, 1, a=15)) == []


@pytest.mark.parametrize("memory", ["full", "unknown"])
def test_vm_that_was_busy_is_gone_where_the_memory_of_the_node_does_not_show_it(memory: str) -> None:
    """Huge pages are used whether a VM has them or not."""
    pages = [node_with(5000, 5, a=5, b=4), node_with(10_000, 14, a=10, b=8)]
    idle, busy = node_with(15_000, 19, a=15), node_with(15_000, 23, a=15)
    for page in (*pages, idle, busy):
        page.node.pop("memory_available")
        if memory == "full":
            page.node["memory_available"] = 100 * 1024.0
    assert problems_of(*pages, idle) == []
    assert problems_of(*pages, busy) == ["vms"]


def usual_pages() -> list[Scrape]:
    """A node that uses 0.25 cores of its own, and its VMs 1 and 0.5; its memory is unknown."""
    pages = [node_with(k * 5000, k * 8.75, a=k * 5, b=k * 2.5) for k in range(1, 4)]
    for page in pages:
        del page.node["memory_available"]
    return pages


def test_page_of_a_node_that_is_late_once_contradicts_none_of_those_that_follow() -> None:
    """The VMs seem to use more than the node in one page; in the next one a VM uses 0.3 cores less."""
    late = node_with(20_000, 26.25 + 6, a=20, b=10)
    less = node_with(25_000, 26.25 + 6 + 7.25, a=25, b=11)
    assert problems_of(*usual_pages(), late, less) == []
    assert last(*usual_pages(), late, less).domains["b"]["cpu_usage"] == pytest.approx(0.2)


def test_vm_that_vanishes_after_a_page_of_a_node_that_is_early_is_unknown() -> None:
    """The node seems to use 0.75 cores more of its own in one page, which is more than the VM that vanishes used."""
    early = node_with(20_000, 26.25 + 12.5, a=20, b=10)
    hidden, gone = (node_with(25_000, 26.25 + 12.5 + used_s, a=25) for used_s in (8.75, 6.25))
    for page in (early, hidden, gone):
        del page.node["memory_available"]
    assert problems_of(*usual_pages(), early, hidden) == ["vms"]
    assert problems_of(*usual_pages(), early, gone) == []


def test_last_vm_of_a_node_with_load_of_its_own_may_leave() -> None:
    pages = [node_with(5000, 10, a=5), node_with(10_000, 20, a=7)]  # 1.6 cores of its own
    assert last(*pages, node_with(15_000, 28)).fields["oc_cpu"] == 0.0
    assert problems_of(*pages, node_with(15_000, 28)) == []


def test_vms_that_vanished_while_nothing_was_scraped_are_unknown() -> None:
    pages = [node_with(5000, 5, a=5, b=1), node_with(10_000, 12, a=10, b=2)]
    stored = last(*pages)
    restarted = NodeRates("http://w1/metrics", lambda: stored)
    for at_ms, used_s in ((20_000, 26), (25_000, 33)):
        sample, problems = restarted.update(node_with(at_ms, used_s, 2))
    assert sample is not None
    assert "oc_cpu" not in sample.fields
    assert [problem.reason for problem in problems] == ["vms"]
    idle = NodeRates("http://w1/metrics", lambda: stored)
    for at_ms, used_s in ((20_000, 26), (25_000, 27)):
        sample, problems = idle.update(node_with(at_ms, used_s))
    assert sample is not None
    assert problems == []


def test_rate_after_unconfirmed_pages_covers_the_time_since_the_last_confirmed_one() -> None:
    bad = {name: value for name, value in busy(15_000, 3.5).items() if name != "cpu_idle"}
    pages = scrapes((5000, busy(5000, 0.5)), (10_000, busy(10_000, 0.5)), (15_000, bad), (20_000, busy(20_000, 2.0)))
    fields = last(*pages).fields
    # 35 s of CPU time in the last 10 s.
    assert fields["cpu_usage"] == pytest.approx(3.5)
    assert fields["elapsed_time"] == 10_000


@pytest.mark.parametrize("alloc", [0.0, -2.0, 17.0, 1e9])
def test_vm_with_an_impossible_number_of_vcpus_has_an_unknown_allocation(alloc: float) -> None:
    page = Scrape(1000, node(1000), {"a": vm(cpu_alloc=alloc), "b": vm()})
    sample = last(page)
    assert "cpu" not in sample.domains["a"]
    assert "oc_cpu" not in sample.fields
    assert sample.fields["oc_mem"] == 0.25
    assert problems_of(page) == ["vm_size"]


def allocations(metric: str, *sizes: float) -> list[float]:
    """What is stored of a VM whose pages, every 20 s, have these allocations."""
    pages = [Scrape(20_000.0 * k, node(20_000.0 * k), {"a": vm(**{metric: size})}) for k, size in enumerate(sizes, 1)]
    name = "cpu" if metric == "cpu_alloc" else "mem"
    return [sample.domains["a"][name] for sample in samples_of(*pages) if sample]


def test_smaller_allocation_is_believed_when_it_persists_and_a_larger_one_at_once() -> None:
    assert allocations("cpu_alloc", 8, 2, 8, 2, 2, 2, 2) == [8, 8, 8, 8, 8, 8, 2]
    assert allocations("cpu_alloc", 2, 8, 2) == [2, 8, 8]
    mib = 1024.0
    assert allocations("memory_alloc", 4096 * mib, 16 * mib, 16 * mib, 16 * mib, 16 * mib) == [4096.0] * 4 + [16.0]
    # A balloon.
    assert allocations("memory_alloc", 4096 * mib, 1024 * mib, 4096 * mib) == [4096.0, 1024.0, 4096.0]


def test_vm_does_not_have_fewer_vcpus_than_it_uses() -> None:
    pages = [
        Scrape(60_000.0 * k, busy(60_000.0 * k, 3.9), {"a": vm(cpu_alloc=alloc, cpu_cputime=180 * NS * k)})
        for k, alloc in enumerate([4.0, 4.0, 1.0, 1.0, 1.0, 1.0], 1)
    ]
    assert last(*pages).domains["a"]["cpu"] == 4.0
    assert problems_of(*pages) == ["vm_size"]


# --- memory while a balloon moves -------------------------------------------------------------------

MIB = 1024.0
SETTLED = vm(memory_alloc=512 * MIB, memory_available=470 * MIB, memory_unused=440 * MIB, memory_last_update=9.0)


def usage(*steps: tuple[float, dict[str, float]]) -> list[float | None]:
    samples = samples_of(*(Scrape(at_ms, node(), {"a": metrics}) for at_ms, metrics in steps))
    return [sample.domains["a"].get("mem_usage") for sample in samples if sample is not None]


def test_usage_is_unknown_while_statistics_are_older_than_the_balloon() -> None:
    # 220 - 440 is negative, and 373 - 300 is the difference of values from different times.
    squeezed = {**SETTLED, "memory_alloc": 220 * MIB}
    moving = {**SETTLED, "memory_alloc": 373 * MIB, "memory_unused": 300 * MIB}
    updated = {**squeezed, "memory_available": 178 * MIB, "memory_unused": 148 * MIB, "memory_last_update": 13.0}
    assert usage((10_000, SETTLED), (12_000, squeezed), (14_000, updated)) == [72.0, None, 72.0]
    assert usage((10_000, SETTLED), (12_000, moving)) == [72.0, None]


def test_usage_is_unknown_while_statistics_are_of_the_smaller_size() -> None:
    small = {**SETTLED, "memory_alloc": 220 * MIB, "memory_available": 178 * MIB, "memory_unused": 148 * MIB}
    back = {**small, "memory_alloc": 512 * MIB, "memory_last_update": 11.0}
    assert usage((10_000, small), (12_000, back)) == [72.0, None]


def test_usage_stays_unknown_when_the_guest_stops_reporting() -> None:
    squeezed = {**SETTLED, "memory_alloc": 480 * MIB, "memory_available": 438 * MIB}
    assert usage((10_000, SETTLED), (12_000, squeezed), (500_000, squeezed)) == [72.0, None, None]


def test_different_reserve_is_accepted_after_a_minute() -> None:
    changed = {**SETTLED, "memory_alloc": 480 * MIB, "memory_available": 300 * MIB, "memory_unused": 100 * MIB}
    late = {**changed, "memory_last_update": 80.0}
    assert usage((10_000, SETTLED), (12_000, {**changed, "memory_last_update": 12.0}), (81_000, late)) == [
        72.0,
        None,
        380.0,
    ]


# --- any input --------------------------------------------------------------------------------------

COUNTER = st.floats(0, 1e15)


@given(st.lists(st.tuples(st.integers(0, 10), COUNTER, COUNTER, st.booleans()), min_size=1, max_size=12))
def test_no_field_is_negative_or_infinite(samples: list[Any]) -> None:
    rates = NodeRates("u")
    for epoch, node_time, vm_time, there in samples:
        domains = {"a": vm(cpu_cputime=vm_time)} if there else {}
        sample = rates.update(Scrape(float(epoch * 1000), node(epoch * 1000, cpu_user=node_time), domains)).sample
        if sample is not None:
            for fields in (sample.fields, *sample.domains.values()):
                assert all(0 <= value < float("inf") for value in fields.values())


# --- the fast path, where random pages rarely lead -------------------------------------------------


def steady(*steps: dict[str, float]) -> list[Scrape]:
    """Scrapes of two VMs, the first of which changes: as a table, in which the figures of a VM may be missing."""
    columns = ("cpu_alloc", "cpu_cputime", "memory_alloc", "memory_available", "memory_unused")
    layout = TableLayout(("a", "b"), columns)
    scrapes = []
    for k, changes in enumerate(steps):
        usual = vm(memory_available=1000 * 1024.0, cpu_cputime=50 * NS + k * NS)
        rows = [[machine.get(name, math.nan) for name in columns] for machine in (usual | changes, usual)]
        at_ms = k * 5000.0
        scrapes.append(Scrape(at_ms, node(at_ms, cpu_user=(100 + 4 * k) * NS), MachineTable(layout, np.array(rows))))
    return scrapes


def as_dictionaries(scrapes: list[Scrape]) -> list[Scrape]:
    return [replace(scrape, domains=dict((scrape.domains or {}).items())) for scrape in scrapes]


@pytest.mark.parametrize(
    "event",
    [
        # The guest reports its memory before the balloon moves, not at the scrape before, and another reserve after it.
        [{"memory_unused": math.nan, "memory_available": 9e5}, {"memory_alloc": 2.0**19, "memory_available": 5e5}],
        [{"memory_alloc": 2.0**21}, {"memory_alloc": 2.0**21}],
        [{"memory_alloc": 2.0**19}, {}],
        [{"memory_alloc": 2.0**30}, {}],
        [{"memory_alloc": 0.0}, {}],
        [{"memory_unused": 2.0**30}, {}],
        [{"memory_unused": -1.0}, {}],
        [{"cpu_alloc": 1.0}, {}],
        [{"cpu_alloc": 8.0}, {"cpu_alloc": 8.0}],
        [{"cpu_alloc": 100.0}, {}],
        [{"cpu_alloc": math.nan}, {}],
        [{"cpu_cputime": 65 * NS}, {"cpu_cputime": 68 * NS}, {"cpu_cputime": 83 * NS}],
        [{"cpu_cputime": 1.0}, {"cpu_cputime": NS}],
        [{"cpu_cputime": 500 * NS}, {"cpu_cputime": 501 * NS}],
    ],
)
def test_event_on_a_calm_node_gives_the_same_with_tables_and_dictionaries(event: list[dict[str, float]]) -> None:
    scrapes = steady({}, {}, {}, *event, {}, {})
    updates = [list(map(NodeRates("u").update, found)) for found in (scrapes, as_dictionaries(scrapes))]
    assert updates[0] == updates[1]
    assert isinstance(updates[0][2].sample.domains if updates[0][2].sample else None, MachineTable)
