"""Keeps the allocation ratios of OpenStack Placement equal to what ScroogeVM publishes of each node."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...common.logs import ProblemLog
from ...common.threads import map_until
from ..settings import PlacementSettings
from .client import PlacementClient, PlacementError, ProviderConflict, ProviderMissing
from .problems import NodeProblems
from .providers import ProviderMap, SkippedProviders
from .ratio import VCPU, NodeCapacity, RatioLimits, update_inventories
from .written import WrittenRatios

LOG = logging.getLogger("scroogevm.placement")

#: Providers that are updated at the same time.
_AT_ONCE = 8

#: Attempts at one provider, and the pauses between them, which double.
_TRIES = 12
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0

#: How often the providers that are left alone are looked up.
_REFRESH_S = 300.0

#: nova-compute writes its own ratios every 300 s by default; a warning ends when it did not for so long.
_FOREIGN_QUIET_S = 1800.0

#: The shortest pause between two polls.
_LEAST_PAUSE_S = 1.0

#: Subject of problems that concern the service as a whole.
_SERVICE = "Placement"


@dataclass(frozen=True, slots=True)
class ReconcileResult:
    """Outcome for the nodes that were due.

    Attributes
    ----------
    updated, unchanged, skipped : tuple of str
        Nodes whose provider was written; was up to date; is left alone.
    failed : mapping of str to str
        Node to the reason. Nodes that a stop left out are in none of them.
    """

    updated: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlacementCounts:
    """Totals since the start, and the present state of the nodes.

    Attributes
    ----------
    updates, conflicts, foreign_writes : int
        Inventories written; writes that were repeated because the provider had changed; ratios that another process
        had written over ours.
    failures : mapping of str to int
        Failed updates by reason: ``connection``, ``timeout``, ``login``, ``forbidden``, ``missing``, ``ambiguous``,
        ``duplicate``, ``conflict``, ``refused``, ``server``, ``answer`` (an invalid response), ``internal``.
    last_error : str
        One line; empty when there was none.
    nodes : mapping of str to int
        Number of nodes whose ratio is ``kept``, which are ``skipped``, and whose last update ``failed``.
    """

    updates: int
    conflicts: int
    failures: Mapping[str, int]
    last_error: str
    foreign_writes: int = 0
    nodes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Success:
    """A provider that is up to date, or left alone.

    Attributes
    ----------
    written : bool
    skipped : str
        Why the provider is left alone; empty when it is not.
    notes : mapping of resource class to str
        See :class:`~.ratio.InventoryUpdate`.
    foreign : mapping of resource class to (float, float)
        The ratio of another process, and the one that was written before.
    """

    written: bool = False
    skipped: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    foreign: Mapping[str, tuple[float, float]] = field(default_factory=dict)


#: None: stopped.
_Outcome = _Success | PlacementError | None


class _Late(PlacementError):
    """The round was too short for a provider."""


class _Deadline:
    """The end of a round, by time or by a stop."""

    def __init__(self, timeout_s: float, stop: threading.Event, clock: Callable[[], float]) -> None:
        self.timeout_s = timeout_s
        self.stop = stop
        self._clock = clock
        self._end_s = clock() + timeout_s

    def left_s(self) -> float:
        """Seconds that are left; 0 when it has passed."""
        return 0.0 if self.stop.is_set() else max(0.0, self._end_s - self._clock())

    def error(self) -> _Late:
        """The error of a provider that is late."""
        return _Late("timeout", f"not updated within {self.timeout_s:g} s")


@dataclass(slots=True)
class _Node:
    """A node that has a provider.

    Attributes
    ----------
    capacity : NodeCapacity
        What was published last.
    done : NodeCapacity or None
        What was published when the provider was brought up to date last.
    done_s, due_s : float
        When that was, and when the provider is looked at again, monotonic seconds.
    state : str
        ``kept``, ``skipped`` or ``failed``, of the last update; empty before the first one.
    """

    capacity: NodeCapacity
    done: NodeCapacity | None = None
    done_s: float = -math.inf
    due_s: float = -math.inf
    state: str = ""

    @property
    def is_current(self) -> bool:
        """Whether nothing was published since the provider was brought up to date."""
        return self.state != "failed" and self.capacity == self.done

    def priority(self) -> tuple[bool, float]:
        """Nodes of which less is free go first, then those that waited longest."""
        return not (self.done is None or self.capacity.is_lower_than(self.done)), self.done_s


class PlacementReconciler:
    """Updates the allocation ratios of the providers of nodes.

    :meth:`publish` and :meth:`poll` are called from one thread.

    Parameters
    ----------
    settings : PlacementSettings
    clock : callable
        Monotonic seconds.

    Raises
    ------
    PlacementError
        When keystoneauth1 does not accept the login options.
    """

    def __init__(self, settings: PlacementSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._limits = RatioLimits(settings.least_ratio, settings.most_ratio)
        self._clock = clock
        self._client = PlacementClient(settings)
        self._providers = ProviderMap(settings.providers, self._client)
        self._skipped = SkippedProviders(settings.skips, self._client)
        self._skipped_at = -math.inf
        self._service_problems = ProblemLog(LOG)
        self._problems = NodeProblems(LOG, clock)
        self._nodes: dict[str, _Node] = {}
        self._written: WrittenRatios | None = None
        self._read: dict[str, dict[str, Any]] = {}
        """Generation and inventories of each provider, as they were read or written last."""
        self._lock = threading.Lock()
        self._in_progress: set[str] = set()
        self._updates = self._conflicts = self._foreign_writes = 0
        self._failures: Counter[str] = Counter()
        self._last_error = ""

    def publish(self, capacities: Sequence[NodeCapacity], stop: threading.Event | None = None) -> ReconcileResult:
        """Bring providers up to date, several at a time; problems are logged, never raised.

        Those whose node is as it was when it was brought up to date last are left to :meth:`poll`.

        Parameters
        ----------
        capacities : sequence of NodeCapacity
            Those of nodes without a provider are ignored.
        stop : threading.Event, optional
            Ends the round at once.
        """
        nodes = {}
        for capacity in capacities:
            if capacity.node in self._providers:
                nodes[capacity.node] = self._nodes.get(capacity.node) or _Node(capacity)
                nodes[capacity.node].capacity = capacity
        for name in self._nodes.keys() - nodes.keys():
            self._problems.drop(name)
        self._nodes = nodes
        return self._run_round([name for name, node in nodes.items() if not node.is_current], stop)

    def poll(self, stop: threading.Event | None = None) -> ReconcileResult:
        """Look at the providers that are due, and at those that a round left.

        Parameters
        ----------
        stop : threading.Event, optional
            Ends the round at once.
        """
        now = self._clock()
        return self._run_round([name for name, node in self._nodes.items() if node.due_s <= now], stop)

    def pause_s(self) -> float:
        """Seconds until :meth:`poll` has work to do."""
        due_s = min((node.due_s for node in self._nodes.values()), default=math.inf)
        return min(max(due_s - self._clock(), _LEAST_PAUSE_S), self._settings.poll_s)

    def counts(self) -> PlacementCounts:
        """Totals since the start."""
        states = Counter(node.state for node in list(self._nodes.values()))
        with self._lock:
            return PlacementCounts(
                self._updates,
                self._conflicts,
                dict(self._failures),
                self._last_error,
                self._foreign_writes,
                {state: states[state] for state in ("kept", "skipped", "failed")},
            )

    def _run_round(self, names: Collection[str], stop: threading.Event | None) -> ReconcileResult:
        if not names:
            return ReconcileResult()
        deadline = _Deadline(self._settings.round_timeout_s, stop or threading.Event(), self._clock)
        # One request first: an unreachable server is one problem, not one per node.
        access = self._run_all([_SERVICE], lambda _: self._prepare(names), deadline)[_SERVICE]
        if isinstance(access, _Success):
            self._service_problems.resolve(_SERVICE)
            ordered = sorted(names, key=lambda name: self._nodes[name].priority())
            outcomes = self._run_all(ordered, lambda name: self._update(self._nodes[name].capacity, deadline), deadline)
            self._report(outcomes)
        else:
            outcomes = dict.fromkeys(names, access)
            if access is not None:
                self._service_problems.report(_SERVICE, str(access))
        self._count(outcomes, subject=None if isinstance(access, _Success) else _SERVICE)
        self._schedule(outcomes)
        self._save()
        return _result(outcomes)

    def _prepare(self, names: Collection[str]) -> _Success:
        self._client.check_access()
        self._providers.refresh(names)
        if self._clock() - self._skipped_at >= _REFRESH_S:
            try:
                self._skipped.refresh()
            except PlacementError as error:
                if not self._skipped.is_known:
                    raise PlacementError(error.reason, f"PLACEMENT_SKIP: {error}") from None
                self._service_problems.report("PLACEMENT_SKIP", str(error))
            else:
                self._service_problems.resolve("PLACEMENT_SKIP")
            self._skipped_at = self._clock()
        if self._written is None:
            self._written = self._load()
        return _Success()

    def _load(self) -> WrittenRatios:
        written = WrittenRatios(self._settings.state_path)
        try:
            written.load()
        except (OSError, ValueError) as error:
            LOG.warning("%s: cannot be read, is started anew: %s", self._settings.state_path, error)
        return written

    def _save(self) -> None:
        try:
            if self._written is not None:
                self._written.save()
        except OSError as error:
            self._service_problems.report(str(self._settings.state_path), f"cannot be written: {error.strerror}")
        else:
            self._service_problems.resolve(str(self._settings.state_path))

    def _run_all(
        self, names: Iterable[str], work: Callable[[str], _Success], deadline: _Deadline
    ) -> dict[str, _Outcome]:
        """Call a function for each name; a name whose earlier call still hangs is late and gets no second thread."""

        def run(name: str) -> _Success | PlacementError:
            with self._lock:
                self._in_progress.add(name)
            try:
                return _outcome(work, name)
            finally:
                with self._lock:
                    self._in_progress.discard(name)

        outcomes: dict[str, _Outcome] = dict.fromkeys(names, deadline.error())
        with self._lock:
            pending = {name: None for name in outcomes if name not in self._in_progress}
        for name, outcome in map_until(list(pending), run, _AT_ONCE, deadline.left_s, "placement"):
            outcomes[name] = outcome
            del pending[name]
        if deadline.stop.is_set():
            outcomes.update(pending)
        return outcomes

    def _update(self, capacity: NodeCapacity, deadline: _Deadline) -> _Success:
        """Update one provider; conflicts are repeated, an outdated look-up is renewed."""
        pause_s = _FIRST_PAUSE_S
        for _ in range(_TRIES):
            looked_up = self._providers.is_looked_up(capacity.node)
            try:
                return self._update_once(capacity)
            except ProviderMissing:
                # The name may stand for another provider by now.
                if not looked_up:
                    raise
                self._providers.drop_lookup(capacity.node)
                self._providers.refresh([capacity.node])
            except ProviderConflict:
                with self._lock:
                    self._conflicts += 1
                deadline.stop.wait(min(pause_s * random.uniform(0.5, 1.5), deadline.left_s()))  # noqa: S311  # no secret
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            if not deadline.left_s():
                raise deadline.error()
        raise PlacementError("conflict", f"the provider changed between read and write, {_TRIES} times in a row")

    def _update_once(self, capacity: NodeCapacity) -> _Success:
        written = self._written
        assert written is not None  # noqa: S101  # loaded at the begin of the first round
        provider = self._providers.uuid_of(capacity.node)
        if reason := self._skipped.reason(provider):
            written.forget([provider])
            return _Success(skipped=reason)
        usages = self._client.usages(provider)
        # The generation changes with every write to inventories and allocations.
        body, foreign = self._read.pop(provider, None), dict[str, tuple[float, float]]()
        if body is None or body["resource_provider_generation"] != usages["resource_provider_generation"]:
            body = self._client.inventories(provider)
            foreign = written.foreign(provider, body["inventories"])
        if usages["resource_provider_generation"] != body["resource_provider_generation"]:
            raise ProviderConflict("conflict", "the provider changed between two reads")
        booked = written.bookings(provider).count(capacity, usages["usages"])
        update = update_inventories(
            *(body["inventories"], booked, capacity, self._limits), written=written.ratios(provider)
        )
        if update.changed:
            written.attempt(provider, update.ratios)
            body = self._client.put_inventories(provider, {**body, "inventories": update.inventories})
            with self._lock:
                self._updates += 1
        written.note(provider, capacity.node, update.ratios, changed=update.changed)
        self._read[provider] = body
        return _Success(update.changed, notes=update.notes, foreign=foreign)

    def _report(self, outcomes: Mapping[str, _Outcome]) -> None:
        for node, outcome in outcomes.items():
            if isinstance(outcome, PlacementError):
                self._problems.set(node, outcome.reason, str(outcome))
            elif outcome is not None:
                self._problems.clear(node)
                for resource, note in outcome.notes.items():
                    if note:
                        self._problems.set(f"{node} {resource}", f"{resource} limited", note)
                    else:
                        self._problems.clear(f"{node} {resource}")
                    subject = f"{node} {resource} ratio"
                    if resource in outcome.foreign:
                        self._problems.set(
                            subject,
                            "another writer",
                            _foreign_text(*outcome.foreign[resource], resource),
                            quiet_s=_FOREIGN_QUIET_S,
                        )
                    else:
                        self._problems.clear(subject)
        self._problems.log(len(self._nodes))

    def _count(self, outcomes: Mapping[str, _Outcome], subject: str | None) -> None:
        with self._lock:
            for node, outcome in outcomes.items():
                if isinstance(outcome, PlacementError):
                    self._failures[outcome.reason] += 1
                    self._last_error = f"{subject or node}: {outcome}"
                elif outcome is not None:
                    self._foreign_writes += len(outcome.foreign)

    def _schedule(self, outcomes: Mapping[str, _Outcome]) -> None:
        """Note what was done, and when the nodes are due again: those of a round that was too short at once."""
        now = self._clock()
        with self._lock:
            hung = frozenset(self._in_progress)
        for name, outcome in outcomes.items():
            node = self._nodes[name]
            if isinstance(outcome, _Success):
                node.done, node.done_s = node.capacity, now
                node.state = "skipped" if outcome.skipped else "kept"
            elif outcome is not None:
                node.state = "failed"
            is_late = isinstance(outcome, _Late) and name not in hung
            # Not all at the same moment.
            node.due_s = now if is_late else now + self._settings.poll_s * random.uniform(0.5, 1.5)  # noqa: S311


def _foreign_text(ratio: float, ours: float, resource: str) -> str:
    option = "cpu_allocation_ratio" if resource == VCPU else "ram_allocation_ratio"
    return (
        f"another process has set {ratio:g} in place of {ours:g}; "
        f"nova-compute does so where {option} is set in its nova.conf"
    )


def _outcome(work: Callable[[str], _Success], name: str) -> _Success | PlacementError:
    try:
        return work(name)
    except PlacementError as error:
        return error
    except Exception as error:  # whatever one provider's response causes, the others are updated
        LOG.debug("%s", name, exc_info=True)
        return PlacementError("internal", f"internal error: {type(error).__name__}")


def _result(outcomes: Mapping[str, _Outcome]) -> ReconcileResult:
    done = {node: outcome for node, outcome in outcomes.items() if isinstance(outcome, _Success)}
    return ReconcileResult(
        updated=tuple(node for node, outcome in done.items() if outcome.written),
        unchanged=tuple(node for node, outcome in done.items() if not outcome.written and not outcome.skipped),
        skipped=tuple(node for node, outcome in done.items() if outcome.skipped),
        failed={node: outcome.reason for node, outcome in outcomes.items() if isinstance(outcome, PlacementError)},
    )
