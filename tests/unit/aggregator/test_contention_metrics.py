"""Metrics of contention are read from any page, and what is wrong with them affects nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.aggregator.contention_metrics import ContentionReader, names_of_probe
from model.aggregator.exposition import LimitError
from model.aggregator.libvirt_exporter import LabelReader
from model.aggregator.limits import PageLimits
from model.aggregator.rates import NodeRates
from model.aggregator.vmprobe import VmprobeReader
from model.samples import Contention, Metrics, Scrape, ScrapeSample, VcpuTimes
from tests.conftest import SHARED

CAPTURES = SHARED / "captures"
needs_captures = pytest.mark.skipif(not CAPTURES.is_dir(), reason="needs the shared folder with captured pages")

NODE_LINES = """\
node_pressure_cpu_waiting_seconds_total 384.57201799999996
node_pressure_io_waiting_seconds_total 28.9
node_pressure_memory_stalled_seconds_total 1.5
node_pressure_memory_waiting_seconds_total 2
node_schedstat_running_seconds_total{cpu="0"} 900
node_schedstat_waiting_seconds_total{cpu="0"} 27.192708554
node_schedstat_waiting_seconds_total{cpu="1"} 25.7
node_time_seconds 1.795357990536e+09
node_vmstat_oom_kill 3
node_vmstat_pgfault 1e+06
node_vmstat_pswpin 4096
"""

VCPU_LINES = """\
libvirt_domain_vcpu_delay_seconds_total{domain="vm-1",vcpu="0"} 1.25
libvirt_domain_vcpu_delay_seconds_total{domain="vm-1",vcpu="1"} 2.5
libvirt_domain_vcpu_state{domain="vm-1",vcpu="0"} 1
libvirt_domain_vcpu_time_seconds_total{domain="vm-1",vcpu="0"} 10
libvirt_domain_vcpu_time_seconds_total{domain="vm-1",vcpu="1"} 20
libvirt_domain_vcpu_wait_seconds_total{domain="vm-1",vcpu="0"} 99
"""


def read(page: str, limits: PageLimits = PageLimits()) -> Contention:  # noqa: B008  # frozen
    return ContentionReader(limits).read_node_page(page.encode(), 5000.0)


def is_same(values: Metrics, expected: Metrics) -> bool:
    return values.keys() == expected.keys() and all(
        value == expected[name] or (math.isnan(value) and math.isnan(expected[name])) for name, value in values.items()
    )


# --- the page of node_exporter ----------------------------------------------------------------------


def test_counters_of_a_node_are_read() -> None:
    contention = read(NODE_LINES)
    assert contention == Contention(
        at_ms=1795357990536.0,
        node={"psi_cpu": 384.57201799999996, "psi_memory": 1.5, "swap_in": 4096.0, "oom_kills": 3.0},
        queue={"0": 27.192708554, "1": 25.7},
        vcpus={},
    )


@given(st.randoms(use_true_random=False))
def test_order_of_the_lines_does_not_matter(random: object) -> None:
    lines = (NODE_LINES + VCPU_LINES).splitlines(keepends=True)
    random.shuffle(lines)  # type: ignore[attr-defined]
    assert read("".join(lines)) == read(NODE_LINES + VCPU_LINES)


def test_time_of_the_request_counts_when_the_page_has_none() -> None:
    assert read("node_vmstat_pswpin 1\n").at_ms == 5000.0
    assert read("node_vmstat_pswpin 1\nnode_time_seconds NaN\n").at_ms == 5000.0


def test_page_without_such_metrics_has_none() -> None:
    assert read("node_load1 1\n# node_vmstat_pswpin 1\nx_node_vmstat_pswpin 1\n") == Contention(5000.0, {}, {}, {})
    assert read("node_vmstat_pswpin_x 1\nnode_pressure_cpu_waiting_seconds 1\n").node == {}


def test_series_that_is_on_the_page_twice_has_no_value() -> None:
    twice = read(NODE_LINES + 'node_vmstat_pswpin 4096\nnode_schedstat_waiting_seconds_total{cpu="1",x="y"} 1\n')
    assert math.isnan(twice.node["swap_in"])
    assert is_same(twice.queue, {"0": 27.192708554, "1": math.nan})
    assert twice.node["oom_kills"] == 3.0


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "x", "1_0", "1e999"])
def test_invalid_value_is_none(value: str) -> None:
    node = read(f"node_vmstat_pswpin {value}\nnode_vmstat_oom_kill 1\n").node
    assert not math.isfinite(node.get("swap_in", math.nan))
    assert node["oom_kills"] == 1.0


def test_line_with_a_timestamp_is_read() -> None:
    assert read("node_vmstat_pswpin 7 1795357990536\n").node == {"swap_in": 7.0}


# --- vCPUs ------------------------------------------------------------------------------------------


def test_times_of_vcpus_are_read_by_domain() -> None:
    assert read(VCPU_LINES).vcpus == {
        "vm-1": VcpuTimes("node_exporter", 5000.0, {"0": 1.25, "1": 2.5}, {"0": 10.0, "1": 20.0})
    }


def test_run_time_alone_is_no_wait() -> None:
    assert read('libvirt_domain_vcpu_time_seconds_total{domain="a",vcpu="0"} 1\n').vcpus == {}


def test_wait_without_run_time_is_read() -> None:
    line = 'libvirt_domain_vcpu_delay_seconds_total{domain="a",vcpu="0"} 1\n'
    assert read(line).vcpus == {"a": VcpuTimes("node_exporter", 5000.0, {"0": 1.0}, {})}
    assert read(line.replace("vcpu=", "cpu=")).vcpus == {}
    assert read(line.replace("domain=", "name=")).vcpus == {}


def test_vcpu_that_is_on_the_page_twice_has_no_value() -> None:
    twice = read(VCPU_LINES + 'libvirt_domain_vcpu_delay_seconds_total{domain="vm-1",vcpu="1",uuid="x"} 2.5\n')
    assert is_same(twice.vcpus["vm-1"].wait, {"0": 1.25, "1": math.nan})


def test_domains_have_the_names_of_the_probe_and_none_when_two_share_one() -> None:
    times = {name: VcpuTimes(name, 0.0, {}, {}) for name in ("web-1", "web1", "db-a-b", "x")}
    assert {name: found.source for name, found in names_of_probe(times).items()} == {"dbab": "db-a-b", "x": "x"}


def test_too_many_series_are_refused() -> None:
    line = 'libvirt_domain_vcpu_delay_seconds_total{{domain="a",vcpu="{}"}} 1\n'
    page = "".join(map(line.format, range(101)))
    assert len(read(page, PageLimits(series=101)).vcpus["a"].wait) == 101
    with pytest.raises(LimitError, match="101 series on the page, more than AGGREG_MAX_SERIES=100"):
        read(page, PageLimits(series=100))


# --- the readers of pages ---------------------------------------------------------------------------

PROBE_PAGE = """\
p_global_probe_epoch 1795357990000
p_global_probe_delay 3000
p_global_cpu_total 2
p_global_cpu_user 1222450000000
p_global_cpu_kernel 264320000000
p_global_memory_total 24684084
p_global_memory_available 19184052
p_domain_vm1_cpu_alloc 2
p_domain_vm1_cpu_cputime 8475916000
p_domain_vm1_memory_alloc 524288
"""

LABEL_NODE = """\
node_cpu_seconds_total{cpu="0",mode="idle"} 1
node_memory_MemTotal_bytes 2.097152e+09
"""

LABEL_VM = """\
libvirt_domain_info_virtual_cpus{domain="vm-1"} 2
libvirt_domain_info_cpu_time_seconds_total{domain="vm-1"} 14.5
libvirt_up 1
"""


def contention_of(scrape: Scrape) -> Contention:
    assert scrape.contention is not None
    return scrape.contention


def test_page_of_a_probe_has_the_metrics_of_its_node_exporter() -> None:
    scrape = VmprobeReader("p").read((PROBE_PAGE + NODE_LINES + VCPU_LINES).encode(), 7000.0)
    contention = contention_of(scrape)
    assert contention.node["swap_in"] == 4096.0
    assert contention.at_ms == 1795357990536.0
    assert contention.vcpus["vm1"].wait == {"0": 1.25, "1": 2.5}
    assert scrape.domains is not None
    assert set(scrape.domains) == {"vm1"}


def test_page_of_a_probe_without_the_time_of_its_exporter_has_that_of_the_request() -> None:
    page = (PROBE_PAGE + "node_vmstat_pswpin 1\n").encode()
    assert contention_of(VmprobeReader("p").read(page, 7000.0)).at_ms == 7000.0
    assert contention_of(VmprobeReader("p").read(page)).at_ms == 1795357990000.0


def test_page_of_a_probe_alone_has_none_on_both_paths() -> None:
    reader = VmprobeReader("p")
    assert [reader.read(PROBE_PAGE.encode()).contention for _ in range(2)] == [None, None]


def test_vcpus_on_the_page_of_the_libvirt_exporter_have_its_time() -> None:
    scrape = LabelReader().read(LABEL_NODE.encode(), 1000.0, (LABEL_VM + VCPU_LINES).encode(), 1200.0)
    assert contention_of(scrape).vcpus["vm-1"] == VcpuTimes(
        "libvirt exporter", 1200.0, {"0": 1.25, "1": 2.5}, {"0": 10.0, "1": 20.0}
    )


def test_vcpus_of_a_textfile_count_where_the_libvirt_exporter_has_none() -> None:
    other = VCPU_LINES.replace("vm-1", "vm-2").replace("1.25", "7")
    node = LABEL_NODE + VCPU_LINES.replace("1.25", "9") + other
    scrape = LabelReader().read(node.encode(), 1000.0, (LABEL_VM + VCPU_LINES).encode(), 1200.0)
    vcpus = contention_of(scrape).vcpus
    assert (vcpus["vm-1"].source, vcpus["vm-1"].wait["0"]) == ("libvirt exporter", 1.25)
    assert (vcpus["vm-2"].source, vcpus["vm-2"].wait["0"]) == ("node_exporter", 7.0)


def test_bad_lines_are_counted() -> None:
    reader = LabelReader()
    reader.read((LABEL_NODE + "node_vmstat_pswpin x\n").encode(), 1000.0)
    assert reader.bad_lines == 1


@needs_captures
def test_captured_pages_of_node_exporter_give_pressure() -> None:
    reader, rates = VmprobeReader("vmprobe"), NodeRates("u")
    first, second = (
        rates.update(reader.read((CAPTURES / f"node_exporter_with_vmprobe{n}.txt").read_bytes())).sample
        for n in ("", "_2")
    )
    assert first is not None
    assert second is not None
    assert not {"psi_cpu", "psi_memory", "swap_in", "oom_kills", "cpu_wait"} & first.fields.keys()
    # 720.187 - 384.572 s in 414.78 s; the kernel of that machine has no schedstats.
    assert second.fields["psi_cpu"] == pytest.approx(0.80914, abs=1e-5)
    assert [second.fields[name] for name in ("psi_memory", "swap_in", "oom_kills")] == [0.0, 0.0, 0.0]
    assert "cpu_wait" not in second.fields


@needs_captures
def test_main_thread_of_a_captured_probe_is_not_its_vm() -> None:
    """From 09 to 10 it ran for 86 ms and waited for 1373 ms, while the VM used 1747 ms."""
    reader, rates = VmprobeReader("vmprobe"), NodeRates("u")
    samples = [rates.update(reader.read(path.read_bytes())).sample for path in sorted(CAPTURES.glob("vmprobe_[01]*"))]
    last = samples[-1]
    assert last is not None
    assert last.domains["vmtwo"]["sched_waittime"] == pytest.approx(1373832206)
    assert "cpu_usage" in last.domains["vmtwo"]
    for sample in samples:
        assert sample is not None
        assert all("cpu_wait" not in fields for fields in sample.domains.values())


# --- any damage -------------------------------------------------------------------------------------

WAITS = {"cpu_wait", "cpu_wait_share", "psi_cpu", "psi_memory", "swap_in", "oom_kills"}


def without_waits(sample: ScrapeSample | None) -> ScrapeSample | None:
    if sample is None:
        return None
    domains = {name: {k: v for k, v in fields.items() if k not in WAITS} for name, fields in sample.domains.items()}
    return replace(sample, fields={k: v for k, v in sample.fields.items() if k not in WAITS}, domains=domains)


NAMES = st.sampled_from(
    sorted({line.partition(" ")[0] for line in (NODE_LINES + VCPU_LINES).splitlines()} - {"node_time_seconds"})
)
VALUES = st.one_of(
    st.floats().map(repr),
    st.integers(-5, 5).map(str),
    st.sampled_from(["", "x", "1 2 3", "NaN", "{", '"', "\\", "1_0", "1e999"]),
)
LINES = st.lists(st.tuples(NAMES, VALUES).map(" ".join), max_size=12)


def label_pages(number: int, lines: list[str]) -> tuple[str, str]:
    seconds = 1000 + 5 * number
    busy = {
        "user": 100 + number,
        "idle": 4 * number,
        "system": 1,
        "nice": 0,
        "irq": 0,
        "softirq": 0,
        "steal": 0,
        "iowait": 0,
    }
    node = "".join(f'node_cpu_seconds_total{{cpu="0",mode="{mode}"}} {value}\n' for mode, value in busy.items())
    node += (
        f"node_memory_MemTotal_bytes 2.097152e+09\nnode_memory_MemAvailable_bytes 1e+09\nnode_time_seconds {seconds}\n"
    )
    vm = f'libvirt_domain_info_virtual_cpus{{domain="vm-1"}} 2\nlibvirt_domain_info_cpu_time_seconds_total{{domain="vm-1"}} {14 + 0.5 * number}\n'
    damage = "".join(f"{line}\n" for line in lines)
    return node + damage, vm + damage


@given(st.lists(LINES, min_size=2, max_size=4))
def test_damage_of_these_metrics_never_changes_other_fields(damage: list[list[str]]) -> None:
    rates, clean = NodeRates("u"), NodeRates("u")
    reader, clean_reader = LabelReader(), LabelReader()
    for number, lines in enumerate(damage):
        samples: list[ScrapeSample | None] = []
        for node_rates, label_reader, more in ((rates, reader, lines), (clean, clean_reader, [])):
            node, vm = label_pages(number, more)
            at_ms = 1000.0 * (1000 + 5 * number)
            samples.append(node_rates.update(label_reader.read(node.encode(), at_ms, vm.encode(), at_ms)).sample)
        damaged, expected = samples
        assert without_waits(damaged) == expected
        assert damaged is not None
        if number:
            assert "cpu_usage" in damaged.fields
            assert "cpu_usage" in damaged.domains["vm-1"]
        for fields in (damaged.fields, damaged.domains["vm-1"]):
            assert all(0 <= fields[name] < math.inf for name in WAITS & fields.keys())
            assert all(fields[name] <= 1 for name in {"psi_cpu", "psi_memory", "cpu_wait_share"} & fields.keys())


@given(st.lists(LINES, min_size=2, max_size=4))
def test_damage_never_changes_other_fields_of_a_probe(damage: list[list[str]]) -> None:
    reader, clean_reader = VmprobeReader("p"), VmprobeReader("p")
    for lines in damage:
        damaged = reader.read((PROBE_PAGE + "".join(f"{line}\n" for line in lines)).encode(), 7000.0)
        assert replace(damaged, contention=None) == clean_reader.read(PROBE_PAGE.encode(), 7000.0)
