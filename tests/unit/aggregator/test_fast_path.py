"""The fast path of pages and rates gives what the parser and the rates of single domains give, bit by bit."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from model.aggregator import vmprobe
from model.aggregator.exposition import PageError
from model.aggregator.label_lines import LabelledMetrics, LabelLines
from model.aggregator.limits import PageLimits
from model.aggregator.node_clock import ClockBehind
from model.aggregator.rates import NodeRates
from model.aggregator.vmprobe import VmprobeReader
from model.machine_table import MachineTable
from model.samples import Scrape
from model.store.influxdb_lines import encode_lines
from model.store.sqlite_blocks import decode_sample, encode_block, encode_layout

_CORES = 64
_START_MS = 1_790_000_000_000
_COUNTERS = (
    *("cpu_cputime", "sched_runtime", "sched_waittime", "sched_timeslices"),
    *("stat_minflt", "stat_majflt", "stat_cminflt", "stat_cmajflt"),
)


class Simulation:
    """A node whose VMs do what they like."""

    def __init__(self, rng: random.Random, textfile: bool, mode: str) -> None:
        self.rng = rng
        self.mode = mode
        self.textfile = textfile
        self.at_ms = _START_MS
        self.node = {"cpu_user": 5e15, "cpu_kernel": 1e15, "cpu_idle": 7e15, "cpu_iowait": 1e12}
        self.vms: dict[str, dict[str, float]] = {}
        self.rate: dict[str, float] = {}
        self.lacking: dict[str, set[str]] = {}
        for _ in range(rng.randint(0, 5)):
            self.arrive()
        self.waits = rng.random() < 0.5

    def arrive(self) -> None:
        rng = self.rng
        name = f"vm{rng.randrange(10**6)}"
        alloc = rng.choice((2**20, 2**21, 2**22))
        vm = {name: float(rng.randrange(10**15)) for name in _COUNTERS}
        vm |= {"cpu_alloc": float(rng.choice((1, 2, 4))), "memory_alloc": float(alloc)}
        vm |= {"memory_rss": alloc * 0.7, "memory_available": alloc - 20000.0, "memory_unused": alloc * 0.5}
        vm |= {"stat_rss": 1e5, "stat_rsslim": 1.8e19, "stat_vsize": 4e9, "memory_last_update": self.at_ms / 1000}
        vm |= {"perf_hwcpucycles": 5e9, "perf_hwinstructions": 4e9, "perf_other": 1.0, "cpu_systemtime": 12.0}
        self.vms[name], self.rate[name] = vm, rng.random() * vm["cpu_alloc"] * 1.4
        self.lacking[name] = set(rng.sample(sorted(vm), rng.choice((0, 0, 0, 1, 3))))
        if self.mode != "damage":
            self.lacking[name] -= {"cpu_alloc", "cpu_cputime", "memory_alloc"}

    def step(self) -> None:
        rng = self.rng
        elapsed_ms = rng.choice((5000, 5000, 5000, 7000, 60000))
        self.at_ms += elapsed_ms
        busy = 0.0
        for name, vm in self.vms.items():
            used = self.rate[name] * elapsed_ms * 1e6 * rng.random()
            busy += used
            vm["cpu_cputime"] += float(int(used))
            run = rng.choice((0.0, 0.01, 0.95)) if self.waits else 0.01
            vm["sched_runtime"] += float(int(used * run))
            vm["sched_waittime"] += float(rng.randrange(10**8))
            for counter in _COUNTERS[3:]:
                vm[counter] += rng.randrange(1000)
            vm["memory_unused"] = float(int(vm["memory_alloc"] * rng.random() * 0.9))
            vm["memory_available"] = vm["memory_alloc"] - rng.choice((20000.0, 20000.0, 80000.0))
            vm["perf_hwinstructions"] = float(rng.choice((0, 10**9, 3 * 10**9)))
            vm["memory_last_update"] = float(self.at_ms // 1000)
        self.node["cpu_user"] += float(int(busy))
        self.node["cpu_idle"] += float(int(_CORES * elapsed_ms * 1e6 - busy))
        if self.mode != "calm" and self.vms and rng.random() < 0.3:
            self.happen(rng.choice(list(self.vms)), elapsed_ms)
        if rng.random() < (0.1 if self.mode == "damage" else 0.02):
            self.arrive()

    def happen(self, name: str, elapsed_ms: int) -> None:  # noqa: PLR0912  # a case is an event
        rng, vm = self.rng, self.vms[name]
        match rng.randrange(15):
            case 13 | 14:
                self.lacking[name] ^= {"memory_unused"}
            case 0:
                del self.vms[name]
            case 1:
                vm |= dict.fromkeys(_COUNTERS, 0.0)
            case 2:
                vm["memory_alloc"] = float(rng.choice((2**18, 2**19, 2**20, 2**22, 2**50)))
            case 3:
                vm["cpu_alloc"] = float(rng.choice((0, 1, 2, 8, 10**6)))
            case 4:
                vm["memory_unused"] = rng.choice((-1.0, 2.0**40))
            case 5:
                self.node["cpu_user"] -= 1e15
            case 6:
                self.node["cpu_user"] += elapsed_ms * 1e8
            case 7:
                vm["cpu_cputime"] += 1e15
            case 8:
                self.rate = dict.fromkeys(self.rate, 0.0)
            case 9:
                self.rate = {name: rng.random() for name in self.rate}
            case 10:
                self.lacking[name] = set(rng.sample(sorted(vm), 3))
            case 11:
                vm["sched_waittime"] += 1e12
            case 12:
                self.at_ms -= rng.choice((0, elapsed_ms, 100))

    def page(self) -> bytes:
        rng = self.rng
        node = {"probe_epoch": float(self.at_ms), "probe_delay": 5000.0, "cpu_total": float(_CORES), **self.node}
        node |= {"memory_total": 2.0**28, "memory_available": 2.0**27, "sched_runtime": 0.0, "sched_waittime": 0.0}
        values = {f"p_global_{name}": value for name, value in node.items()}
        for name, vm in self.vms.items():
            values |= {f"p_domain_{name}_{k}": v for k, v in vm.items() if k not in self.lacking[name]}
        form = repr if self.textfile else lambda value: str(int(value))
        lines = [f"{name} {form(value)}" for name, value in values.items()]
        if self.mode == "damage" and rng.random() < 0.2:
            self.damage(lines)
        if self.textfile:
            start = [f"node_load{i} 0.5" for i in range(rng.randint(1, 3))]
            start += [
                f"node_pressure_cpu_waiting_seconds_total {self.at_ms / 1e4}",
                f"node_time_seconds {self.at_ms / 1e3}",
            ]
            typed = [line for name in sorted(lines) for line in (f"# TYPE {name.partition(' ')[0]} untyped", name)]
            lines = [*start, *typed, "q_last 1"]
        page = "\n".join(lines) + "\n"
        return page.encode()[: -rng.randint(1, 400)] if self.mode == "damage" and rng.random() < 0.05 else page.encode()

    def damage(self, lines: list[str]) -> None:
        rng = self.rng
        at = rng.randrange(len(lines))
        name, _, value = lines[at].partition(" ")
        match rng.randrange(7):
            case 0:
                lines[at] = f"{name} {rng.choice(('NaN', '+Inf', 'x', '1_0', ' 1', '', '1e999', '-5', '1,2'))}"
            case 1:
                lines.append(lines[at])
            case 2:
                del lines[at]
            case 3:
                lines[at] = f'{name}{{a="b"}} {value}'
            case 4:
                lines[at] = f"{name} {value} 12345"
            case 5:
                rng.shuffle(lines)
            case 6:
                lines.insert(at, "other_metric 5")


def outcome(reader: VmprobeReader, rates: NodeRates, page: bytes, received_ms: float, *, fast: bool) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        if not fast:
            patch.setattr(vmprobe, "page_layout", lambda *_: None)
        try:
            scrape = reader.read(page, received_ms)
        except PageError as error:
            return str(error), None
    assert fast or not isinstance(scrape.domains, MachineTable)
    try:
        update = rates.update(scrape)
    except ClockBehind as error:
        return str(error), scrape
    return update, scrape


@pytest.mark.parametrize("textfile", [False, True])
@pytest.mark.parametrize("mode", ["calm", "events", "damage"])
def test_fast_and_slow_path_give_the_same_samples_of_random_pages(textfile: bool, mode: str) -> None:
    paths: Counter[str] = Counter()
    for seed in range(25):
        rng = random.Random(seed)
        simulation = Simulation(rng, textfile, mode)
        readers = [VmprobeReader("p"), VmprobeReader("p")]
        rates = [NodeRates("http://w/"), NodeRates("http://w/")]
        for _ in range(25):
            simulation.step()
            page = simulation.page()
            received_ms = simulation.at_ms + 10.0
            (fast, seen), (slow, _) = (outcome(readers[i], rates[i], page, received_ms, fast=i == 0) for i in range(2))
            assert fast == slow, page
            assert readers[0].bad_lines == readers[1].bad_lines
            if isinstance(fast, str) or fast.sample is None:
                continue
            paths["pages"] += isinstance(seen.domains, MachineTable)
            paths["rates"] += isinstance(fast.sample.domains, MachineTable)
            paths["waits"] += rates[0]._waits._steady is not None
            encoded = [encode_block(update.sample) for update in (fast, slow)]
            texts = [
                encode_layout(update.sample, layout) for update, (layout, _) in zip((fast, slow), encoded, strict=True)
            ]
            assert texts[0] == texts[1]
            assert encoded[0][1] == encoded[1][1]
            assert decode_sample("http://w/", fast.sample.time_ms, *encoded[0]) == fast.sample
            lines = [sorted(map(sorted, encode_lines(update.sample, ()))) for update in (fast, slow)]
            assert lines[0] == lines[1]
    # The comparison is worth something only where the fast path is taken.
    assert min(paths["pages"], paths["rates"], paths["waits"]) > {"calm": 150, "events": 60, "damage": 20}[mode], paths


def test_table_reads_as_a_mapping_of_dictionaries() -> None:
    scrape: Scrape | None = None
    reader = VmprobeReader("p")
    simulation = Simulation(random.Random(3), False, "calm")
    while not simulation.vms:
        simulation.arrive()
    page = simulation.page()
    plain = reader.read(page)
    scrape = reader.read(page)
    assert isinstance(scrape.domains, MachineTable)
    assert scrape == plain
    assert list(scrape.domains) == list(plain.domains or {})
    assert scrape.domains.to_dict() == dict(scrape.domains)
    with pytest.raises(KeyError):
        scrape.domains["another"]


def test_lines_with_labels_are_read_as_by_a_reader_without_a_page_before() -> None:
    metrics = LabelledMetrics({"m_a", "m_b", "m_bc"})
    fast = 0
    for seed in range(300):
        rng = random.Random(seed)
        lines = [f'{name}{{vm="v {i}",x="\\"{i}"}}' for i in range(4) for name in ("m_a", "m_b", "other", "# TYPE m_a")]
        lines += ["m_bc", 'm_d{vm="v"}'] if rng.random() < 0.3 else []
        reader = LabelLines(PageLimits())
        for _ in range(6):
            if rng.random() < 0.4:
                change_lines(rng, lines)
            values = (rng.choice((rng.random() * 1e9, rng.randrange(10**18), 0)) for _ in lines)
            page = "".join(f"{line} {value!r}\n" for line, value in zip(lines, values, strict=True)).encode()
            if rng.random() < 0.3:
                page = page.replace(b"1", rng.choice((b"NaN", b"1_", b"", b" 1", b"+1", b"1e400", b"x", b"\n")), 1)
            fresh = LabelLines(PageLimits())
            seen_before = reader.bad_lines
            layout = reader._layouts.get(metrics)
            fast += layout is not None and layout.values(page, metrics.encoded) is not None
            expected = list(fresh.samples(page, metrics))
            assert repr(list(reader.samples(page, metrics))) == repr(expected), page
            assert reader.bad_lines - seen_before == fresh.bad_lines
    assert fast > 300


def change_lines(rng: random.Random, lines: list[str]) -> None:
    at = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[rng.randrange(len(lines))])
        case 2:
            lines[at] = lines[at].replace("v ", "w")
        case 3:
            rng.shuffle(lines)
        case 4:
            # One line ceases to be a metric, and another one becomes one.
            lines[at], lines[-1] = lines[-1], lines[at]
        case 5:
            lines[at] = rng.choice(("m_a", "m_bb", 'm_b{vm="é"}', "m_a{", 'm_b{x="\\q"}'))
