"""Conversion from a real Prometheus server with known rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model.store import prometheus_server as client
from tests.conftest import strict_json
from tests.support.conversion import Converter, prometheus_arguments, row_of
from tests.support.prometheus import OpenMetrics, prometheus_server


@pytest.fixture
def convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Converter:
    return Converter(tmp_path, capsys)


#: 2024-01-01T00:00:00Z. Two hours from there on, and ten minutes before, scraped every 15 s.
P0 = 1704067200
SCRAPE_S = 15
GB = 2**30
ODD_NAME = 'odd"name\\{1}'


class _Pages:
    """Series whose times are seconds since P0."""

    def __init__(self) -> None:
        self._pages = OpenMetrics(range(P0 - 600, P0 + 7201, SCRAPE_S))

    def add(self, name: str, labels: dict[str, str], value: Callable[[int], float | None]) -> None:
        self._pages.add(name, labels, lambda time_s: value(int(time_s) - P0))

    def text(self) -> str:
        return self._pages.text()


def counter(rate: float, second_hour: float | None = None) -> Callable[[int], float]:
    """A counter that grows by ``rate`` a second, in the second hour by another."""
    later = rate if second_hour is None else second_hour
    return lambda t: 1000.0 + rate * min(t, 3600) + later * max(t - 3600, 0)


def scaled(value: Callable[[int], float], factor: float) -> Callable[[int], float]:
    return lambda t: factor * value(t)


def constant(value: float) -> Callable[[int], float]:
    return lambda t: value


def history() -> str:
    """A node of four CPUs and its domains, and neighbours that must not be counted.

    The node uses 0.5 + 3 x 0.25 (user) + 4 x 0.125 (system) = 1.75 cores; in the second hour one CPU's user
    time grows by 0.75 instead of 0.25: 2.25 cores. Memory: 16 GB, of which 12, then 8 GB are available.
    """
    page = _Pages()
    for instance, job, factor in (("w1:9100", "node", 1.0), ("w1:9100", "again", 1.0), ("w2:9100", "node", 8.0)):
        labels = {"instance": instance, "job": job}
        for cpu in range(4):
            modes = {
                "user": counter(0.5 if cpu == 0 else 0.25, 0.75 if cpu == 3 else None),
                "system": counter(0.125),
                "iowait": counter(0.0625),
                "idle": counter(0.25),
            }
            for mode, value in modes.items():
                page.add("node_cpu_seconds_total", {**labels, "cpu": str(cpu), "mode": mode}, scaled(value, factor))
            # Already inside user: must not be added again.
            page.add("node_cpu_guest_seconds_total", {**labels, "cpu": str(cpu), "mode": "user"}, counter(0.25))
            waiting = {**labels, "cpu": str(cpu)}
            page.add("node_schedstat_waiting_seconds_total", waiting, scaled(counter(0.125), factor))
        page.add("node_pressure_cpu_waiting_seconds_total", labels, scaled(counter(0.25, 1.04), factor))
        page.add("node_pressure_memory_stalled_seconds_total", labels, scaled(counter(0.125, 1.1), factor))
        page.add("node_vmstat_pswpin", labels, scaled(counter(10), factor))
        page.add("node_vmstat_oom_kill", labels, scaled(counter(1 / 1200), factor))
        page.add("node_memory_MemTotal_bytes", labels, constant(16 * GB))
        page.add("node_memory_MemAvailable_bytes", labels, lambda t: (12 if t <= 3600 else 8) * GB)

    here = {"instance": "w1:9177", "job": "libvirt"}

    def while_up(value: Callable[[int], float | None]) -> Callable[[int], float | None]:
        """The exporter does not respond from half past twelve to a quarter to one."""
        return lambda t: None if 1800 <= t < 2700 else value(t)

    def domain(name: str, vcpus: int, gb: int, rate: float, **more: Callable[[int], float | None]) -> None:
        labels = {**here, "domain": name}
        figures: dict[str, Callable[[int], float | None]] = {
            "libvirt_domain_info_virtual_cpus": constant(vcpus),
            "libvirt_domain_info_maximum_memory_bytes": constant(gb * GB),
            "libvirt_domain_info_cpu_time_seconds_total": counter(rate),
            **{f"libvirt_domain_{metric}": value for metric, value in more.items()},
        }
        for metric, value in figures.items():
            page.add(metric, labels, while_up(value))

    def tinkoff(balloon: float, unused: float, rss: float) -> dict[str, Callable[[int], float | None]]:
        return {
            "memory_stats_actual_balloon_bytes": constant(balloon * GB),
            "memory_stats_unused_bytes": constant(unused * GB),
            "memory_stats_rss_bytes": constant(rss * GB),
        }

    domain("tinkoff", 4, 4, 0.75, info_vstate=constant(1), **tinkoff(3, 1, 3.5))
    domain("off", 8, 8, 0.0, info_vstate=constant(5), **tinkoff(8, 0, 0))
    domain("stopped", 2, 2, 0.5, info_vstate=lambda t: 1 if t <= 3600 else 5, **tinkoff(2, 1, 1))
    domain("mute", 1, 1, 0.125, info_vstate=constant(1), **tinkoff(1, 0, 0))
    domain("aged", 1, 2, 0.125, info_vstate=constant(1), **tinkoff(1, 1.5, 1))
    domain("kumina", 2, 2, 0.25, state_code=constant(1), info_memory_usage_bytes=constant(2 * GB))
    balloon = {"memory_stats_current_balloon_bytes": constant(2 * GB), "memory_stats_unused_bytes": constant(GB / 2)}
    domain(ODD_NAME, 1, 2, 0.25, info_state=constant(1), **balloon)

    def vcpus(instance: str, name: str, number: int, wait: float, run: float) -> None:
        for vcpu in range(number):
            for job in ("libvirt", "again"):
                labels = {"instance": instance, "job": job, "domain": name, "vcpu": str(vcpu)}
                page.add("libvirt_domain_vcpu_delay_seconds_total", labels, while_up(counter(wait)))
                page.add("libvirt_domain_vcpu_time_seconds_total", labels, while_up(counter(run)))

    vcpus("w1:9177", "tinkoff", 4, 0.0625, 0.1875)
    vcpus("w1:9100", "kumina", 2, 0.125, 0.125)  # a textfile of node_exporter
    vcpus("w1:9177", "mute", 2, 0.125, 0.125)  # it has one vCPU
    vcpus("w1:9177", ODD_NAME, 1, 0.0, 0.25)  # does not count
    vcpus("w1:9177", "aged", 1, 0.125, 125.0)  # in a wrong unit
    vcpus("w2:9100", "tinkoff", 4, 0.9, 0.1)  # another node
    gone = {**here, "domain": "gone"}
    page.add("libvirt_domain_info_virtual_cpus", gone, while_up(lambda t: 3 if t < 3600 else None))
    page.add("libvirt_up", here, while_up(constant(1)))
    neighbour = {"instance": "w10:9177", "job": "libvirt", "domain": "neighbour"}
    page.add("libvirt_domain_info_virtual_cpus", neighbour, constant(2))
    return page.text()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prometheus server with the history above."""
    with prometheus_server(tmp_path_factory.mktemp("prometheus"), history()) as url:
        yield url


def test_node_has_the_known_rates(convert: Converter, prometheus: str) -> None:
    trace = convert.trace(*prometheus_arguments(prometheus))
    assert trace.config.node_name == "w1:9100"
    assert trace.epoch == [P0 + 3600, P0 + 7200]
    first, second = trace.slices()
    assert (first.cpu.config, first.mem.config) == (4.0, 16384.0)
    assert first.cpu.node.tolist() == pytest.approx([1.75] * 12, abs=1e-5)
    assert second.cpu.node.tolist() == pytest.approx([2.25] * 12, abs=1e-5)
    assert first.mem.node.tolist() == [4096.0] * 12
    assert second.mem.node.tolist() == [8192.0] * 12


def test_domains_of_every_exporter_are_converted(convert: Converter, prometheus: str) -> None:
    """Used memory: Tinkoff 3 - 1 GB, inovex 2 - 0.5 GB, kumina none; 0 unused or more than the balloon: none."""
    second = list(convert.trace(*prometheus_arguments(prometheus)).slices())[1]
    assert second.vms == ("aged", "kumina", "mute", ODD_NAME, "tinkoff")
    assert second.cpu.vm_config.tolist() == [1.0, 2.0, 1.0, 1.0, 4.0]
    assert second.mem.vm_config.tolist() == [2048.0, 2048.0, 1024.0, 2048.0, 4096.0]
    cpu = {name: row_of(second, name)[0] for name in second.vms}
    assert cpu["tinkoff"] == pytest.approx([0.75] * 12, abs=1e-5)
    assert cpu["kumina"] == pytest.approx([0.25] * 12, abs=1e-5)
    assert cpu[ODD_NAME] == pytest.approx([0.25] * 12, abs=1e-5)
    written = strict_json(convert.output.read_bytes())["vm"]
    assert written["tinkoff"]["raw_data"][1]["mem_usage"] == [2048.0] * 12
    assert written["tinkoff"]["raw_data"][1]["mem_rss"] == [3584.0] * 12
    assert written[ODD_NAME]["raw_data"][1]["mem_usage"] == [1536.0] * 12
    for name in ("kumina", "mute", "aged"):
        assert "mem_usage" not in written[name]["raw_data"][1]
    assert "mem_rss" not in written["mute"]["raw_data"][1]
    assert written["aged"]["raw_data"][1]["mem_rss"] == [1024.0] * 12


def test_waits_and_pressure_of_a_node_are_converted(convert: Converter, prometheus: str) -> None:
    first, second = convert.json(*prometheus_arguments(prometheus))["node"]["raw_data"]
    expected = {"psi_cpu": 0.25, "psi_memory": 0.125, "cpu_wait": 0.5, "swap_in": 10.0, "oom_kills": 0.25}
    for name, value in expected.items():
        assert first[name] == pytest.approx([value] * 12, abs=1e-5), name
    # A share of time is clipped; an impossible one is missing, but for the two steps that the last one fills.
    assert second["psi_cpu"] == [1.0] * 12
    assert second["psi_memory"][2:] == [None] * 10
    assert second["cpu_wait"] == pytest.approx([0.5] * 12, abs=1e-5)


def test_waits_of_domains_are_converted(convert: Converter, prometheus: str) -> None:
    """From the libvirt exporter or a textfile of the node; where figures contradict each other, none."""
    vms = {name: vm["raw_data"][1] for name, vm in convert.json(*prometheus_arguments(prometheus))["vm"].items()}
    for name, wait, share in (("tinkoff", 0.25, 0.25), ("kumina", 0.25, 0.5)):
        assert vms[name]["cpu_wait"] == pytest.approx([wait] * 12, abs=1e-5)
        assert vms[name]["cpu_wait_share"] == pytest.approx([share] * 12, abs=1e-5)
    for name in ("mute", ODD_NAME, "aged"):
        assert "cpu_usage" in vms[name]
        assert not {"cpu_wait", "cpu_wait_share"} & vms[name].keys()


def test_domain_that_is_off_or_no_longer_listed_is_absent(convert: Converter, prometheus: str) -> None:
    written = convert.json(*prometheus_arguments(prometheus))
    assert "off" not in written["vm"]
    first, second = (period["vm"] for period in written["node"]["raw_data"])
    assert set(first) - set(second) == {"stopped", "gone"}
    assert written["vm"]["stopped"]["raw_data"][1] == {}
    assert written["vm"]["gone"]["raw_data"][1] == {}


def test_domains_stay_while_their_exporter_does_not_respond(convert: Converter, prometheus: str) -> None:
    """No scrape from 1800 to 2685 s: no rate at 2100, 2400 and 2700 s, whose windows hold one scrape at most."""
    written = convert.json(*prometheus_arguments(prometheus))
    usage = written["vm"]["tinkoff"]["raw_data"][0]["cpu_usage"]
    assert [i for i, sample in enumerate(usage) if sample is None] == [6, 7, 8]
    held = convert.json(*prometheus_arguments(prometheus), "--hold", "3")["vm"]["tinkoff"]["raw_data"][0]["cpu_usage"]
    assert held[6:9] == [held[5]] * 3


def test_time_of_a_sample_is_the_end_of_its_step(convert: Converter, prometheus: str) -> None:
    written = convert.json(*prometheus_arguments(prometheus))
    assert written["node"]["raw_data"][0]["time"] == [P0 + 300 * (i + 1) for i in range(12)]


def test_windows_of_rates_span_four_scrapes(convert: Converter, prometheus: str) -> None:
    written = convert.json(*prometheus_arguments(prometheus), "--step-s", "15")
    assert written["meta"]["rate_s"] == 60
    assert len(written["node"]["raw_data"][0]["time"]) == 240
    assert written["node"]["raw_data"][0]["cpu_usage"][100] == pytest.approx(1.75, abs=1e-5)
    assert convert.json(*prometheus_arguments(prometheus), "--rate-s", "120")["meta"]["rate_s"] == 120


def test_long_periods_are_queried_in_pieces(
    convert: Converter, prometheus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert.json(*prometheus_arguments(prometheus), "--step-s", "60")
    monkeypatch.setattr(client, "MOST_POINTS", 7)
    assert convert.json(*prometheus_arguments(prometheus), "--step-s", "60") == whole


def test_more_points_than_one_query_may_have_are_read(convert: Converter, prometheus: str) -> None:
    """A step of one second from before the first scrape on: 14400 points, where a query may have 11000."""
    period = ["--start", str(P0 - 7200), "--end", str(P0 + 7200), "--step-s", "1"]
    slices = list(convert.trace(*prometheus_arguments(prometheus), *period).slices())
    assert len(slices) == 4
    assert not slices[0].cpu.measured
    assert slices[3].cpu.node.tolist() == pytest.approx([2.25] * 3600, abs=0.6)


def test_libvirt_exporter_is_the_one_named_or_the_one_of_the_host(convert: Converter, prometheus: str) -> None:
    named = convert.trace(*prometheus_arguments(prometheus), "--libvirt-instance", "w10:9177")
    assert named.vms == ("neighbour",)
    line = convert.error(*prometheus_arguments(prometheus), "--libvirt-instance", 'w1"} or up{a="')
    assert "no metric of a libvirt exporter" in line
    other = [*prometheus_arguments(prometheus), "--node-instance", "w2:9100"]
    assert 'no metric of a libvirt exporter with instance=~"w2(:[0-9]+)?"' in convert.error(*other)


def test_unknown_node_is_named(convert: Converter, prometheus: str) -> None:
    arguments = [*prometheus_arguments(prometheus), "--node-instance", "w1\\:9100"]
    assert 'no node_memory_MemTotal_bytes{instance="w1\\\\:9100"}' in convert.error(*arguments)


def test_window_too_short_for_a_rate_is_an_error(convert: Converter, prometheus: str) -> None:
    line = convert.error(*prometheus_arguments(prometheus), "--rate-s", "10")
    assert "no rate of node_cpu_seconds_total" in line
    assert "over 10 s" in line
