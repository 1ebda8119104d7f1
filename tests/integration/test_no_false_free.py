"""No fault, lie or gap at the input raises a published figure: the whole chain, with known truth, for every strategy.

Pages of simulated nodes go through the readers, the rates, the store, the slices and the model. In each slice the
published free may exceed neither what was truly free nor what the strategy publishes without the fault.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from misc.fakeworkers.lies import LIES, Liar, Lie, Past
from misc.fakeworkers.machines import Plan, Shapes, Worker, build_worker
from misc.fakeworkers.pages import RENDERERS
from model.aggregator.confirmation import TOLERANCE
from model.aggregator.exposition import PageError
from model.aggregator.libvirt_exporter import LabelReader
from model.aggregator.node_clock import ClockBehind
from model.aggregator.rates import NodeRates
from model.aggregator.recall import last_complete
from model.aggregator.vmprobe import VmprobeReader
from model.estimator.bookings import LastConfigs
from model.estimator.slicing import Calendar, SliceReader, SliceRules
from model.nodemodel import ModelSettings, NodeModel
from model.oversubscriptioncomputation import STRATEGIES
from model.samples import ScrapeSample
from model.slices import RESOURCES
from model.status import NodeStatus
from model.store.sqlite import SqliteStore

NODE = "http://w1/metrics"
SLICE_S, INTERVAL_S, SLICES = 60, 5, 8
#: Of the scrapes in their interval.
OFFSET_S = 2
FIRST = 29_000_000
#: The fault begins and ends within a slice, and fills the windows of two slices.
FAULTY_S = (1.6 * SLICE_S, 5.6 * SLICE_S)
RESTART_S = 2.5 * SLICE_S
#: The last known VMs count for two slices.
RULES = SliceRules(min_samples=4, vm_hold_s=2 * SLICE_S)
#: Of the capacity. CPU: the counters of a node may lack a share of its time, and 50 ms of each interval. Memory: a level
#: that is read less often has other percentiles.
MARGINS = {"cpu": TOLERANCE + 0.05 / INTERVAL_S, "mem": 0.005}
FORMATS = ("vmprobe", "labels")

Figures = dict[tuple[int, str, str], float]


@functools.cache
def shapes_of_load(load: str) -> Shapes:
    """The usage of VMs: most of their vCPUs and memory, or all of their vCPUs in 20 s of each minute."""
    shapes, draw = Shapes(1), np.random.default_rng(1)
    share = draw.uniform(0.8, 0.95, shapes.time_ns.shape)
    if load == "bursts":
        step = np.arange(share.shape[1]) % 12
        share = np.where((step >= 4) & (step < 8), 0.95, 0.1) * np.ones_like(share)
    shapes.time_ns[:, 1:] = np.cumsum((share[:, :-1] * 1e6).astype(np.int64) * 5000, axis=1)
    shapes.memory = draw.uniform(0.80, 0.85, shapes.memory.shape).astype(np.float32)
    shapes.resident = draw.uniform(0.90, 0.92, shapes.memory.shape).astype(np.float32)
    return shapes


def worker_of(format_: str, load: str) -> Worker:
    plan = Plan(
        workers=1,
        vms=1 if load == "single" else 5,
        seed=3,
        format=format_,
        dialect="tinkoff",
        other_metrics=0,
        probe_delay_ms=0,
    )
    worker = build_worker(plan, shapes_of_load(load), 0)
    if load == "bursts":
        # The bursts of all VMs begin and end at the time of a scrape.
        worker.offset_ms = np.full_like(worker.offset_ms, -1000 * OFFSET_S)
        worker.__post_init__()
    return worker


class Chain:
    """One node: pages in, samples out."""

    def __init__(self, worker: Worker, store: SqliteStore) -> None:
        self.worker = worker
        self.store = store
        self.restart()

    def restart(self) -> None:
        """Start the aggregator again; the store has the samples."""
        self._vmprobe, self._labels = VmprobeReader("vmprobe"), LabelReader()
        self._rates = NodeRates(NODE, lambda: last_complete(self.store, NODE))

    def scrape(self, at_s: float, liar: Liar | None) -> ScrapeSample | None:
        """The sample of a scrape, if there is one."""
        sample = self._scrape(at_s, liar)
        if sample is not None:
            self.store.write([self.store.encode(sample)])
        return sample

    def _scrape(self, at_s: float, liar: Liar | None) -> ScrapeSample | None:
        pages: list[tuple[bytes | None, float]] = []
        for endpoint in self.worker.plan.endpoints:
            delay_s = 0.0 if liar is None else liar.delay_s(endpoint)
            read_s = at_s + delay_s if liar is not None and liar.lie.late else at_s
            page = RENDERERS[endpoint](self.worker, int(read_s * 1000))
            pages.append((page if liar is None else liar.answer(endpoint, page), (at_s + delay_s / 2) * 1000))
        try:
            if self.worker.plan.format == "vmprobe":
                ((page_, received_ms),) = pages
                return None if page_ is None else self._rates.update(self._vmprobe.read(page_, received_ms)).sample
            (node, node_ms), (libvirt, libvirt_ms) = pages
            if node is None:
                return None
            known = (libvirt, libvirt_ms) if libvirt is not None else ()
            return self._rates.update(self._labels.read(node, node_ms, *known)).sample
        except (PageError, ClockBehind):
            return None


#: Decides whether a scrape is lost.
Loses = Callable[[int], bool]


def samples_of(
    folder: Path,
    worker: Worker,
    liar: Callable[[float], Liar | None],
    loses: Loses = lambda _: False,
    *,
    restarted: bool = False,
) -> list[ScrapeSample]:
    """Scrape a worker; the samples are in the store of the folder."""
    store = SqliteStore(folder / "store.sqlite", 10**12)
    chain, samples = Chain(worker, store), []
    for k in range(SLICES * SLICE_S // INTERVAL_S):
        offset_s = float(k * INTERVAL_S + OFFSET_S)
        if restarted and RESTART_S <= offset_s < RESTART_S + INTERVAL_S:
            chain.restart()
        if not loses(k):
            sample = chain.scrape(FIRST * SLICE_S + offset_s, liar(offset_s))
            if sample is not None:
                samples.append(sample)
    store.close()
    return samples


def published(folder: Path) -> tuple[Figures, list[NodeStatus]]:
    """Published free by slice, strategy and resource, and the status after each slice."""
    store = SqliteStore(folder / "store.sqlite", 10**12)
    reader = SliceReader(store, Calendar(SLICE_S, 1), RULES, with_vm_samples=True)
    model, known = NodeModel(ModelSettings(1, tuple(STRATEGIES))), LastConfigs()
    status, figures, statuses = NodeStatus(NODE, "percentile"), {}, []
    for number in range(SLICES):
        finished = reader.read(NODE, FIRST + number, known)
        estimate = model.update(finished)
        status = status.after(finished, estimate)
        statuses.append(status)
        for resource in RESOURCES:
            for name, one in estimate.of(resource).by_strategy.items():
                figures[number, name, resource.name] = one.published if status.of(resource).state == "ok" else 0.0
    store.close()
    return figures, statuses


@dataclass(frozen=True)
class Truth:
    """What one worker really does, and what is published of it without a fault."""

    free: dict[tuple[int, str], float]
    capacity: dict[str, float]
    figures: Figures


_TRUTHS: dict[tuple[str, str], Truth] = {}


@pytest.fixture
def truth_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Truth]:
    def find(format_: str, load: str) -> Truth:
        if (format_, load) not in _TRUTHS:
            worker = worker_of(format_, load)
            folder = tmp_path_factory.mktemp("truth")
            samples = samples_of(folder, worker, lambda _: None)
            figures, statuses = published(folder)
            assert [status.state for status in statuses] == ["ok"] * SLICES
            capacity = {"cpu": float(worker.cores), "mem": worker.memory_total_kib / 1024}
            free: dict[tuple[int, str], float] = {}
            for sample in samples:
                number = sample.time_ms // (SLICE_S * 1000) - FIRST
                for name in ("cpu", "mem"):
                    left = capacity[name] - sample.fields.get(f"{name}_usage", 0.0)
                    free[number, name] = min(free.get((number, name), left), left)
            _TRUTHS[format_, load] = Truth(free, capacity, figures)
        return _TRUTHS[format_, load]

    return find


def excesses(figures: Figures, truth: Truth, *, from_slice: int = 0) -> Iterator[str]:
    """Figures that are higher than the truth and than those without a fault."""
    for (number, strategy, resource), free in figures.items():
        bound = max(truth.free[number, resource], truth.figures[number, strategy, resource])
        bound += truth.capacity[resource] * MARGINS[resource]
        if number >= from_slice and free > bound:
            yield f"slice {number} {strategy} {resource}: {free:.1f} published, {bound:.1f} allowed"


def in_period(liar: Liar) -> Callable[[float], Liar | None]:
    return lambda offset_s: liar if FAULTY_S[0] <= offset_s < FAULTY_S[1] else None


#: Nothing contradicts a page that was always so. Strategies that look at single VMs or at allocations cannot know better.
UNKNOWABLE = {(name, "always") for name in ("vms-missing", "some-vms-missing", "some-vms-still", "alloc-small")}
BY_VM = {"borg", "doa", "rclike"}


@pytest.mark.parametrize(
    ("format_", "load", "when"),
    [
        ("vmprobe", "busy", "in between"),
        ("vmprobe", "busy", "always"),
        ("labels", "busy", "in between"),
        ("labels", "busy", "always"),
        ("vmprobe", "single", "in between"),
        ("vmprobe", "busy", "over a restart"),
    ],
)
@pytest.mark.parametrize("name", LIES)
def test_lie_raises_no_figure(
    name: str, format_: str, load: str, when: str, truth_of: Callable[[str, str], Truth], tmp_path: Path
) -> None:
    truth, liar = truth_of(format_, load), Liar(LIES[name])
    lies = (lambda _: liar) if when == "always" else in_period(liar)
    samples_of(tmp_path, worker_of(format_, load), lies, restarted=when == "over a restart")
    figures, statuses = published(tmp_path)
    if (name, when) in UNKNOWABLE:
        figures = {key: free for key, free in figures.items() if key[1] not in BY_VM}
    assert list(excesses(figures, truth)) == []
    if when != "always":
        assert (statuses[0].state, statuses[-1].state) == ("ok", "ok"), "the node recovers"


def _in_burst(k: int) -> bool:
    """A node of bursts does not respond while it is busy, from its second slice on."""
    return k * INTERVAL_S >= SLICE_S and 20 < k * INTERVAL_S % SLICE_S < 40


@pytest.mark.parametrize(
    ("load", "loses"),
    [
        pytest.param("bursts", _in_burst, id="no response while busy"),
        pytest.param("bursts", lambda k: k % 12 >= 8, id="no response at the end of each slice"),
        pytest.param("busy", lambda k: k % 3 > 0, id="two of three scrapes are lost"),
        pytest.param("busy", lambda k: k * 7919 % 100 < 24, id="a quarter of the scrapes is lost"),
        pytest.param("busy", lambda k: k % 12 >= 3, id="three scrapes in each slice"),
        pytest.param("busy", lambda k: 18 <= k < 54, id="no response for three slices"),
    ],
)
@pytest.mark.parametrize("format_", FORMATS)
def test_lost_scrapes_raise_no_figure(
    format_: str, load: str, loses: Loses, truth_of: Callable[[str, str], Truth], tmp_path: Path
) -> None:
    truth = truth_of(format_, load)
    samples_of(tmp_path, worker_of(format_, load), lambda _: None, loses)
    figures, _ = published(tmp_path)
    assert list(excesses(figures, truth)) == []


def _cut(page: bytes, past: Past, *, in_line: bool) -> bytes:
    """The beginning of a page, another one at each request."""
    lines = page.splitlines(keepends=True)
    kept = 1 + past.number * 7919 % (len(lines) - 1)
    return b"".join(lines[:kept]) + (lines[kept][: len(lines[kept]) // 2] if in_line else b"")


#: Faults of the simulated workers that replace a page; those without a page are lost scrapes.
PAGES = {
    "empty": Lie("", lambda *_: b""),
    "partial": Lie("", functools.partial(_cut, in_line=False)),
    "cut": Lie("", functools.partial(_cut, in_line=True)),
    "stale": Lie("", lambda _, past: past.first),
    "html": Lie("", lambda *_: b"<!DOCTYPE html>\n<html><body>Please log in.</body></html>\n"),
    "garbage": Lie("", lambda _, past: np.random.default_rng(past.number).bytes(65536)),
    "every second one is partial": Lie(
        "", lambda page, past: _cut(page, past, in_line=False) if past.number % 2 else page
    ),
}


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", PAGES)
def test_page_that_is_cut_or_replaced_raises_no_figure(
    name: str, format_: str, truth_of: Callable[[str, str], Truth], tmp_path: Path
) -> None:
    truth = truth_of(format_, "busy")
    samples_of(tmp_path, worker_of(format_, "busy"), in_period(Liar(PAGES[name])))
    figures, statuses = published(tmp_path)
    assert list(excesses(figures, truth)) == []
    assert (statuses[0].state, statuses[-1].state) == ("ok", "ok"), "the node recovers"


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", LIES)
def test_lie_changes_the_page_or_its_delay(name: str, format_: str) -> None:
    """A lie that changes nothing would be harmless: those that only one format can express are listed here."""
    liar, worker, changed = Liar(LIES[name]), worker_of(format_, "busy"), False
    for k in range(4):
        for endpoint in worker.plan.endpoints:
            page = RENDERERS[endpoint](worker, (FIRST * SLICE_S + 5 * k) * 1000)
            changed = changed or liar.delay_s(endpoint) > 0 or liar.answer(endpoint, page) != page
    only_labels = {"libvirt-500", "libvirt-empty", "libvirt-down"}
    only_vmprobe = {"cores-absurd"}
    assert changed == (name not in (only_labels if format_ == "vmprobe" else only_vmprobe))
