"""Pages of real and generated exporters become readings; what is bad costs itself alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from model.aggregator.exposition import PageError
from model.aggregator.libvirt_exporter import LabelPages
from model.aggregator.vmprobe import VmprobePages, split_name
from model.samples import Scrape
from tests.conftest import SHARED

CAPTURES = SHARED / "captures"
needs_captures = pytest.mark.skipif(not CAPTURES.is_dir(), reason="the shared folder with captured pages is not here")

PAGE = b"""\
vmprobe_global_probe_epoch 1795357894930
vmprobe_global_probe_delay 3000
vmprobe_global_cpu_total 2
vmprobe_global_cpu_user 1222450000000
vmprobe_global_cpu_kernel 264320000000
vmprobe_global_memory_total 24684084
vmprobe_global_memory_available 19184052
vmprobe_domain_vm1_cpu_alloc 1
vmprobe_domain_vm1_cpu_cputime 8475916000
vmprobe_domain_vm1_memory_alloc 524288
vmprobe_domain_vm1_memory_unused 451844
vmprobe_domain_vm_two_cpu_alloc 2
vmprobe_domain_vm_two_cpu_cputime 5511836000
vmprobe_domain_vm_two_memory_alloc 786432
"""


def read(page: bytes, prefix: str = "vmprobe") -> Scrape:
    return VmprobePages(prefix).read(page)


# --- names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("global_cpu_user", (None, "cpu_user")),
        ("global_memory_last_update", (None, "memory_last_update")),
        ("domain_vm1_memory_hugetlb_pgfail", ("vm1", "memory_hugetlb_pgfail")),
        ("domain_vm_three_cpu_alloc", ("vm_three", "cpu_alloc")),
        ("domain_db_memory_cpu_alloc", ("db_memory", "cpu_alloc")),
        ("domain_cpu_cpu_cpu_alloc", ("cpu_cpu", "cpu_alloc")),
        ("domain_stat_perf_hwcpucycles", ("stat", "perf_hwcpucycles")),
        ("domain_vm1_memory_something_new", ("vm1", "memory_something_new")),
        ("global_weather_sunny", None),
        ("domain_vm1_weather_sunny", None),
        ("domain__cpu_alloc", None),
        ("elsewhere_cpu_user", None),
        ("global_cpu_", None),
        ("", None),
    ],
)
def test_name_is_split_where_a_known_metric_follows(name: str, split: Any) -> None:
    assert split_name(name) == split


def test_unknown_metric_goes_to_a_domain_that_is_known() -> None:
    assert split_name("domain_a_cpu_b_stat_new_one", {"a_cpu_b": {}}) == ("a_cpu_b", "stat_new_one")


@given(st.from_regex(r"[a-z0-9_]{1,12}", fullmatch=True).filter(lambda n: not n.startswith("_")))
def test_any_domain_name_is_found_again_before_a_known_metric(name: str) -> None:
    assert split_name(f"domain_{name}_memory_last_update") == (name, "memory_last_update")


def test_longer_prefix_is_another_prefix() -> None:
    other = PAGE.replace(b"vmprobe_", b"vmprobe2_").replace(b" 2\n", b" 64\n")
    both = read(PAGE + other)
    assert both.node["cpu_total"] == 2
    assert read(PAGE + other, "vmprobe2").node["cpu_total"] == 64


# --- vmprobe ----------------------------------------------------------------------------------------


def test_page_becomes_node_and_domains() -> None:
    scrape = read(PAGE)
    assert scrape.epoch_ms == 1795357894930
    assert scrape.node["memory_total"] == 24684084
    assert scrape.domains is not None
    assert scrape.domains["vm1"] == {
        "cpu_alloc": 1,
        "cpu_cputime": 8475916000,
        "memory_alloc": 524288,
        "memory_unused": 451844,
    }
    assert set(scrape.domains) == {"vm1", "vm_two"}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"vmprobe_domain_vm1_cpu_usertime 1.4099215e+10", 14099215000.0),
        (b'vmprobe_domain_vm1_cpu_usertime{host="w1"} 7', 7.0),
        (b"vmprobe_domain_vm1_cpu_usertime 7 1795357894930", 7.0),
        (b'vmprobe_domain_vm1_cpu_usertime{host="a b"} 7 1795357894930', 7.0),
        (b"vmprobe_domain_vm1_cpu_usertime   7  ", 7.0),
        (b"vmprobe_domain_vm1_cpu_usertime NaN", None),
        (b"vmprobe_domain_vm1_cpu_usertime +Inf", None),
        (b"vmprobe_domain_vm1_cpu_usertime -Inf", None),
    ],
)
def test_every_legal_form_of_a_sample_is_read(line: bytes, value: float | None) -> None:
    scrape = read(PAGE + line + b"\n")
    assert scrape.domains is not None
    assert scrape.domains["vm1"].get("cpu_usertime") == value


@pytest.mark.parametrize(
    "line",
    [
        b"vmprobe_domain_vm1_cpu_usertime",
        b"vmprobe_domain_vm1_cpu_usertime x",
        b"vmprobe_domain_vm1_cpu_usertime 1_000",
        b"vmprobe_domain_vm1_cpu_usertime 0x10",
        b'vmprobe_domain_vm1_cpu_usertime{host="w1 7',
        b"vmprobe_domain_vm1_cpu-usertime 7",
        b"vmprobe_domain_vm1_\xff\xfe 7",
    ],
)
def test_bad_line_costs_that_line_alone(line: bytes) -> None:
    pages = VmprobePages("vmprobe")
    scrape = pages.read(line + b"\n" + PAGE)
    assert scrape == read(PAGE)
    assert pages.bad_lines == 1


def test_other_metrics_are_passed_over() -> None:
    noise = b'# HELP x y\n# TYPE x untyped\nnode_load1 0.5\ngo_info{version="go1"} 1\n\n!!!\n'
    pages = VmprobePages("vmprobe")
    assert pages.read(noise + PAGE + noise) == read(PAGE)
    assert pages.bad_lines == 0


def test_domain_that_is_only_half_known_is_not_there_yet() -> None:
    scrape = read(PAGE + b"vmprobe_domain_late1_sched_runtime 0\n")
    assert scrape.domains is not None
    assert set(scrape.domains) == {"vm1", "vm_two"}


@pytest.mark.parametrize("page", [b"", b"\n", b"<html>no</html>\n", b"node_load1 1\n", b"\x00\xff" * 100])
def test_page_without_the_probes_metrics_is_a_missed_scrape(page: bytes) -> None:
    with pytest.raises(PageError):
        read(page)


def test_page_that_is_cut_off_anywhere_is_a_missed_scrape_or_loses_nothing_that_was_there() -> None:
    """After a whole page, every prefix of the next one is refused but those that end where a whole VM ends."""
    later = PAGE.replace(b"1795357894930", b"1795357897930")
    for length in range(len(later)):
        pages = VmprobePages("vmprobe")
        pages.read(PAGE)
        try:
            scrape = pages.read(later[:length])
        except PageError:
            continue
        # What is told is told whole, and a number is never cut in two.
        assert scrape.domains is not None
        whole = read(later).domains or {}
        for name, metrics in scrape.domains.items():
            assert metrics == whole[name]


def test_metrics_that_stay_away_are_gone_in_the_end() -> None:
    pages = VmprobePages("vmprobe")
    pages.read(PAGE)
    without = PAGE.replace(b"vmprobe_domain_vm1_memory_unused 451844\n", b"")
    later = without.replace(b"1795357894930", b"1795357897930")
    for _ in range(3):  # a file that was left half written stays so
        with pytest.raises(PageError, match="1 metrics"):
            pages.read(without)
    scrape = pages.read(later)
    assert scrape.domains is not None
    assert "memory_unused" not in scrape.domains["vm1"]
    assert pages.read(later)
    # From now on it is not missed, whether it comes and goes or not.
    for k in range(20):
        page = (PAGE if k % 2 else without).replace(b"1795357894930", b"%d" % (1795357900000 + k))
        assert pages.read(page)


def test_metrics_that_come_and_go_at_random_do_not_hide_the_node() -> None:
    import random

    dice, pages, refused = random.Random(1), VmprobePages("vmprobe"), 0
    names = [f"vmprobe_domain_vm{i}_" for i in range(40)]
    for k in range(500):
        lines = [PAGE.splitlines(keepends=True)[i] for i in range(7)]
        lines[0] = b"vmprobe_global_probe_epoch %d\n" % (1795357894930 + k)
        for name in names:
            lines += [f"{name}{metric} 1\n".encode() for metric in ("cpu_alloc", "cpu_cputime", "memory_alloc")]
            if dice.random() < 0.9:
                lines.append(f"{name}memory_unused 1\n".encode())
        try:
            assert len(pages.read(b"".join(lines)).domains or ()) == 40
        except PageError:
            refused += 1
    assert refused <= 40  # each of them is missed once


@pytest.mark.parametrize("value", [b"NaN", b"+Inf", b"x", b"9\x00"])
def test_figure_that_makes_no_sense_does_not_take_its_vm_away(value: bytes) -> None:
    pages = VmprobePages("vmprobe")
    pages.read(PAGE)
    bad = PAGE.replace(b"vmprobe_domain_vm1_memory_alloc 524288", b"vmprobe_domain_vm1_memory_alloc " + value)
    scrape = pages.read(bad)
    assert set(scrape.domains or {}) == {"vm1", "vm_two"}
    assert "memory_alloc" not in (scrape.domains or {})["vm1"]


def test_vm_that_never_tells_its_memory_is_there() -> None:
    scrape = read(PAGE.replace(b"vmprobe_domain_vm1_memory_alloc 524288\n", b""))
    assert "vm1" in (scrape.domains or {})


def test_figure_that_is_told_twice_differently_is_nobodys() -> None:
    scrape = read(PAGE + b"vmprobe_domain_vm1_cpu_cputime 1\n")
    assert "cpu_cputime" not in (scrape.domains or {})["vm1"]
    assert read(PAGE + PAGE) == read(PAGE)


@pytest.mark.parametrize("epoch", [b"0", b"-5", b"1e300", b"4e18", b"NaN"])
def test_clock_that_shows_no_time_is_a_missed_scrape(epoch: bytes) -> None:
    pages = VmprobePages("vmprobe")
    pages.read(PAGE)
    for reader in (pages, VmprobePages("vmprobe")):
        with pytest.raises(PageError):
            reader.read(PAGE.replace(b"1795357894930", epoch))


@pytest.mark.parametrize(
    "line",
    [
        b"vmprobe_x{" + b",".join(b'a%d="\\\\"' % i for i in range(100_000)) + b"} 1\n",
        b"vmprobe_domain_a" + b"_cpu_x" * 200_000 + b" 1\n",
        b"vmprobe_1  1\n" * 300_000,
        b"vmprobe_domain_vm1_cpu_" + b"y" * 5000 + b" 1\n",
    ],
    ids=["labels", "sections", "unusual lines", "long name"],
)
def test_page_made_to_be_slow_is_not(line: bytes) -> None:
    import time

    start = time.process_time()
    scrape = read(PAGE + line)
    assert scrape.domains == read(PAGE).domains
    assert time.process_time() - start < 20  # it took minutes, or all memory


def test_label_page_that_is_cut_in_a_number_is_not_believed() -> None:
    with pytest.raises(PageError):
        labels("", NODE[:-4])
    assert labels("libvirt_up 1\n" + domain("a", "kumina")[:-3]).domains is None


def test_core_that_goes_leaves_no_false_sum_behind() -> None:
    pages = LabelPages()
    pages.read(NODE, b"", 1.0)
    without = b"".join(line for line in NODE.splitlines(keepends=True) if b'cpu="1"' not in line)
    scrape = pages.read(without, b"", 2.0)
    assert "cpu_user" not in scrape.node
    assert scrape.node["cpu_total"] == 1
    assert "cpu_user" in pages.read(without, b"", 3.0).node


def test_domain_that_leaves_whole_is_gone_at_once() -> None:
    pages = VmprobePages("vmprobe")
    pages.read(PAGE)
    left = b"".join(line for line in PAGE.splitlines(keepends=True) if b"vm_two" not in line)
    scrape = pages.read(left)
    assert set(scrape.domains or ()) == {"vm1"}


@needs_captures
@pytest.mark.parametrize(
    "name", ["vmprobe_01_idle.prom", "node_exporter_with_vmprobe.txt", "node_exporter_with_vmprobe_2.txt"]
)
def test_captured_page_is_read_as_the_reference_parser_reads_it(name: str) -> None:
    page = (CAPTURES / name).read_bytes()
    assert flat(read(page)) == by_reference(page)


@needs_captures
def test_captured_page_tells_all_that_the_original_took_from_one() -> None:
    extracted = json.loads((CAPTURES / "vmaggreg_extracted.json").read_bytes())
    scrape = read((CAPTURES / "vmprobe_01_idle.prom").read_bytes())
    # It cut two names at their underscore: memory_last_update and memory_hugetlb_pgfail.
    whole = {"last": "last_update", "hugetlb": "hugetlb_pgfail"}
    for domain, sections in extracted["domain"].items():
        names = {f"{section}_{whole.get(name, name)}" for section, metrics in sections.items() for name in metrics}
        assert names == set((scrape.domains or {})[domain])


def flat(scrape: Scrape) -> dict[str, float]:
    own = {f"global_{name}": value for name, value in scrape.node.items()}
    for domain, metrics in (scrape.domains or {}).items():
        own |= {f"domain_{domain}_{name}": value for name, value in metrics.items()}
    return own


def by_reference(page: bytes, prefix: str = "vmprobe_") -> dict[str, float]:
    found = {
        sample.name.removeprefix(prefix): float(sample.value)
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
        if sample.name.startswith(prefix)
    }
    half = {
        name
        for name in found
        if (match := re.match(r"domain_(late\d+)_", name)) and f"domain_{match[1]}_cpu_alloc" not in found
    }
    return {name: value for name, value in found.items() if name not in half and value - value == 0}


@needs_captures
def test_page_like_the_last_is_read_like_a_first_one() -> None:
    """The quick way, over the pages of one probe, against a reader that has seen none."""
    reader = VmprobePages("vmprobe")
    for path in sorted(CAPTURES.glob("vmprobe_[01]*.prom")):
        page = path.read_bytes()
        page += b"" if page.endswith(b"\n") else b"\n"
        assert reader.read(page) == read(page)
        assert reader.read(page) == read(page)


def test_page_like_the_last_but_for_anything_is_read_as_a_first_one() -> None:
    import random

    dice = random.Random(5)
    for _ in range(3000):
        reader = VmprobePages("vmprobe")
        reader.read(PAGE)
        page = bytearray(PAGE)
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(page))
            change = dice.choice(
                (b" ", b"\n", b"\t", b"\r", b"_", b"1", b"NaN", b"+Inf", b"{", b"#", b"\xd9\xa1", b"\x0b", b"")
            )
            page[at : at + dice.choice((0, 1))] = change
        outcomes = []
        for one in (reader, VmprobePages("vmprobe")):
            try:
                outcomes.append(one.read(bytes(page)))
            except PageError:
                outcomes.append(None)
        # Whoever has seen the last page may refuse one from which something is missing; else both say the same.
        assert outcomes[0] is None or outcomes[0] == outcomes[1], bytes(page)


VALUES = st.one_of(
    st.integers(0, 2**63).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["NaN", "+Inf", "-Inf", "1e5", "1.5E+10", "0"]),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["usertime", "systemtime", "x", "y_z"]), VALUES, st.integers(0, 3)), max_size=12
    ),
    st.randoms(),
)
def test_generated_page_is_read_as_the_reference_parser_reads_it(samples: list[Any], random: Any) -> None:
    lines = PAGE.decode().splitlines()
    for metric, value, kind in samples:
        form = ("{} {}", '{}{{a="b"}} {}', "{} {} 12345", '{}{{a="b",c="d\\\\n"}} {}')[kind]
        lines.append(form.format(f"vmprobe_domain_vm1_cpu_{metric}", value))
    tail = lines[14:]
    random.shuffle(tail)
    page = ("\n".join(lines[:14] + tail) + "\n").encode()
    ours, reference = flat(read(page)), by_reference(page)
    # Of two lines of one name the last counts here; the order among forms is not the page's.
    assert ours.keys() == reference.keys() or len({m for m, _, _ in samples}) < len(samples)
    for name in {f"domain_vm1_cpu_{m}" for m, _, _ in samples if [x for x, _, _ in samples].count(m) == 1}:
        assert ours.get(name) == reference.get(name)


# --- labels -----------------------------------------------------------------------------------------

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
    return LabelPages().read(node, None if libvirt is None else libvirt.encode(), 1000.0)


def test_node_is_what_is_busy_and_not_what_waits() -> None:
    scrape = labels("")
    assert scrape.node["cpu_total"] == 2
    assert scrape.node["cpu_user"] + scrape.node["cpu_kernel"] == pytest.approx((100.5 + 1 + 20 + 50 + 2) * 1e9)
    assert scrape.node["memory_total"] == 2097152000 / 1024
    assert scrape.epoch_ms == 1000.0


@pytest.mark.parametrize("dialect", ["kumina", "tinkoff", "inovex"])
def test_domain_of_every_dialect(dialect: str) -> None:
    scrape = labels("libvirt_up 1\n" + domain("vm-1", dialect))
    assert scrape.domains is not None
    figures = scrape.domains["vm-1"]
    assert figures["cpu_alloc"] == 2
    assert figures["cpu_cputime"] == 14.5e9
    assert figures["memory_alloc"] == 536870912 / 1024
    assert figures.get("memory_unused") == (None if dialect == "kumina" else 131072)


def test_statistics_of_zero_are_none() -> None:
    text = domain("a", "tinkoff").replace("134217728", "0").replace("536870912", "0")
    figures = (labels(text).domains or {})["a"]
    assert "memory_unused" not in figures
    assert figures["memory_alloc"] == 1073741824 / 1024  # the balloon is not known: what it may have at most


@pytest.mark.parametrize(
    "state", ["libvirt_domain_state_code", "libvirt_domain_info_vstate", "libvirt_domain_info_state"]
)
def test_domain_that_is_shut_off_is_not_there(state: str) -> None:
    off = domain("off", "tinkoff") + f'{state}{{domain="off",state_desc="x"}} 5\n'
    on = domain("on", "tinkoff") + f'{state}{{domain="on",state_desc="x"}} 1\n'
    assert set(labels(off + on).domains or ()) == {"on"}


@pytest.mark.parametrize("page", [None, "", "libvirt_up 0\n", "libvirt_up 0\n" + domain("a", "kumina")])
def test_silence_about_domains_is_not_their_absence(page: str | None) -> None:
    assert labels(page).domains is None


def test_exporter_that_is_up_without_domains_tells_that_there_are_none() -> None:
    assert labels("libvirt_up 1\n").domains == {}


def test_name_with_every_character_that_a_label_can_hold() -> None:
    text = domain("NAME", "kumina").replace("NAME", 'a\\"b\\\\c}d e')
    assert set(labels(text).domains or ()) == {'a"b\\c}d e'}


def test_bad_line_of_a_label_page_costs_that_line_alone() -> None:
    pages = LabelPages()
    bad = 'libvirt_domain_info_virtual_cpus{domain="b"\nlibvirt_domain_info_virtual_cpus{domain="c"} x\n'
    scrape = pages.read(NODE, (bad + domain("a", "kumina")).encode(), 1.0)
    assert set(scrape.domains or ()) == {"a"}
    assert pages.bad_lines == 2


@pytest.mark.parametrize("page", [b"", b"<html></html>", b"node_load1 1\n"])
def test_page_that_is_not_node_exporters_is_a_missed_scrape(page: bytes) -> None:
    with pytest.raises(PageError):
        labels("", page)


@needs_captures
def test_captured_label_pages_are_read() -> None:
    scrape = LabelPages().read(
        (CAPTURES / "node_exporter_with_vmprobe.txt").read_bytes(),
        (CAPTURES / "libvirt_exporter.txt").read_bytes(),
        1.0,
    )
    assert set(scrape.domains or ()) == {"vm1", "vm-two"}
    assert (scrape.domains or {})["vm-two"]["cpu_cputime"] == 8.7e9
    assert scrape.node["cpu_total"] == 2


def test_hostile_pages_of_any_bytes_end_in_a_reading_or_a_missed_scrape(tmp_path: Path) -> None:
    import random

    dice = random.Random(3)
    for _ in range(400):
        page = bytearray(PAGE)
        for _ in range(dice.randint(1, 6)):
            at = dice.randrange(len(page))
            page[at : at + dice.choice((0, 1, 4))] = dice.choice(
                (b"", b"\xff", b"{", b'"', b"\n", b" ", b"_", b"\x00", b"1e999")
            )
        pages = VmprobePages("vmprobe")
        try:
            for metrics in (pages.read(bytes(page)).domains or {}).values():
                assert all(value - value == 0 for value in metrics.values())
        except PageError as error:
            assert "\n" not in str(error)
