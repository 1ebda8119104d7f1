"""Pages of node_exporter and of libvirt exporters are read with the names and units of vmprobe."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from model.aggregator.exposition import PageError
from model.aggregator.label_lines import LabelledMetrics, LabelLines
from model.aggregator.libvirt_exporter import LabelReader
from model.aggregator.limits import PageLimits
from model.samples import Scrape
from tests.conftest import SHARED

CAPTURES = SHARED / "captures"
needs_captures = pytest.mark.skipif(not CAPTURES.is_dir(), reason="needs the shared folder with captured pages")

SECONDS = {
    "0": {"idle": 1000, "iowait": 10, "user": 100.5, "nice": 1, "system": 20, "irq": 0.25, "softirq": 0.5, "steal": 0},
    "1": {"idle": 900, "iowait": 0, "user": 50, "nice": 0, "system": 0, "irq": 0, "softirq": 0, "steal": 2},
}
MEMORY = "node_memory_MemTotal_bytes 2.097152e+09\nnode_memory_MemAvailable_bytes 1.048576e+09\n"


def node_page(seconds: Mapping[str, Mapping[str, object]] = SECONDS, more: str = "") -> bytes:
    lines = [
        f'node_cpu_seconds_total{{cpu="{cpu}",mode="{mode}"}} {value}\n'
        for cpu, modes in seconds.items()
        for mode, value in modes.items()
    ]
    guest = 'node_cpu_guest_seconds_total{cpu="0",mode="user"} 90\n'
    return ("".join(lines) + guest + more + MEMORY).encode()


NODE = node_page()


def domain(name: str, dialect: str) -> str:
    base = (
        f'libvirt_domain_info_virtual_cpus{{domain="{name}"}} 2\n'
        f'libvirt_domain_info_cpu_time_seconds_total{{domain="{name}"}} 14.5\n'
        f'libvirt_domain_info_maximum_memory_bytes{{domain="{name}"}} 1073741824\n'
    )
    balloon = {"tinkoff": "actual_balloon", "inovex": "current_balloon"}
    if dialect == "kumina":
        return base + f'libvirt_domain_info_memory_usage_bytes{{domain="{name}"}} 536870912\n'
    return base + "".join(
        f'libvirt_domain_memory_stats_{stat}_bytes{{domain="{name}"}} {value}\n'
        for stat, value in ((balloon[dialect], 536870912), ("rss", 402653184), ("unused", 134217728))
    )


def labels(libvirt: str | None, node: bytes = NODE) -> Scrape:
    return LabelReader().read(node, 1000.0, None if libvirt is None else libvirt.encode(), 1200.0)


def test_modes_of_the_cores_are_summed_as_vmprobe_does() -> None:
    scrape = labels("")
    assert scrape.node["cpu_total"] == 2
    assert scrape.node["cpu_user"] == pytest.approx((100.5 + 1 + 50) * 1e9)
    assert scrape.node["cpu_kernel"] == pytest.approx((20 + 0.25 + 0.5 + 2) * 1e9)
    assert (scrape.node["cpu_idle"], scrape.node["cpu_iowait"]) == (1900e9, 10e9)
    assert scrape.node["memory_total"] == 2097152000 / 1024
    assert scrape.epoch_ms == 1000.0


COUNTERS = {"cpu_user", "cpu_kernel", "cpu_idle", "cpu_iowait"}


@pytest.mark.parametrize("mode", ["user", "steal", "idle", "iowait"])
@pytest.mark.parametrize("value", [None, "NaN", "+Inf", "x"])
def test_counters_are_missing_when_one_core_lacks_a_mode(mode: str, value: str | None) -> None:
    modes: dict[str, dict[str, object]] = {cpu: dict(seconds) for cpu, seconds in SECONDS.items()}
    if value is None:
        del modes["1"][mode]
    else:
        modes["1"][mode] = value
    node = labels("", node_page(modes)).node
    assert node.keys().isdisjoint(COUNTERS)
    assert node["cpu_total"] == 2


def test_counters_are_missing_when_a_series_is_on_the_page_twice() -> None:
    twice = 'node_cpu_seconds_total{cpu="1",mode="user",host="b"} 50\n'
    assert "cpu_user" not in labels("", node_page(more=twice)).node


def test_time_of_the_page_is_preferred_to_the_time_of_the_request() -> None:
    scrape = labels("", node_page(more="node_time_seconds 1.5\n"))
    assert (scrape.epoch_ms, scrape.received_ms, scrape.domains_ms) == (1500.0, 1000.0, 1200.0)


@pytest.mark.parametrize("dialect", ["kumina", "tinkoff", "inovex"])
def test_domain_is_read_in_every_dialect(dialect: str) -> None:
    scrape = labels("libvirt_up 1\n" + domain("vm-1", dialect))
    assert scrape.domains is not None
    metrics = scrape.domains["vm-1"]
    assert metrics["cpu_alloc"] == 2
    assert metrics["cpu_cputime"] == 14.5e9
    assert metrics["memory_alloc"] == 536870912 / 1024
    assert metrics.get("memory_unused") == (None if dialect == "kumina" else 131072)


def test_statistics_of_zero_are_missing() -> None:
    text = domain("a", "tinkoff").replace("134217728", "0").replace("536870912", "0")
    metrics = (labels(text).domains or {})["a"]
    assert "memory_unused" not in metrics
    assert metrics["memory_alloc"] == 1073741824 / 1024  # without the balloon: the maximum


@pytest.mark.parametrize(
    "state", ["libvirt_domain_state_code", "libvirt_domain_info_vstate", "libvirt_domain_info_state"]
)
def test_domain_that_is_shut_off_is_omitted(state: str) -> None:
    off = domain("off", "tinkoff") + f'{state}{{domain="off",state_desc="x"}} 5\n'
    on = domain("on", "tinkoff") + f'{state}{{domain="on",state_desc="x"}} 1\n'
    assert set(labels(off + on).domains or ()) == {"on"}


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("", "no metric of libvirt on its page"),
        ("node_load1 1\n", "no metric of libvirt on its page"),
        ("libvirt_up 0\n", "libvirt_up is 0"),
        ("libvirt_up 0\n" + domain("a", "kumina"), "libvirt_up is 0"),
        (domain("a", "kumina")[:-3], "the page is truncated in the middle of a line"),
    ],
)
def test_domains_are_unknown_without_a_valid_page_of_the_exporter(page: str, problem: str) -> None:
    scrape = labels(page)
    assert scrape.domains is None
    assert scrape.problem == f"the libvirt exporter does not report them: {problem}"


def test_domains_are_unknown_without_the_page_of_the_exporter() -> None:
    scrape = LabelReader().read(NODE, 1000.0, problem="HTTP status 500")
    assert (scrape.domains, scrape.problem) == (None, "the libvirt exporter does not report them: HTTP status 500")


def test_exporter_without_domains_reports_none() -> None:
    assert labels("libvirt_up 1\n").domains == {}


def test_name_with_escaped_characters_is_read() -> None:
    text = domain("NAME", "kumina").replace("NAME", 'a\\"b\\\\c}d e')
    assert set(labels(text).domains or ()) == {'a"b\\c}d e'}


def test_invalid_line_of_a_label_page_is_skipped_and_counted() -> None:
    reader = LabelReader()
    bad = 'libvirt_domain_info_virtual_cpus{domain="b"\nlibvirt_domain_info_virtual_cpus{domain="c"} x\n'
    scrape = reader.read(NODE, 1.0, (bad + domain("a", "kumina")).encode(), 1.0)
    # Domain c runs, its allocation is unknown.
    assert set(scrape.domains or ()) == {"a", "c"}
    assert (scrape.domains or {})["c"] == {}
    assert reader.bad_lines == 2


def test_labels_are_remembered_for_one_page_and_limited() -> None:
    lines = LabelLines(PageLimits())
    metrics = LabelledMetrics({"m"})

    def read(*names: str) -> list[Mapping[str, str]]:
        page = "".join(f'm{{domain="{name}"}} 1\n' for name in names)
        return [pairs for _, pairs, _ in lines.samples(page.encode(), metrics)]

    first = read("a", "b", "x" * 600)
    again = read("b", "x" * 600, "c")
    assert again[0] is first[1]
    assert again[1] == first[2]
    assert again[1] is not first[2]
    assert read("a")[0] is not first[0]
    assert read("a") == first[:1]
    many = read(*map(str, range(5000)))
    assert sum(pairs is other for pairs, other in zip(many, read(*map(str, range(5000))), strict=True)) == 4096


def test_domain_on_the_page_twice_has_no_allocation() -> None:
    text = domain("a", "tinkoff") + domain("a", "tinkoff").replace('"a"', '"a",host="b"')
    assert "cpu_alloc" not in (labels(text).domains or {})["a"]


def test_domain_without_vcpus_runs_and_its_allocation_is_unknown() -> None:
    without = "".join(line + "\n" for line in domain("a", "kumina").splitlines() if "virtual_cpus" not in line)
    domains = labels("libvirt_up 1\n" + without + domain("b", "kumina")).domains or {}
    assert set(domains) == {"a", "b"}
    assert "cpu_alloc" not in domains["a"]


@pytest.mark.parametrize("page", [b"", b"<html></html>", b"node_load1 1\n"])
def test_page_that_is_not_of_node_exporter_is_refused(page: bytes) -> None:
    with pytest.raises(PageError):
        labels("", page)


@needs_captures
def test_captured_label_pages_are_read() -> None:
    scrape = LabelReader().read(
        (CAPTURES / "node_exporter_with_vmprobe.txt").read_bytes(),
        1.0,
        (CAPTURES / "libvirt_exporter.txt").read_bytes(),
        1.0,
    )
    assert set(scrape.domains or ()) == {"vm1", "vm-two"}
    assert (scrape.domains or {})["vm-two"]["cpu_cputime"] == 8.7e9
    assert scrape.node["cpu_total"] == 2
    assert scrape.node.keys() >= COUNTERS
    assert scrape.epoch_ms == 1795357990536


def test_label_page_truncated_in_a_number_is_refused() -> None:
    with pytest.raises(PageError):
        labels("", NODE[:-4])


def test_cpu_time_is_absent_when_the_cores_change() -> None:
    reader = LabelReader()
    reader.read(NODE, 1.0)
    without = node_page({"0": SECONDS["0"]})
    scrape = reader.read(without, 2.0)
    assert "cpu_user" not in scrape.node
    assert scrape.node["cpu_total"] == 1
    assert "cpu_user" in reader.read(without, 3.0).node


# --- KubeVirt ---------------------------------------------------------------------------------------

KUBEVIRT = """\
kubevirt_info{goversion="go1.23",kubeversion="v1.5.0"} 1
kubevirt_virt_handler_ready_status 1
kubevirt_vmi_cpu_usage_seconds_total{kubernetes_vmi_label_app="db",name="vm-1",namespace="prod",node="w2"} 14.5
kubevirt_vmi_memory_actual_balloon_bytes{kubernetes_vmi_label_app="db",name="vm-1",namespace="prod",node="w2"} 5.36870912e+08
kubevirt_vmi_memory_available_bytes{kubernetes_vmi_label_app="db",name="vm-1",namespace="prod",node="w2"} 5.0e+08
kubevirt_vmi_memory_domain_bytes{kubernetes_vmi_label_app="db",name="vm-1",namespace="prod",node="w2"} 1.073741824e+09
kubevirt_vmi_memory_resident_bytes{kubernetes_vmi_label_app="db",name="vm-1",namespace="prod",node="w2"} 4.02653184e+08
kubevirt_vmi_memory_unused_bytes{kubernetes_vmi_label_app="db",name="vm-1",namespace="prod",node="w2"} 1.34217728e+08
kubevirt_vmi_memory_usable_bytes{kubernetes_vmi_label_app="db",name="vm-1",namespace="prod",node="w2"} 1.8e+08
kubevirt_vmi_vcpu_delay_seconds_total{id="0",kubernetes_vmi_label_app="db",name="vm-1",namespace="prod",node="w2"} 0.25
kubevirt_vmi_vcpu_delay_seconds_total{id="1",kubernetes_vmi_label_app="db",name="vm-1",namespace="prod",node="w2"} 0.5
kubevirt_vmi_vcpu_seconds_total{id="0",kubernetes_vmi_label_app="db",name="vm-1",namespace="prod",node="w2",state="running"} 8
kubevirt_vmi_vcpu_seconds_total{id="1",kubernetes_vmi_label_app="db",name="vm-1",namespace="prod",node="w2",state="blocked"} 6
kubevirt_vmi_vcpu_wait_seconds_total{id="0",kubernetes_vmi_label_app="db",name="vm-1",namespace="prod",node="w2"} 0
kubevirt_workqueue_adds_total{name="virt-handler-vm"} 17
"""


def test_vm_of_kubevirt_has_the_name_and_the_metrics_of_libvirt() -> None:
    scrape = labels(KUBEVIRT)
    assert scrape.domains == {
        "prod_vm-1": {
            "cpu_alloc": 2,
            "cpu_cputime": 14.5e9,
            "memory_alloc": 524288,
            "memory_available": 5.0e8 / 1024,
            "memory_rss": 393216,
            "memory_unused": 131072,
            "memory_usable": 1.8e8 / 1024,
        }
    }
    assert scrape.contention is not None
    vcpus = scrape.contention.vcpus["prod_vm-1"]
    assert (vcpus.wait, vcpus.run, vcpus.at_ms) == ({"0": 0.25, "1": 0.5}, {"0": 8.0, "1": 6.0}, 1200.0)


def test_vms_of_one_name_in_two_namespaces_are_two() -> None:
    domains = labels(KUBEVIRT + KUBEVIRT.replace('"prod"', '"test"')).domains
    assert set(domains or ()) == {"prod_vm-1", "test_vm-1"}
    assert {domain["cpu_alloc"] for domain in (domains or {}).values()} == {2}


def test_vcpu_that_changed_its_state_is_counted_once() -> None:
    again = KUBEVIRT.replace('state="blocked"', 'state="running"')
    domains = labels(KUBEVIRT + "".join(f"{line}\n" for line in again.splitlines() if "vcpu_seconds" in line)).domains
    assert (domains or {})["prod_vm-1"]["cpu_alloc"] == 2


def test_line_of_kubevirt_without_a_name_is_ignored() -> None:
    text = "".join(f"{line}\n" for line in KUBEVIRT.splitlines()).replace('namespace="prod",', "")
    assert labels(text).domains == {}


@pytest.mark.parametrize(
    "marker", ["kubevirt_virt_handler_ready_status 1\n", 'kubevirt_workqueue_adds_total{name="virt-handler-vm"} 0\n']
)
def test_virt_handler_without_vms_reports_none(marker: str) -> None:
    assert labels(marker).domains == {}


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ('kubevirt_info{goversion="go1.23"} 1\n', "no metric of libvirt on its page"),
        ('kubevirt_workqueue_adds_total{name="virt-controller-vm"} 1\n', "no metric of libvirt on its page"),
        (KUBEVIRT.replace("status 1", "status 0"), "kubevirt_virt_handler_ready_status is 0"),
    ],
)
def test_vms_are_unknown_on_other_pages_of_kubevirt(page: str, problem: str) -> None:
    scrape = labels(page)
    assert (scrape.domains, scrape.problem) == (None, f"the libvirt exporter does not report them: {problem}")
