"""Which feedback a slice uses when nodes are late, catch up, are silent or start again, and what is saved of it."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from model.estimator.checkpoint_format import FleetCheckpoint
from model.estimator.checkpoints import CheckpointFile
from model.estimator.fleet import Fleet, NoPeers
from model.feedback import Feedback, FleetModel, ResourceCounts, SliceCounts
from model.publishers.prometheus import EstimatorCounts
from tests.unit.estimator.support import Clock

NODES = ("a", "b", "c")
RISK = 0.05
WAIT_S = 10.0
SPREAD = (0.1, 0.2, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0)


def counts_of(full: bool, seed: int = 0) -> SliceCounts:
    """A node whose shares are no binary fractions, so that their order in a sum is visible."""
    shares = tuple(share * (1 + seed / 7) for share in SPREAD)
    one = ResourceCounts(1.0, float(full), (20.0,) * 8, shares, shares, 4.0 + seed, 10.0, 10.0 + seed)
    return SliceCounts(one, one)


def model_of(*slices: Sequence[SliceCounts]) -> FleetModel:
    model = FleetModel(RISK, RISK)
    for counts in slices:
        model.update(counts)
    return model


class Nodes:
    """Nodes that are computed when the test says so."""

    def __init__(self, folder: Path, *, first: int = 0, peers: object = None, nodes: Sequence[str] = NODES) -> None:
        self.folder = folder
        self.peers = peers or NoPeers()
        self.nodes = nodes
        self.upcoming = dict.fromkeys(nodes, first)
        self.clock = Clock()
        self.checkpoints: CheckpointFile | None = None
        self.start()

    def start(self, last: Mapping[str, tuple[int, SliceCounts]] | None = None) -> None:
        if self.checkpoints is not None:
            self.checkpoints.close()
        self.checkpoints = CheckpointFile(self.folder / "estimator.sqlite", {}, 1, 1).open()
        self.counts = EstimatorCounts()
        self.fleet = Fleet(
            *(self.nodes, lambda: FleetModel(RISK, RISK), self.checkpoints, self.counts, WAIT_S),
            *(self.peers, self.clock),  # type: ignore[arg-type]
        )
        for node, (number, counts) in (last or {}).items():
            self.upcoming[node] = number + 1
            self.fleet.resume(node, number, counts)

    def advance(self, due: int, *, idle: bool = True, at_once: bool = False) -> int:
        return self.fleet.advance(lambda: self.upcoming, due, lambda: None, idle=idle, at_once=at_once)

    def deliver(self, node: str, number: int, full: bool = False) -> None:
        self.fleet.deliver(node, number, counts_of(full, NODES.index(node)))
        self.upcoming[node] = number + 1


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path)
    yield made
    assert made.checkpoints is not None
    made.checkpoints.close()


def every(full: Iterable[str] = ()) -> list[SliceCounts]:
    return [counts_of(node in full, i) for i, node in enumerate(NODES)]


@pytest.mark.parametrize("order", list(itertools.permutations(NODES)))
def test_order_of_the_threads_changes_nothing(nodes: Nodes, order: Sequence[str]) -> None:
    assert nodes.advance(0) == 0
    for node in order:
        nodes.deliver(node, 0, full=node == "b")
    assert nodes.advance(0) == 0
    assert nodes.fleet.feedback() == Feedback(), "the slice is open until the next one is due"
    assert nodes.advance(1) == 1
    assert nodes.fleet.feedback() == model_of(every("b")).feedback()


def test_node_that_is_being_computed_is_waited_for_while_others_deliver(nodes: Nodes) -> None:
    nodes.advance(5)
    nodes.deliver("a", 0)
    nodes.clock.now_s += WAIT_S - 0.1
    assert nodes.advance(5, idle=False) == 0
    nodes.deliver("b", 0)
    nodes.clock.now_s += WAIT_S - 0.1
    assert nodes.advance(5, idle=False) == 0
    nodes.clock.now_s += 0.1
    assert nodes.advance(5, idle=False) == 1
    assert nodes.fleet.feedback() == model_of(every()[:2]).feedback()


def test_late_node_is_waited_for_once_and_its_old_counts_are_dropped(nodes: Nodes) -> None:
    nodes.advance(9)
    for number in range(3):
        nodes.deliver("a", number)
        nodes.deliver("b", number)
        nodes.clock.now_s += WAIT_S if number == 0 else 0.0
        assert nodes.advance(9, idle=False) == number + 1
    # It catches up three slices at once, in which it was full.
    for number in range(3):
        nodes.deliver("c", number, full=True)
    late = [every()[:2]] * 3
    assert nodes.fleet.feedback() == model_of(*late).feedback()
    nodes.deliver("a", 3)
    nodes.deliver("b", 3)
    nodes.deliver("c", 3, full=True)
    assert nodes.advance(9) == 4
    assert nodes.fleet.feedback() == model_of(*late, every("c")).feedback()
    # It is on time again, and waited for.
    nodes.deliver("a", 4)
    nodes.deliver("b", 4)
    assert nodes.advance(9, idle=False) == 4


def test_slice_of_the_usual_pace_is_closed_without_a_wait_when_the_next_one_is_due(nodes: Nodes) -> None:
    nodes.advance(0)
    nodes.deliver("a", 0)
    nodes.clock.now_s += 1800.0
    assert nodes.advance(1, idle=False) == 1


def test_slices_that_no_node_could_read_are_caught_up_without_a_gap(nodes: Nodes) -> None:
    """The store was unavailable: the fleet learns what it would have learnt, slice by slice."""
    nodes.advance(0)
    for node in NODES:
        nodes.deliver(node, 0, full=True)
    assert nodes.advance(1) == 1
    level = nodes.fleet.feedback().cpu.level
    assert level > 0
    nodes.clock.now_s += 10_000.0
    assert nodes.advance(4) == 1
    assert nodes.fleet.feedback().cpu.level == level
    for number in range(1, 5):
        for node in NODES:
            nodes.deliver(node, number, full=number == 3)
        nodes.advance(4)
    assert nodes.advance(5) == 5
    expected = model_of(every(NODES), every(), every(), every(NODES), every())
    assert nodes.fleet.feedback() == expected.feedback()


def test_silence_does_not_lower_the_level(nodes: Nodes) -> None:
    nodes.advance(0)
    for node in NODES:
        nodes.deliver(node, 0, full=True)
    assert nodes.advance(1) == 1
    before = nodes.fleet.feedback()
    for node in NODES:
        nodes.fleet.deliver(node, 1, SliceCounts())  # no samples
        nodes.upcoming[node] = 2
    assert nodes.advance(2) == 2
    assert nodes.fleet.feedback() == before
    nodes.upcoming = dict.fromkeys(NODES, 8)  # read by nobody, as before the first sample
    assert nodes.advance(10) == 8
    assert nodes.fleet.feedback() == before


def test_slice_without_a_retry_is_closed_when_no_node_is_left(nodes: Nodes) -> None:
    nodes.advance(2)
    nodes.deliver("a", 0)
    assert nodes.advance(2, idle=False, at_once=True) == 0
    assert nodes.advance(2, at_once=True) == 1
    assert nodes.advance(2, at_once=True) == 1, "no node has delivered it"


def test_new_node_learns_from_the_others_and_delays_nobody(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, first=50)
    nodes.start({"a": (99, counts_of(True)), "b": (99, counts_of(True, 1))})
    assert nodes.advance(100) == 100
    assert nodes.fleet.feedback() == model_of([counts_of(True), counts_of(True, 1)]).feedback()
    for number in range(50, 100):
        nodes.deliver("c", number, full=True)
    nodes.deliver("a", 100)
    nodes.deliver("b", 100)
    assert nodes.advance(101, idle=False) == 101
    expected = model_of([counts_of(True), counts_of(True, 1)], every()[:2])
    assert nodes.fleet.feedback() == expected.feedback()


def play(nodes: Nodes, slices: int, restart: Callable[[int, str], bool]) -> list[Feedback]:
    """The feedback that each slice uses; the estimator may be killed after any node of any slice."""
    used, last = [], dict[str, tuple[int, SliceCounts]]()
    for number in range(slices):
        assert nodes.advance(number) == number
        used.append(nodes.fleet.feedback())
        for i, node in enumerate(NODES):
            full = (number * 3 + i) % 5 == 0
            nodes.deliver(node, number, full)
            last[node] = (number, counts_of(full, i))
            if restart(number, node):
                nodes.start(last)
                assert nodes.advance(number) == number
                assert nodes.fleet.feedback() == used[-1]
    return used


@pytest.mark.parametrize("node", NODES)
def test_restart_at_any_moment_changes_no_feedback(tmp_path: Path, node: str) -> None:
    steady = play(Nodes(tmp_path / "a"), 12, lambda *_: False)
    assert len({feedback.cpu.level for feedback in steady}) == 12
    assert play(Nodes(tmp_path / "b"), 12, lambda number, at: at == node and number % 2 == 1) == steady


@pytest.mark.parametrize("data", [b"\x93\xc0", None])
def test_corrupt_state_starts_afresh_with_a_log_line(
    nodes: Nodes, data: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    play(nodes, 3, lambda *_: False)
    assert nodes.checkpoints is not None
    nodes.checkpoints.close()
    with sqlite3.connect(nodes.folder / "estimator.sqlite", isolation_level=None) as file:
        if data is not None:
            file.execute("UPDATE fleet SET data = ?", (data,))
    file.close()
    if data is None:
        with CheckpointFile(nodes.folder / "estimator.sqlite", {}, 1, 1) as other:
            other.save_fleet(FleetCheckpoint(1, {"cpu": {"level": 3.0}}))
    last = {node: (2, counts_of(False, i)) for i, node in enumerate(NODES)}
    nodes.start(last)
    assert nodes.advance(2) == 2
    assert nodes.fleet.feedback() == Feedback()
    (record,) = caplog.records
    assert record.getMessage().startswith("fleet: checkpoint discarded, it starts afresh: ")
    # What the nodes have saved of their last slice is used.
    assert nodes.advance(3) == 3
    assert nodes.fleet.feedback() == model_of(every()).feedback()


def test_state_of_a_clock_that_was_ahead_is_discarded(nodes: Nodes, caplog: pytest.LogCaptureFixture) -> None:
    nodes.advance(50)
    for node in NODES:
        nodes.deliver(node, 0, full=True)
    nodes.upcoming = dict.fromkeys(NODES, 50)
    assert nodes.advance(50) == 50
    nodes.upcoming = dict.fromkeys(NODES, 3)
    assert nodes.advance(5) == 3
    assert nodes.fleet.feedback() == Feedback()
    assert [record.getMessage() for record in caplog.records] == [
        "fleet: its last slice ends in the future; it starts afresh with the stored samples"
    ]


def test_figures_of_the_last_closed_slice_are_metrics(nodes: Nodes) -> None:
    nodes.advance(0)
    assert nodes.counts.fleet is not None
    assert (nodes.counts.fleet.level["cpu"], nodes.counts.fleet.full_share) == (0.0, {})
    for node in NODES:
        nodes.deliver(node, 0, full=node == "a")
    nodes.advance(1)
    feedback = nodes.fleet.feedback()
    assert nodes.counts.fleet.level == {"cpu": feedback.cpu.level, "mem": feedback.mem.level}
    assert nodes.counts.fleet.common == {"cpu": feedback.cpu.common, "mem": feedback.mem.common}
    assert nodes.counts.fleet.full_share == {"cpu": 1 / 3, "mem": 1 / 3}
    assert feedback.cpu.common > 0


# --- other masters ------------------------------------------------------------------------------------------


class ListedPeers:
    """Other masters whose counts the test sets."""

    def __init__(self) -> None:
        self.shared: list[tuple[int, SliceCounts]] = []
        self.others: Sequence[SliceCounts] | None = None

    def share(self, number: int, counts: SliceCounts) -> None:
        self.shared.append((number, counts))

    def counts(self, number: int, wake: Callable[[], object]) -> Sequence[SliceCounts] | None:
        return self.others

    def close(self) -> None:
        pass


def test_counts_of_other_masters_are_read_when_the_next_slice_is_due(tmp_path: Path) -> None:
    peers = ListedPeers()
    nodes = Nodes(tmp_path, peers=peers)
    nodes.advance(0)
    nodes.deliver("a", 0)
    assert nodes.advance(0, idle=False) == 0
    assert peers.shared == []
    nodes.deliver("b", 0)
    nodes.advance(0)
    assert nodes.fleet.feedback() == Feedback()
    nodes.deliver("c", 0)
    nodes.advance(0)
    nodes.advance(0)
    # Also when one node is missing: otherwise one that fails would hide the others from their peers.
    totals = [sum(counts.cpu.nodes for counts in (one,)) for _, one in peers.shared]
    assert (totals, [number for number, _ in peers.shared]) == ([2.0, 3.0], [0, 0])
    assert nodes.advance(1) == 0
    assert nodes.fleet.reading
    peers.others = [counts_of(True, 4), counts_of(True, 5)]
    assert nodes.advance(1) == 1
    assert not nodes.fleet.reading
    assert nodes.fleet.feedback() == model_of([*every(), *peers.others]).feedback()
