"""Rates from counters: the fields that the original stored of the same pages, and no rate where it is unknown."""

from __future__ import annotations

import csv
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.aggregator.rates import NodeRates
from model.aggregator.vmprobe import VmprobeReader
from model.samples import Scrape, ScrapeSample
from tests.conftest import SHARED

CAPTURES = SHARED / "captures"
NS = 1e9


def node(**changes: float) -> dict[str, float]:
    return {
        "cpu_total": 4.0,
        "cpu_user": 100 * NS,
        "cpu_kernel": 10 * NS,
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
    return [rates.update(scrape) for scrape in scrapes]


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
        sample = rates.update(reader.read(page.read_bytes()))
        assert sample is not None
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
        Scrape(10_000, node(), {"a": vm()}),
        Scrape(15_000, node(cpu_user=108 * NS, cpu_kernel=12 * NS), {"a": vm(cpu_cputime=52.5 * NS)}),
    )
    assert sample.time_ms == 15_000
    assert sample.fields["cpu_usage"] == pytest.approx(2.0)
    assert sample.fields["elapsed_time"] == 5000
    assert sample.fields["elapsed_cpu_time"] == 10 * NS
    assert sample.domains["a"]["cpu_usage"] == pytest.approx(0.5)
    assert sample.fields["oc_cpu_d"] == pytest.approx(0.125)


def test_sizes_need_one_scrape_and_are_in_mb_of_2_to_the_20_bytes() -> None:
    sample = last(Scrape(1, node(), {"a": vm(memory_rss=512 * 1024.0)}))
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
        pytest.param(None, Scrape(5000, node(), {"a": vm(**SCHED)}), id="first scrape"),
        pytest.param(
            Scrape(10_000, node(), {"a": vm(**SCHED)}),
            Scrape(5000, node(cpu_user=101 * NS), {"a": vm(**SCHED, cpu_usertime=1)}),
            id="clock went back",
        ),
        pytest.param(
            Scrape(1000, node(cpu_user=200 * NS, **SCHED), {"a": vm(**{**SCHED, "cpu_cputime": 60 * NS})}),
            Scrape(5000, node(**SCHED), {"a": vm(**SCHED)}),
            id="host and VM restarted",
        ),
    ],
)
def test_unknown_rates_are_absent(first: Scrape | None, second: Scrape) -> None:
    sample = last(*([first] if first else []), second)
    assert not RATES - {"elapsed_time"} & sample.fields.keys()
    assert not RATES & sample.domains["a"].keys()
    assert "oc_cpu_d" not in sample.fields


def test_restarted_vm_alone_has_no_rates() -> None:
    sample = last(
        Scrape(1000, node(), {"a": vm(), "b": vm()}),
        Scrape(2000, node(cpu_user=101 * NS), {"a": vm(cpu_cputime=0.1 * NS), "b": vm(cpu_cputime=51 * NS)}),
    )
    assert "cpu_usage" not in sample.domains["a"]
    assert sample.domains["b"]["cpu_usage"] == pytest.approx(1.0)
    assert "oc_cpu_d" not in sample.fields  # a sum with an unknown part is unknown


def test_one_decreased_counter_makes_all_rates_of_its_machine_unknown() -> None:
    sample = last(
        Scrape(1000, node(), {"a": vm(sched_runtime=9.0, sched_waittime=1.0)}),
        Scrape(2000, node(), {"a": vm(sched_runtime=1.0, sched_waittime=2.0, cpu_cputime=51 * NS)}),
    )
    assert not RATES & sample.domains["a"].keys()


def test_rates_are_unknown_after_the_clock_was_set() -> None:
    busy = {"a": vm(cpu_cputime=55 * NS)}
    sample = last(Scrape(1000, node(), {"a": vm()}), Scrape(1001, node(cpu_user=105 * NS), busy))
    assert not RATES & sample.fields.keys()
    assert not RATES & sample.domains["a"].keys()


def test_page_with_the_same_time_gives_no_sample() -> None:
    first = Scrape(1000, node(), {"a": vm()})
    assert samples_of(first, first, Scrape(2000, node(cpu_user=102 * NS), {"a": vm()}))[1] is None
    assert last(first, first, Scrape(2000, node(cpu_user=102 * NS), {"a": vm()})).fields["cpu_usage"] == pytest.approx(
        2.0
    )


def test_vm_that_returns_starts_fresh() -> None:
    there = {"a": vm(), "b": vm(cpu_cputime=60 * NS)}
    sample = last(
        Scrape(1000, node(), there),
        Scrape(2000, node(), {"a": vm()}),
        Scrape(3000, node(), {"a": vm(), "b": vm(cpu_cputime=90 * NS)}),
    )
    assert "cpu_usage" not in sample.domains["b"]
    assert "cpu_usage" in sample.domains["a"]


def test_unknown_vms_are_stored_as_missing() -> None:
    sample = last(Scrape(1000, node(), {"a": vm()}), Scrape(2000, node(cpu_user=101 * NS), None))
    assert sample.domains == {}
    assert "vm_number" not in sample.fields
    assert sample.fields["cpu_usage"] == pytest.approx(1.0)


def test_node_without_vms_has_sums_of_zero() -> None:
    sample = last(Scrape(1000, node(), {}), Scrape(2000, node(), {}))
    assert sample.fields["vm_number"] == 0
    assert (sample.fields["oc_cpu"], sample.fields["oc_cpu_d"], sample.fields["minflt_sum"]) == (0, 0, 0)


def test_missing_metric_is_a_missing_field() -> None:
    sample = last(Scrape(1000, {"cpu_total": 4.0}, {"a": {"cpu_alloc": 2.0}}))
    assert sample.fields == {"cpu": 4.0, "vm_number": 1.0, "oc_cpu": 0.5}
    assert sample.domains["a"] == {"cpu": 2.0}


def test_wait_ratio_without_run_time_is_zero() -> None:
    still = {"sched_runtime": 1.0, "sched_waittime": 1.0}
    assert last(Scrape(1, node(**still), {}), Scrape(2, node(**still), {})).fields["sched_busy"] == 0


def test_ratios_of_hardware_counters() -> None:
    perf = {
        "perf_hwcpucycles": 300.0,
        "perf_hwinstructions": 200.0,
        "perf_hwbranchmisses": 1.0,
        "perf_hwbranchinstructions": 10.0,
        "perf_hwcachemisses": 3.0,
        "perf_hwcachereferences": 0.0,
    }
    fields = last(Scrape(1, node(**perf), {})).fields
    assert (fields["cpi"], fields["bmr"], fields["hwcpucycles"]) == (1.5, 0.1, 300.0)
    assert "cmr" not in fields


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
        sample = rates.update(Scrape(float(epoch * 1000), node(cpu_user=node_time), domains))
        if sample is not None:
            for fields in (sample.fields, *sample.domains.values()):
                assert all(0 <= value < float("inf") for value in fields.values())
