"""Pages of node_exporter and of libvirt exporters are read with the names and units of vmprobe."""

from __future__ import annotations

import pytest

from model.aggregator.exposition import PageError
from model.aggregator.libvirt_exporter import LabelReader
from model.samples import Scrape
from tests.conftest import SHARED

CAPTURES = SHARED / "captures"
needs_captures = pytest.mark.skipif(not CAPTURES.is_dir(), reason="needs the shared folder with captured pages")

NODE = b"""\
node_cpu_seconds_total{cpu="0",mode="idle"} 1000
node_cpu_seconds_total{cpu="0",mode="iowait"} 10
node_cpu_seconds_total{cpu="0",mode="user"} 100.5
node_cpu_seconds_total{cpu="0",mode="nice"} 1
node_cpu_seconds_total{cpu="0",mode="system"} 20
node_cpu_seconds_total{cpu="1",mode="user"} 50
node_cpu_seconds_total{cpu="1",mode="steal"} 2
node_cpu_guest_seconds_total{cpu="0",mode="user"} 90
node_memory_MemTotal_bytes 2.097152e+09
node_memory_MemAvailable_bytes 1.048576e+09
"""


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
    return LabelReader().read(node, None if libvirt is None else libvirt.encode(), 1000.0)


def test_cpu_time_of_a_node_excludes_idle_and_iowait() -> None:
    scrape = labels("")
    assert scrape.node["cpu_total"] == 2
    assert scrape.node["cpu_user"] + scrape.node["cpu_kernel"] == pytest.approx((100.5 + 1 + 20 + 50 + 2) * 1e9)
    assert scrape.node["memory_total"] == 2097152000 / 1024
    assert scrape.epoch_ms == 1000.0


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


@pytest.mark.parametrize("page", [None, "", "libvirt_up 0\n", "libvirt_up 0\n" + domain("a", "kumina")])
def test_domains_are_unknown_without_a_valid_page_of_the_exporter(page: str | None) -> None:
    assert labels(page).domains is None


def test_exporter_without_domains_reports_none() -> None:
    assert labels("libvirt_up 1\n").domains == {}


def test_name_with_escaped_characters_is_read() -> None:
    text = domain("NAME", "kumina").replace("NAME", 'a\\"b\\\\c}d e')
    assert set(labels(text).domains or ()) == {'a"b\\c}d e'}


def test_invalid_line_of_a_label_page_is_skipped_and_counted() -> None:
    reader = LabelReader()
    bad = 'libvirt_domain_info_virtual_cpus{domain="b"\nlibvirt_domain_info_virtual_cpus{domain="c"} x\n'
    scrape = reader.read(NODE, (bad + domain("a", "kumina")).encode(), 1.0)
    assert set(scrape.domains or ()) == {"a"}
    assert reader.bad_lines == 2


@pytest.mark.parametrize("page", [b"", b"<html></html>", b"node_load1 1\n"])
def test_page_that_is_not_of_node_exporter_is_refused(page: bytes) -> None:
    with pytest.raises(PageError):
        labels("", page)


@needs_captures
def test_captured_label_pages_are_read() -> None:
    scrape = LabelReader().read(
        (CAPTURES / "node_exporter_with_vmprobe.txt").read_bytes(),
        (CAPTURES / "libvirt_exporter.txt").read_bytes(),
        1.0,
    )
    assert set(scrape.domains or ()) == {"vm1", "vm-two"}
    assert (scrape.domains or {})["vm-two"]["cpu_cputime"] == 8.7e9
    assert scrape.node["cpu_total"] == 2


def test_label_page_truncated_in_a_number_is_refused() -> None:
    with pytest.raises(PageError):
        labels("", NODE[:-4])
    assert labels("libvirt_up 1\n" + domain("a", "kumina")[:-3]).domains is None


def test_cpu_time_is_absent_when_the_cores_change() -> None:
    reader = LabelReader()
    reader.read(NODE, b"", 1.0)
    without = b"".join(line for line in NODE.splitlines(keepends=True) if b'cpu="1"' not in line)
    scrape = reader.read(without, b"", 2.0)
    assert "cpu_user" not in scrape.node
    assert scrape.node["cpu_total"] == 1
    assert "cpu_user" in reader.read(without, b"", 3.0).node
