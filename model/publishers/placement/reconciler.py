"""Keeps the allocation ratios of OpenStack Placement equal to (booked now + free) / usable of each node."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...common.logs import ProblemLog
from ...common.threads import map_until
from ..settings import PlacementSettings
from .client import PlacementClient, PlacementError, ProviderConflict, ProviderMissing
from .providers import ProviderMap
from .ratio import NodeCapacity, RatioLimits, update_inventories

LOG = logging.getLogger("scroogevm.placement")

#: Providers that are updated at the same time.
_AT_ONCE = 8

#: Attempts at one provider, and the pauses between them, which double.
_TRIES = 12
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0

#: Subject of problems that concern the service as a whole.
_SERVICE = "Placement"


@dataclass(frozen=True, slots=True)
class ReconcileResult:
    """Outcome for the nodes that are mapped to a provider.

    Attributes
    ----------
    updated, unchanged : tuple of str
        Nodes whose provider was written; nodes whose provider was up to date.
    failed : mapping of str to str
        Node to the reason. Nodes that a stop left out are in none of the three.
    """

    updated: tuple[str, ...]
    unchanged: tuple[str, ...]
    failed: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PlacementCounts:
    """Totals since the start.

    Attributes
    ----------
    updates, conflicts : int
        Inventories written; writes that were repeated because the provider had changed.
    failures : mapping of str to int
        Failed updates by reason: ``connection``, ``timeout``, ``login``, ``forbidden``, ``missing``, ``duplicate``,
        ``conflict``, ``refused``, ``server``, ``answer`` (an invalid response), ``internal``.
    last_error : str
        One line; empty when there was none.
    """

    updates: int
    conflicts: int
    failures: Mapping[str, int]
    last_error: str


@dataclass(frozen=True, slots=True)
class _Success:
    """A provider that is up to date; notes by resource class, see :class:`~.ratio.InventoryUpdate`."""

    written: bool
    notes: Mapping[str, str]


#: None: stopped.
_Outcome = _Success | PlacementError | None


class _Deadline:
    """The end of a reconciliation, by time or by a stop."""

    def __init__(self, timeout_s: float, stop: threading.Event, clock: Callable[[], float]) -> None:
        self.timeout_s = timeout_s
        self.stop = stop
        self._clock = clock
        self._end_s = clock() + timeout_s

    def left_s(self) -> float:
        """Seconds that are left; 0 when it has passed."""
        return 0.0 if self.stop.is_set() else max(0.0, self._end_s - self._clock())

    def error(self) -> PlacementError:
        """The error of a provider that is late."""
        return PlacementError("timeout", f"not updated within {self.timeout_s:g} s")


class PlacementReconciler:
    """Updates the allocation ratios of the providers that nodes are mapped to.

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
        self._problems = ProblemLog(LOG)
        self._lock = threading.Lock()
        self._in_progress: set[str] = set()
        self._updates = self._conflicts = 0
        self._failures: Counter[str] = Counter()
        self._last_error = ""

    def publish(self, capacities: Sequence[NodeCapacity], stop: threading.Event | None = None) -> ReconcileResult:
        """Bring the providers of mapped nodes up to date, several at a time; problems are logged, never raised.

        Parameters
        ----------
        capacities : sequence of NodeCapacity
            Those of nodes without a provider are ignored.
        stop : threading.Event, optional
            Ends the reconciliation at once.
        """
        mapped = {capacity.node: capacity for capacity in capacities if capacity.node in self._providers}
        if not mapped:
            return ReconcileResult((), (), {})
        deadline = _Deadline(self._settings.round_timeout_s, stop or threading.Event(), self._clock)
        # One request first: an unreachable server is one problem, not one per node.
        access = self._run_all([_SERVICE], lambda _: self._check_access(), deadline)[_SERVICE]
        if isinstance(access, _Success):
            self._problems.resolve(_SERVICE)
            outcomes = self._run_all(mapped, lambda node: self._update(mapped[node], deadline), deadline)
            self._log_nodes(outcomes)
        else:
            outcomes = dict.fromkeys(mapped, access)
            if access is not None:
                self._problems.report(_SERVICE, str(access))
        self._count(outcomes, subject=None if isinstance(access, _Success) else _SERVICE)
        return _result(outcomes)

    def counts(self) -> PlacementCounts:
        """Totals since the start."""
        with self._lock:
            return PlacementCounts(self._updates, self._conflicts, dict(self._failures), self._last_error)

    def check(self) -> str:
        """Log in and read every provider without writing; one line on success.

        Raises
        ------
        PlacementError
            With the first node whose provider cannot be read.
        """
        self._client.check_access()
        for node in self._settings.providers:
            try:
                provider = self._providers.uuid_of(node)
                self._client.inventories(provider)
                self._client.usages(provider)
            except PlacementError as error:
                raise PlacementError(error.reason, f"{node}: {error}") from None
        return f"OpenStack Placement, resource providers: {len(self._settings.providers)}"

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

    def _check_access(self) -> _Success:
        self._client.check_access()
        return _Success(written=False, notes={})

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
            except ProviderConflict:
                with self._lock:
                    self._conflicts += 1
                deadline.stop.wait(min(pause_s * random.uniform(0.5, 1.5), deadline.left_s()))  # noqa: S311  # no secret
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            if not deadline.left_s():
                raise deadline.error()
        raise PlacementError("conflict", f"the provider changed between read and write, {_TRIES} times in a row")

    def _update_once(self, capacity: NodeCapacity) -> _Success:
        provider = self._providers.uuid_of(capacity.node)
        body = self._client.inventories(provider)
        usages = self._client.usages(provider)
        if usages["resource_provider_generation"] != body["resource_provider_generation"]:
            raise ProviderConflict("conflict", "the provider changed between two reads")
        update = update_inventories(body["inventories"], usages["usages"], capacity, self._limits)
        if update.changed:
            self._client.put_inventories(provider, {**body, "inventories": update.inventories})
            with self._lock:
                self._updates += 1
        return _Success(update.changed, update.notes)

    def _log_nodes(self, outcomes: Mapping[str, _Outcome]) -> None:
        for node, outcome in outcomes.items():
            if isinstance(outcome, PlacementError):
                self._problems.report(node, str(outcome))
            elif outcome is not None:
                self._problems.resolve(node)
                for resource, note in outcome.notes.items():
                    if note:
                        self._problems.report(f"{node} {resource}", note)
                    else:
                        self._problems.resolve(f"{node} {resource}")

    def _count(self, outcomes: Mapping[str, _Outcome], subject: str | None) -> None:
        with self._lock:
            for node, outcome in outcomes.items():
                if isinstance(outcome, PlacementError):
                    self._failures[outcome.reason] += 1
                    self._last_error = f"{subject or node}: {outcome}"


def _outcome(work: Callable[[str], _Success], name: str) -> _Success | PlacementError:
    try:
        return work(name)
    except PlacementError as error:
        return error
    except Exception as error:  # whatever one provider's response causes, the others are updated
        LOG.debug("%s", name, exc_info=True)
        return PlacementError("internal", f"internal error: {type(error).__name__}")


def _result(outcomes: Mapping[str, _Outcome]) -> ReconcileResult:
    written = {node: outcome.written for node, outcome in outcomes.items() if isinstance(outcome, _Success)}
    return ReconcileResult(
        updated=tuple(node for node, is_written in written.items() if is_written),
        unchanged=tuple(node for node, is_written in written.items() if not is_written),
        failed={node: outcome.reason for node, outcome in outcomes.items() if isinstance(outcome, PlacementError)},
    )


#: The former name; model/estimator still imports it.
Placement = PlacementReconciler
