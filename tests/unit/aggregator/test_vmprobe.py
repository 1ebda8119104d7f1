"""Pages of vmprobe are read; an invalid line does not affect the rest of its page."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from model.aggregator.exposition import PageError
from model.aggregator.vmprobe import VmprobeReader
from model.aggregator.vmprobe_completeness import CompletenessCheck
from model.aggregator.vmprobe_layout import page_layout
from model.aggregator.vmprobe_names import PageNames, Place, pack_places, split_name
from model.aggregator.vmprobe_page import parse_page
from model.samples import Scrape
from tests.conftest import SHARED

CAPTURES = SHARED / "captures"
needs_captures = pytest.mark.skipif(not CAPTURES.is_dir(), reason="needs the shared folder with captured pages")

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
    return VmprobeReader(prefix).read(page)


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


def test_unknown_metric_belongs_to_a_known_domain() -> None:
    assert split_name("domain_a_cpu_b_stat_new_one", {"a_cpu_b"}) == ("a_cpu_b", "stat_new_one")


@given(st.from_regex(r"[a-z0-9_]{1,12}", fullmatch=True).filter(lambda n: not n.startswith("_")))
def test_any_domain_name_is_split_before_a_known_metric(name: str) -> None:
    assert split_name(f"domain_{name}_memory_last_update") == (name, "memory_last_update")


def test_metrics_of_a_longer_prefix_are_ignored() -> None:
    other = PAGE.replace(b"vmprobe_", b"vmprobe2_").replace(b" 2\n", b" 64\n")
    both = read(PAGE + other)
    assert both.node["cpu_total"] == 2
    assert read(PAGE + other, "vmprobe2").node["cpu_total"] == 64


# --- parts of the reader ----------------------------------------------------------------------------


def test_parser_separates_values_unreadable_metrics_and_bad_lines() -> None:
    parsed = parse_page(b'p_a 1\np_b 2\np_b 3\np_c x\np_e 5\np_e 5\np_f 6\np_f{a="b"} 6\nq_d 4\n', "p")
    assert parsed.values == {b"a": 1.0}
    assert parsed.unreadable == {b"b", b"c", b"e", b"f"}
    assert parsed.bad_lines == 1


def test_layout_parses_only_pages_with_its_names_in_its_order() -> None:
    names = [b"global_cpu_user", b"global_cpu_total", b"domain_a_cpu_alloc", b"domain_a_memory_alloc"]
    page = b"".join(b"p_%b %d\n" % (name, k) for k, name in enumerate(names))
    layout = page_layout(page, "p", names, map(split_name, (name.decode() for name in names)), ["a"])
    assert layout is not None
    metrics = ({"cpu_user": 0.0, "cpu_total": 1.0}, {"a": {"cpu_alloc": 2.0, "memory_alloc": 3.0}})
    assert layout.parse(page) == metrics
    lines = page.splitlines(keepends=True)
    for other in (b"".join(lines[:3]), b"".join(lines[::-1]), page + lines[0], page.replace(b" 3", b" NaN"), page[:-1]):
        assert layout.parse(other) is None


@pytest.mark.parametrize("text", ["1,2", "1_0", "", " 1", "1 ", "\t1", "0x10", "nan", "1e999", "1 2", "1;"])
def test_layout_takes_no_text_that_is_not_a_finite_number(text: str) -> None:
    names = [b"global_cpu_user", b"global_cpu_total"]
    layout = page_layout(b"p_%b 1\np_%b 2\n" % (*names,), "p", names, [(None, "cpu_user"), (None, "cpu_total")], [])
    assert layout is not None
    assert layout.parse(f"p_global_cpu_user {text}\np_global_cpu_total 4\n".encode()) is None


@pytest.mark.parametrize("text", ["1", "-1", "+1", "1.", ".5", "01", "1e5", "1.5E+10", "9007199254740993", "1" * 40])
def test_layout_reads_any_form_of_a_number(text: str) -> None:
    names = [b"global_cpu_user", b"global_cpu_total"]
    layout = page_layout(b"p_%b 1\np_%b 2\n" % (*names,), "p", names, [(None, "cpu_user"), (None, "cpu_total")], [])
    assert layout is not None
    metrics = layout.parse(f"p_global_cpu_user {text}\np_global_cpu_total 4\n".encode())
    assert metrics is not None
    assert metrics.node == {"cpu_user": float(text), "cpu_total": 4.0}


def test_layout_ignores_what_is_between_the_lines_of_the_probe_unless_a_value_is_cut() -> None:
    page = b"other 1\n# TYPE p_a untyped\np_global_cpu_user 1\n# TYPE p_b untyped\np_global_cpu_total 2\nlast 3\n"
    names = [b"global_cpu_user", b"global_cpu_total"]
    layout = page_layout(page, "p", names, [(None, "cpu_user"), (None, "cpu_total")], [])
    assert layout is not None
    metrics = layout.parse(page.replace(b"other 1", b"others 17\nmore 2").replace(b"user 1", b"user 123"))
    assert metrics is not None
    assert metrics.node["cpu_user"] == 123.0
    # What is between them is shorter or longer by a digit.
    for changed in (page.replace(b"untyped\np_global_cpu_t", b"gauge\np_global_cpu_t"), page.replace(b"last", b"1")):
        assert layout.parse(changed) is None


def test_completeness_check_refuses_missing_metrics_of_a_present_machine_once() -> None:
    check = CompletenessCheck(b"p_")
    one: dict[bytes, Place | None] = {b"x": (None, "x")}
    names: dict[bytes, Place | None] = {**one, b"y": (None, "y"), b"a": ("vm", "a"), b"unused": None}
    check.check(names, 1.0)
    check.check({**one, b"y": (None, "y")}, 2.0)  # the VM has left
    with pytest.raises(PageError, match="1 metrics"):
        check.check(one, 3.0)
    with pytest.raises(PageError, match="1 metrics"):
        check.check(one, 3.0)  # the same page again
    check.check(one, 4.0)
    check.check(names, 5.0)
    check.check(one, 6.0)  # optional from now on


@pytest.mark.parametrize("name", [b"domain_a_cpu_alloc", b"domain_a b_cpu_alloc", b""])
def test_names_are_packed_without_loss(name: bytes) -> None:
    places = {b"global_cpu_user": (None, "cpu_user"), name: ("a", "cpu_alloc"), b"other": None}
    packed = pack_places(places, b"p_")
    assert isinstance(packed, PageNames) == (name == b"domain_a_cpu_alloc")
    assert list((packed.places() if isinstance(packed, PageNames) else packed).items()) == list(places.items())


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


def test_merged_names_leave_a_vm_whose_metrics_are_unknown() -> None:
    """The probe deletes "-" from names: vm-1 and vm1 are one name, and their values may be equal."""
    lines = PAGE.splitlines(keepends=True)
    merged = b"".join(line for line in lines if line.startswith(b"vmprobe_domain_vm1_"))
    domains = read(PAGE + merged).domains
    assert domains is not None
    assert domains["vm1"] == {}
    assert "cpu_alloc" in domains["vm_two"]


def test_line_with_labels_does_not_override_the_size_of_the_node() -> None:
    with pytest.raises(PageError, match="global_cpu_total is missing"):
        read(PAGE + b'vmprobe_global_cpu_total{cpu="all"} 1e9\n')


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
def test_invalid_line_is_skipped_and_counted(line: bytes) -> None:
    reader = VmprobeReader("vmprobe")
    scrape = reader.read(line + b"\n" + PAGE)
    assert scrape == read(PAGE)
    assert reader.bad_lines == 1


def test_other_metrics_are_ignored() -> None:
    noise = b'# HELP x y\n# TYPE x untyped\nnode_load1 0.5\ngo_info{version="go1"} 1\n\n!!!\n'
    reader = VmprobeReader("vmprobe")
    assert reader.read(noise + PAGE + noise) == read(PAGE)
    assert reader.bad_lines == 0


def test_domain_that_has_just_started_is_omitted() -> None:
    scrape = read(PAGE + b"vmprobe_domain_late1_sched_runtime 0\n")
    assert scrape.domains is not None
    assert set(scrape.domains) == {"vm1", "vm_two"}


@pytest.mark.parametrize("page", [b"", b"\n", b"<html>no</html>\n", b"node_load1 1\n", b"\x00\xff" * 100])
def test_page_without_metrics_of_the_probe_is_refused(page: bytes) -> None:
    with pytest.raises(PageError):
        read(page)


def test_truncated_page_is_refused_or_ends_after_a_complete_vm() -> None:
    """After a complete page, each beginning of the next one is refused unless it ends after a complete VM."""
    later = PAGE.replace(b"1795357894930", b"1795357897930")
    for length in range(len(later)):
        reader = VmprobeReader("vmprobe")
        reader.read(PAGE)
        try:
            scrape = reader.read(later[:length])
        except PageError:
            continue
        # VMs on the page are complete, and no number is truncated.
        assert scrape.domains is not None
        whole = read(later).domains or {}
        for name, metrics in scrape.domains.items():
            assert metrics == whole[name]


def test_missing_metrics_are_refused_once_and_then_optional() -> None:
    reader = VmprobeReader("vmprobe")
    reader.read(PAGE)
    without = PAGE.replace(b"vmprobe_domain_vm1_memory_unused 451844\n", b"")
    later = without.replace(b"1795357894930", b"1795357897930")
    for _ in range(3):  # a file that stays incomplete
        with pytest.raises(PageError, match="1 metrics"):
            reader.read(without)
    scrape = reader.read(later)
    assert scrape.domains is not None
    assert "memory_unused" not in scrape.domains["vm1"]
    assert reader.read(later)
    # From then on it is optional.
    for k in range(20):
        page = (PAGE if k % 2 else without).replace(b"1795357894930", b"%d" % (1795357900000 + k))
        assert reader.read(page)


def test_second_truncated_page_is_refused_after_a_complete_one() -> None:
    reader = VmprobeReader("vmprobe")
    reader.read(PAGE)
    for k in range(1, 4):
        complete = PAGE.replace(b"1795357894930", b"%d" % (1795357894930 + 10_000 * k))
        truncated = complete.replace(b"4930\n", b"4931\n").replace(b"vmprobe_domain_vm1_memory_unused 451844\n", b"")
        with pytest.raises(PageError, match="1 metrics"):
            reader.read(truncated)
        assert reader.read(complete) == read(complete)


def test_metrics_that_come_and_go_at_random_are_refused_once_each() -> None:
    rng, reader, refused = random.Random(1), VmprobeReader("vmprobe"), 0
    names = [f"vmprobe_domain_vm{i}_" for i in range(40)]
    for k in range(500):
        lines = [PAGE.splitlines(keepends=True)[i] for i in range(7)]
        lines[0] = b"vmprobe_global_probe_epoch %d\n" % (1795357894930 + k)
        for name in names:
            lines += [f"{name}{metric} 1\n".encode() for metric in ("cpu_alloc", "cpu_cputime", "memory_alloc")]
            if rng.random() < 0.9:
                lines.append(f"{name}memory_unused 1\n".encode())
        try:
            assert len(reader.read(b"".join(lines)).domains or ()) == 40
        except PageError:
            refused += 1
    assert refused <= 40  # once for each of them


@pytest.mark.parametrize("value", [b"NaN", b"+Inf", b"x", b"9\x00"])
def test_vm_with_an_invalid_value_keeps_its_other_metrics(value: bytes) -> None:
    reader = VmprobeReader("vmprobe")
    reader.read(PAGE)
    bad = PAGE.replace(b"vmprobe_domain_vm1_memory_alloc 524288", b"vmprobe_domain_vm1_memory_alloc " + value)
    scrape = reader.read(bad)
    assert set(scrape.domains or {}) == {"vm1", "vm_two"}
    assert "memory_alloc" not in (scrape.domains or {})["vm1"]


def test_vm_without_memory_metrics_is_read() -> None:
    scrape = read(PAGE.replace(b"vmprobe_domain_vm1_memory_alloc 524288\n", b""))
    assert "vm1" in (scrape.domains or {})


def test_metric_with_two_values_is_omitted() -> None:
    scrape = read(PAGE + b"vmprobe_domain_vm1_cpu_cputime 1\n")
    assert "cpu_cputime" not in (scrape.domains or {})["vm1"]
    with pytest.raises(PageError, match="has one valid value"):
        read(PAGE + PAGE)


@pytest.mark.parametrize("epoch", [b"0", b"-5", b"1e300", b"4e18", b"NaN"])
def test_page_with_an_invalid_time_is_refused(epoch: bytes) -> None:
    reader = VmprobeReader("vmprobe")
    reader.read(PAGE)
    for tested in (reader, VmprobeReader("vmprobe")):
        with pytest.raises(PageError):
            tested.read(PAGE.replace(b"1795357894930", epoch))


@pytest.mark.parametrize(
    "line",
    [
        b"vmprobe_x{" + b",".join(b'a%d="\\\\"' % i for i in range(100_000)) + b"} 1\n",
        b"vmprobe_domain_a" + b"_cpu_x" * 200_000 + b" 1\n",
        b"vmprobe_1  1\n" * 49_000,
        b"vmprobe_domain_vm1_cpu_" + b"y" * 5000 + b" 1\n",
    ],
    ids=["labels", "sections", "unusual lines", "long name"],
)
def test_hostile_page_is_parsed_in_limited_time(line: bytes) -> None:
    import time

    start = time.process_time()
    scrape = read(PAGE + line)
    assert scrape.domains == read(PAGE).domains
    assert time.process_time() - start < 20  # without limits: minutes, or all memory


def test_domain_whose_metrics_all_disappear_has_left() -> None:
    reader = VmprobeReader("vmprobe")
    reader.read(PAGE)
    left = b"".join(line for line in PAGE.splitlines(keepends=True) if b"vm_two" not in line)
    scrape = reader.read(left)
    assert set(scrape.domains or ()) == {"vm1"}


@needs_captures
@pytest.mark.parametrize(
    "name", ["vmprobe_01_idle.prom", "node_exporter_with_vmprobe.txt", "node_exporter_with_vmprobe_2.txt"]
)
def test_captured_page_is_read_as_the_reference_parser_reads_it(name: str) -> None:
    page = (CAPTURES / name).read_bytes()
    assert flat(read(page)) == by_reference(page)


@needs_captures
def test_captured_page_contains_all_metrics_that_the_original_extracted() -> None:
    extracted = json.loads((CAPTURES / "vmaggreg_extracted.json").read_bytes())
    scrape = read((CAPTURES / "vmprobe_01_idle.prom").read_bytes())
    # The original cut two names at their underscore: memory_last_update and memory_hugetlb_pgfail.
    whole = {"last": "last_update", "hugetlb": "hugetlb_pgfail"}
    for domain, sections in extracted["domain"].items():
        names = {f"{section}_{whole.get(name, name)}" for section, metrics in sections.items() for name in metrics}
        assert names == set((scrape.domains or {})[domain])


def flat(scrape: Scrape) -> dict[str, float]:
    metrics_by_name = {f"global_{name}": value for name, value in scrape.node.items()}
    for domain, metrics in (scrape.domains or {}).items():
        metrics_by_name |= {f"domain_{domain}_{name}": value for name, value in metrics.items()}
    return metrics_by_name


def by_reference(page: bytes, prefix: str = "vmprobe_") -> dict[str, float]:
    samples = {
        sample.name.removeprefix(prefix): float(sample.value)
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
        if sample.name.startswith(prefix)
    }
    starting = {
        name
        for name in samples
        if (match := re.match(r"domain_(late\d+)_", name)) and f"domain_{match[1]}_cpu_alloc" not in samples
    }
    return {name: value for name, value in samples.items() if name not in starting and value - value == 0}


@needs_captures
def test_fast_path_and_parser_read_captured_pages_alike() -> None:
    """A reader of successive pages of a probe against a new reader for each page."""
    reader = VmprobeReader("vmprobe")
    for path in sorted(CAPTURES.glob("vmprobe_[01]*.prom")):
        page = path.read_bytes()
        page += b"" if page.endswith(b"\n") else b"\n"
        assert reader.read(page) == read(page)
        assert reader.read(page) == read(page)


def test_fast_path_and_parser_read_damaged_pages_alike() -> None:
    rng = random.Random(5)
    for _ in range(3000):
        reader = VmprobeReader("vmprobe")
        reader.read(PAGE)
        page = bytearray(PAGE)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(page))
            change = rng.choice(
                (b" ", b"\n", b"\t", b"\r", b"_", b"1", b"NaN", b"+Inf", b"{", b"#", b"\xd9\xa1", b"\x0b", b"")
            )
            page[at : at + rng.choice((0, 1))] = change
        outcomes = []
        for tested in (reader, VmprobeReader("vmprobe")):
            try:
                outcomes.append(tested.read(bytes(page)))
            except PageError:
                outcomes.append(None)
        # Only a reader of the page before can refuse a page with missing metrics.
        assert outcomes[0] is None or outcomes[0] == outcomes[1], bytes(page)


VALUES = st.one_of(
    st.integers(0, 2**63).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["NaN", "+Inf", "-Inf", "1e5", "1.5E+10", "0"]),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["usertime", "systemtime", "idle", "iowait"]), VALUES, st.integers(0, 3)), max_size=12
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
    metrics, reference = flat(read(page)), by_reference(page)
    # The reference uses the last of several lines of one name.
    assert metrics.keys() == reference.keys() or len({m for m, _, _ in samples}) < len(samples)
    for name in {f"domain_vm1_cpu_{m}" for m, _, _ in samples if [x for x, _, _ in samples].count(m) == 1}:
        assert metrics.get(name) == reference.get(name)


def test_page_with_random_bytes_is_read_or_refused() -> None:
    rng = random.Random(3)
    for _ in range(400):
        page = bytearray(PAGE)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(page))
            page[at : at + rng.choice((0, 1, 4))] = rng.choice(
                (b"", b"\xff", b"{", b'"', b"\n", b" ", b"_", b"\x00", b"1e999")
            )
        reader = VmprobeReader("vmprobe")
        try:
            for metrics in (reader.read(bytes(page)).domains or {}).values():
                assert all(value - value == 0 for value in metrics.values())
        except PageError as error:
            assert "\n" not in str(error)
