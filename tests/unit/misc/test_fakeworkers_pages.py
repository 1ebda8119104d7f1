"""Pages of simulated workers: parseable, complete, deterministic, with counters that only grow."""

from __future__ import annotations

import re

import pytest

from misc.fakeworkers import machines
from misc.fakeworkers.machines import Plan, Shapes, build_worker
from misc.fakeworkers.pages import DIALECTS, RENDERERS, render_libvirt, render_vmprobe
from tests.conftest import SHARED
from tests.support.worker_pages import COUNTERS, NOW_MS, SMALL, plain_samples, samples

#: Metrics of the node that depend on what it does.
OWN = "cpu_|memory_|boot_|time_|pressure_|schedstat_|vmstat_"

PAGES = [
    (Plan(**{**settings, "workers": 1, "vms": 4, "other_metrics": 25}), endpoint)
    for settings in (
        {"format": "vmprobe"},
        {"format": "vmprobe-textfile"},
        *({"format": "labels", "dialect": dialect} for dialect in DIALECTS),
    )
    for endpoint in Plan(**settings).endpoints
]
each_page = pytest.mark.parametrize(
    ("plan", "endpoint"), PAGES, ids=[f"{plan.format}-{plan.dialect}-{endpoint}" for plan, endpoint in PAGES]
)


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return Shapes(1)


@pytest.fixture(scope="module")
def same_shapes() -> Shapes:
    return Shapes(1)


@pytest.fixture(scope="module")
def other_shapes() -> Shapes:
    return Shapes(2)


@each_page
def test_page_is_parseable_and_has_all_vms(plan: Plan, endpoint: str, shapes: Shapes) -> None:
    worker = build_worker(plan, shapes, 0)
    page = RENDERERS[endpoint](worker, NOW_MS)
    values = samples(page)
    assert page.endswith(b"\n")
    assert not page.startswith(b"\n")
    if endpoint != "node":
        for name in worker.names:
            assert any((name if endpoint == "libvirt" else name.replace("-", "")) in line for line in values)
    if plan.format == "vmprobe-textfile" or endpoint == "node":
        others = [name for name in values if re.match(rf"node_(?!{OWN})", name)]
        assert len(others) == plan.other_metrics


@each_page
def test_same_seed_and_time_give_the_same_page(
    plan: Plan, endpoint: str, shapes: Shapes, same_shapes: Shapes, other_shapes: Shapes
) -> None:
    render = RENDERERS[endpoint]
    used, fresh = build_worker(plan, shapes, 0), build_worker(plan, same_shapes, 0)
    render(used, NOW_MS - 60_000)
    render(used, NOW_MS + 60_000)
    page = render(used, NOW_MS)
    assert page == render(fresh, NOW_MS)
    assert page != render(fresh, NOW_MS + 5000)
    assert page != render(build_worker(Plan(workers=1, vms=4, seed=2, format=plan.format), other_shapes, 0), NOW_MS)
    assert page != render(build_worker(plan, shapes, 1), NOW_MS)


@each_page
def test_counters_never_go_back(plan: Plan, endpoint: str, shapes: Shapes) -> None:
    worker = build_worker(plan, shapes, 0)
    # Within a step and into the next, over hours, and across the end of the series of usage.
    turn = NOW_MS + (machines._STEPS * 5000 - (NOW_MS - machines._ORIGIN_MS)) % (machines._STEPS * 5000)
    times = [NOW_MS + 313 * i for i in range(40)] + [NOW_MS + 3_000_000 * i for i in range(1, 60)]
    times += [turn - int(worker.offset_ms[0]) + 7_777 * i for i in range(-5, 5)]
    times = sorted(times)
    pages = [plain_samples(RENDERERS[endpoint](worker, at)) for at in times]
    names = [name for name in pages[0] if COUNTERS.search(name.partition("{")[0])]
    assert len(names) >= 4
    for name in names:
        values = [page[name] for page in pages]
        assert values == sorted(values), name
    grown = [name for name in names if pages[-1][name] > pages[0][name]]
    assert any("cpu" in name for name in grown)


@pytest.mark.parametrize(
    ("capture", "page_format"),
    [("vmprobe_01_idle.prom", "vmprobe"), ("node_exporter_with_vmprobe.txt", "vmprobe-textfile")],
)
def test_every_metric_of_a_captured_page_is_simulated(capture: str, page_format: str, shapes: Shapes) -> None:
    path = SHARED / "captures" / capture
    if not path.exists():
        pytest.skip("no captures here")
    names = re.findall(r"^vmprobe_(global_\w+|domain_vm1_\w+) ", path.read_text(), flags=re.M)
    worker = build_worker(Plan(vms=1, format=page_format), shapes, 0)
    page = render_vmprobe(worker, NOW_MS).decode()
    for name in names:
        simulated = name.replace("vm1", worker.names[0].replace("-", ""))
        assert re.search(rf"^vmprobe_{simulated} \d", page, flags=re.M), name


def test_cpu_time_of_a_vm_grows_by_its_vcpus_at_most_and_the_host_has_some_overhead(shapes: Shapes) -> None:
    worker = build_worker(Plan(vms=20), shapes, 0)
    a, b = (samples(render_vmprobe(worker, NOW_MS + s * 1000)) for s in (0, 60))
    total = 0.0
    for name, vcpus in zip(worker.names, worker.vcpus.tolist(), strict=True):
        start = f"vmprobe_domain_{name.replace('-', '')}_"
        cores = (b[f"{start}cpu_cputime"] - a[f"{start}cpu_cputime"]) / 60e9
        assert 0.001 * vcpus <= cores <= vcpus
        assert b[f"{start}cpu_alloc"] == vcpus
        total += cores
    node = sum(b[f"vmprobe_global_cpu_{kind}"] - a[f"vmprobe_global_cpu_{kind}"] for kind in ("user", "kernel")) / 60e9
    assert total < node < total + 1
    kinds = ("user", "kernel", "idle", "iowait")
    rate = sum(b[f"vmprobe_global_cpu_{kind}"] - a[f"vmprobe_global_cpu_{kind}"] for kind in kinds) / 60e9
    assert rate == pytest.approx(b["vmprobe_global_cpu_total"], rel=0.001)


def test_usage_is_correlated_over_seconds_and_not_over_hours(shapes: Shapes) -> None:
    usage = shapes.time_ns[:, 1:] - shapes.time_ns[:, :-1]
    usage = usage - usage.mean(axis=1, keepdims=True)
    for shape in usage:
        assert 0.8 < (shape[1:] * shape[:-1]).mean() / shape.var() < 0.99
        assert abs((shape[720:] * shape[:-720]).mean() / shape.var()) < 0.2


def test_memory_is_consistent_and_as_old_as_the_guests_statistics(shapes: Shapes) -> None:
    worker = build_worker(Plan(vms=10, stats_period_s=30), shapes, 0)
    pages = [samples(render_vmprobe(worker, NOW_MS + 5000 * i)) for i in range(20)]
    for name in worker.names:
        start = f"vmprobe_domain_{name.replace('-', '')}_memory_"
        unused_at = {}
        for i, page in enumerate(pages):
            assert 0 < page[f"{start}unused"] <= page[f"{start}available"] <= page[f"{start}alloc"]
            assert page[f"{start}rss"] >= page[f"{start}alloc"] * 0.05
            assert 0 <= NOW_MS + 5000 * i - page[f"{start}last_update"] * 1000 < 31_000
            assert unused_at.setdefault(page[f"{start}last_update"], page[f"{start}unused"]) == page[f"{start}unused"]
        assert 3 <= len(unused_at) <= 5
    assert pages[0]["vmprobe_global_memory_available"] < pages[0]["vmprobe_global_memory_total"]


def test_textfile_format_formats_numbers_as_go_does(shapes: Shapes) -> None:
    worker = build_worker(Plan(vms=2, format="vmprobe-textfile", other_metrics=0), shapes, 0)
    lines = render_vmprobe(worker, NOW_MS).decode().splitlines()
    # First the lines of the exporter itself.
    lines = lines[next(i for i, line in enumerate(lines) if line.startswith("# HELP vmprobe_")) :]
    values = [line.split()[1] for line in lines if not line.startswith("#")]
    assert "1.8446744073709552e+19" in values
    assert "1.79535789493e+12" in values
    for value in values:
        assert re.fullmatch(r"\d{1,6}|\d(\.\d*[1-9])?e\+\d\d", value)
    assert lines[0::3] == [f"# HELP {line.split()[0]} Metric read from vmprobe.prom" for line in lines[2::3]]
    assert lines[1::3] == [f"# TYPE {line.split()[0]} untyped" for line in lines[2::3]]


@pytest.mark.parametrize(
    ("dialect", "present", "absent"),
    [
        ("kumina", "libvirt_domain_state_code", "libvirt_domain_memory_stats_rss_bytes"),
        ("tinkoff", "libvirt_domain_memory_stats_actual_balloon_bytes", "libvirt_domain_state_code"),
        ("inovex", "libvirt_domain_memory_stats_current_balloon_bytes", "libvirt_domain_info_vstate"),
        ("kubevirt", "kubevirt_vmi_memory_resident_bytes", "libvirt_"),
    ],
)
def test_dialects_differ_as_the_exporters_do(dialect: str, present: str, absent: str, shapes: Shapes) -> None:
    worker = build_worker(Plan(vms=3, format="labels", dialect=dialect), shapes, 0)
    page = render_libvirt(worker, NOW_MS).decode()
    assert len(re.findall(rf"^{present}{{", page, flags=re.M)) == 3
    assert absent not in page
    worker.stop_vm(1, NOW_MS)
    values = samples(render_libvirt(worker, NOW_MS + 5000))
    stopped = {name: value for name, value in values.items() if worker.names[1] in name}
    if dialect == "tinkoff":
        assert stopped[f'libvirt_domain_info_vstate{{"domain": "{worker.names[1]}"}}'] == 5
        assert stopped[f'libvirt_domain_memory_stats_rss_bytes{{"domain": "{worker.names[1]}"}}'] == 0
    else:
        assert not stopped


def test_time_before_the_start_of_a_worker_is_an_error(shapes: Shapes) -> None:
    with pytest.raises(ValueError, match="is not started yet"):
        render_vmprobe(build_worker(SMALL, shapes, 0), machines._ORIGIN_MS)


def test_worker_without_vms_has_a_page(shapes: Shapes) -> None:
    values = samples(render_vmprobe(build_worker(Plan(vms=0), shapes, 0), NOW_MS))
    assert "vmprobe_global_cpu_total" in values
    assert not any("domain" in name for name in values)
