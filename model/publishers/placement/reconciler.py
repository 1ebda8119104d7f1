"""OpenStack Placement: allocation ratios that make a provider's capacity what is booked and free on its node."""

from __future__ import annotations

import logging
import math
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import requests.exceptions
from keystoneauth1 import exceptions

from ...common.logs import ProblemLog
from ..settings import PlacementSettings
from .client import (
    NO_PROVIDER,
    PlacementError,
    ProviderConflict,
    ProviderMissing,
    as_uuid,
    connection_error,
    one_line,
    open_adapter,
    refusal_error,
)
from .ratio import NodeCapacity, allocation_ratio

LOG = logging.getLogger("scroogevm.placement")

_AT_ONCE = 8

_TRIES = 12

_FIRST_PAUSE_S = 0.02

_LONGEST_PAUSE_S = 1.0

#: How far a ratio that went through single precision is from itself, relative to it.
_SAME = 1e-7

_SERVICE = "Placement"


@dataclass(frozen=True, slots=True)
class Round:
    """What became of the mapped nodes that something was promised for.

    Attributes
    ----------
    updated, unchanged : tuple of str
        Nodes whose provider was written to; those for which nothing was to be written.
    failed : mapping of str to str
        Node to the reason. A node that a stop left out is nowhere.
    """

    updated: tuple[str, ...]
    unchanged: tuple[str, ...]
    failed: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PlacementCounts:
    """What happened so far.

    Attributes
    ----------
    updates, conflicts : int
        Inventories written; writes that came too late and were tried again.
    failures : mapping of str to int
        Nodes that were not brought up to date, by the reason: ``connection``, ``timeout``, ``login``, ``forbidden``,
        ``missing``, ``duplicate``, ``conflict``, ``refused``, ``server``, ``answer``, ``internal``.
    last_error : str
        One line; empty as long as there was none.
    """

    updates: int
    conflicts: int
    failures: Mapping[str, int]
    last_error: str


@dataclass(frozen=True, slots=True)
class _Done:
    """A provider that is up to date; notes by resource class, empty where all is well."""

    written: bool
    notes: Mapping[str, str]


class _Ending:
    """The end of a round, by its time or by whoever stops it."""

    def __init__(self, timeout_s: float, stop: threading.Event) -> None:
        self._at = time.monotonic() + timeout_s
        self.stop = stop

    def left_s(self) -> float:
        """Seconds; 0 when it is over."""
        return 0.0 if self.stop.is_set() else max(0.0, self._at - time.monotonic())


class Placement:
    """Keeps the allocation ratios of the providers that nodes are mapped to.

    Parameters
    ----------
    settings : PlacementSettings

    Raises
    ------
    PlacementError
        When the login is one that keystoneauth1 does not take.
    """

    def __init__(self, settings: PlacementSettings) -> None:
        self._settings = settings
        self._api = open_adapter(settings)
        self._problems = ProblemLog(LOG)
        self._lock = threading.Lock()
        #: Nodes whose provider is named, and its UUID; whose provider a UUID is.
        self._uuids: dict[str, str] = {}
        self._owners: dict[str, str] = {}
        self._under_way: set[str] = set()
        self._updates = self._conflicts = 0
        self._failures: Counter[str] = Counter()
        self._last_error = ""

    def publish(self, promises: Sequence[NodeCapacity], stop: threading.Event | None = None) -> Round:
        """Bring the providers of mapped nodes up to date, several at a time; a fault is told, never raised.

        Parameters
        ----------
        promises : sequence of NodeCapacity
            Those of nodes that are not mapped are left out.
        stop : threading.Event, optional
            Ends the round at once.
        """
        wanted = {one.node: one for one in promises if one.node in self._settings.providers}
        ending = _Ending(self._settings.round_timeout_s, stop or threading.Event())
        if not wanted:
            return Round((), (), {})
        # A server that is away or does not know us is found out once, not by every node.
        heard = self._together([_SERVICE], lambda _: self._knock(), ending)[_SERVICE]
        if isinstance(heard, _Done):
            self._problems.resolve(_SERVICE)
            results = self._together(wanted, lambda node: self._update(wanted[node], ending), ending)
        else:
            results = dict.fromkeys(wanted, heard)
            if heard is not None:
                self._problems.report(_SERVICE, str(heard))
        return self._summed_up(results, tell=isinstance(heard, _Done))

    def counts(self) -> PlacementCounts:
        """What happened so far."""
        with self._lock:
            return PlacementCounts(self._updates, self._conflicts, dict(self._failures), self._last_error)

    def check(self) -> str:
        """Log in and read every provider, write nothing.

        Raises
        ------
        PlacementError
            Naming the first node whose provider can't be read.
        """
        self._knock()
        for node in self._settings.providers:
            try:
                self._inventories(self._uuid(node))
            except PlacementError as error:
                raise PlacementError(error.reason, f"{node}: {error}") from None
        return f"OpenStack Placement, resource providers: {len(self._settings.providers)}"

    def _together(
        self, names: Iterable[str], work: Callable[[str], _Done], ending: _Ending
    ) -> dict[str, _Done | PlacementError | None]:
        """Do the work for all names, a few at a time, and wait no longer than to the end; None for who was stopped.

        The threads are no pool of the library's: those would hold up the end of the process. One that is stuck keeps
        its name, and no other is started for that.
        """
        late = PlacementError("timeout", f"not done within {self._settings.round_timeout_s:g} s")
        results: dict[str, _Done | PlacementError | None] = dict.fromkeys(names, late)
        waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        answers: queue.SimpleQueue[tuple[str, _Done | PlacementError]] = queue.SimpleQueue()
        with self._lock:
            idle = [name for name in results if name not in self._under_way]
        for name in idle:
            waiting.put(name)

        def run() -> None:
            while ending.left_s():
                try:
                    name = waiting.get_nowait()
                except queue.Empty:
                    return
                with self._lock:
                    self._under_way.add(name)
                answer = _outcome(work, name)
                with self._lock:
                    self._under_way.discard(name)
                answers.put((name, answer))

        for i in range(min(_AT_ONCE, len(idle))):
            threading.Thread(target=run, name=f"placement-{i}", daemon=True).start()
        missing = set(idle)
        while missing and (left_s := ending.left_s()):
            try:
                name, answer = answers.get(timeout=min(0.1, left_s))
            except queue.Empty:
                continue
            results[name] = answer
            missing.discard(name)
        if ending.stop.is_set():
            results.update(dict.fromkeys(missing))
        return results

    def _summed_up(self, results: Mapping[str, _Done | PlacementError | None], tell: bool) -> Round:
        failed: dict[str, str] = {}
        for node, result in results.items():
            if isinstance(result, _Done):
                self._problems.resolve(node)
                for resource, words in result.notes.items():
                    if words:
                        self._problems.report(f"{node} {resource}", words)
                    else:
                        self._problems.resolve(f"{node} {resource}")
            elif result is not None:
                failed[node] = result.reason
                if tell:
                    self._problems.report(node, str(result))
                with self._lock:
                    self._failures[result.reason] += 1
                    self._last_error = f"{node}: {result}" if tell else f"{_SERVICE}: {result}"
        done = {node: result.written for node, result in results.items() if isinstance(result, _Done)}
        return Round(
            updated=tuple(node for node, written in done.items() if written),
            unchanged=tuple(node for node, written in done.items() if not written),
            failed=failed,
        )

    def _update(self, promise: NodeCapacity, ending: _Ending) -> _Done:
        pause_s = _FIRST_PAUSE_S
        for _ in range(_TRIES):
            remembered = promise.node in self._uuids
            try:
                return self._try(promise)
            except ProviderMissing:
                # Its name may stand for another one by now.
                if not remembered:
                    raise
                with self._lock:
                    self._owners.pop(self._uuids.pop(promise.node), None)
            except ProviderConflict:
                with self._lock:
                    self._conflicts += 1
                ending.stop.wait(min(pause_s * random.uniform(0.5, 1.5), ending.left_s()))  # noqa: S311  # no secret
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            if not ending.left_s():
                raise PlacementError("timeout", f"not done within {self._settings.round_timeout_s:g} s")
        raise PlacementError("conflict", f"somebody else wrote to the provider before us, {_TRIES} times in a row")

    def _try(self, promise: NodeCapacity) -> _Done:
        """Read, change and write what a provider has; every field but the two ratios is handed back as it came."""
        provider = self._uuid(promise.node)
        body = self._inventories(provider)
        notes = {}
        changed = False
        for resource, amount in (("VCPU", promise.cpu), ("MEMORY_MB", promise.mem)):
            if amount is None:
                continue
            try:
                ratio, notes[resource] = self._ratio(amount, body["inventories"].get(resource))
            except ValueError as error:
                notes[resource] = str(error)
                continue
            if not math.isclose(ratio, body["inventories"][resource]["allocation_ratio"], rel_tol=_SAME):
                body["inventories"][resource]["allocation_ratio"] = ratio
                changed = True
        if changed:
            self._ask("PUT", f"/resource_providers/{provider}/inventories", json=body)
            with self._lock:
                self._updates += 1
        return _Done(changed, notes)

    def _ratio(self, amount: float, record: Mapping[str, Any] | None) -> tuple[float, str]:
        """The ratio for what is promised, and what a person should know of it.

        Raises
        ------
        ValueError
            When there is none, with the words why.
        """
        if record is None:
            raise ValueError("the provider has no such inventory")
        usable = record["total"] - record["reserved"]
        if usable <= 0:
            raise ValueError("all of the provider's is reserved")
        if not 0 <= amount < math.inf:
            raise ValueError(f"{amount:g} can't be promised")
        least, most = self._settings.least_ratio, self._settings.most_ratio
        if amount > usable * most:
            return most, f"a ratio of {amount / usable:g} is cut to {most:g}"
        return max(allocation_ratio(amount, usable), least), ""

    def _knock(self) -> _Done:
        """One request that shows whether Placement is there, takes us and speaks our microversion."""
        answer = self._ask("GET", "/resource_providers", params={"uuid": NO_PROVIDER})
        if not isinstance(answer.get("resource_providers"), list):
            raise PlacementError("answer", "what answers there is no Placement")
        return _Done(written=False, notes={})

    def _uuid(self, node: str) -> str:
        given = self._settings.providers[node]
        if not (found := self._uuids.get(node) or as_uuid(given)):
            answer = self._ask("GET", "/resource_providers", params={"name": given})
            providers = answer.get("resource_providers")
            if not isinstance(providers, list) or not all(isinstance(one, dict) for one in providers):
                raise PlacementError("answer", "a list of providers is none")
            if not providers:
                raise ProviderMissing("missing", f"no resource provider has the name {given}")
            if not (found := as_uuid(str(providers[0].get("uuid")))):
                raise PlacementError("answer", "a provider has no UUID")
            with self._lock:
                self._uuids[node] = found
        with self._lock:
            owner = self._owners.setdefault(found, node)
        if owner != node:
            raise PlacementError("duplicate", f"has the same resource provider as {owner}")
        return found

    def _inventories(self, provider: str) -> dict[str, Any]:
        """The body that a write takes, too: generation and all inventories."""
        body = self._ask("GET", f"/resource_providers/{provider}/inventories")
        try:
            good = isinstance(body["resource_provider_generation"], int) and all(
                isinstance(record[name], (int, float))
                for record in body["inventories"].values()
                for name in ("total", "reserved", "allocation_ratio")
            )
        except (KeyError, TypeError, AttributeError):
            good = False
        if not good:
            raise PlacementError("answer", "what was read are no inventories")
        return body

    def _ask(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        try:
            response = self._api.request(path, method, raise_exc=False, **more)
        except exceptions.HttpError as error:
            # Of Placement itself no status is raised.
            raise PlacementError("login", f"Keystone: HTTP status {error.http_status}") from None
        except (exceptions.ConnectionError, requests.exceptions.RequestException, OSError) as error:
            raise connection_error(error) from None
        except exceptions.ClientException as error:
            raise PlacementError("login", f"Keystone: {one_line(str(error)) or type(error).__name__}") from None
        try:
            body = response.json()
        except ValueError:
            body = None
        if response.status_code != 200:
            raise refusal_error(response.status_code, body)
        if not isinstance(body, dict):
            raise PlacementError("answer", "what answers there is no Placement")
        return body


def _outcome(work: Callable[[str], _Done], name: str) -> _Done | PlacementError:
    try:
        return work(name)
    except PlacementError as error:
        return error
    except Exception as error:  # whatever one provider's answer does to us, the others go on
        LOG.debug("%s", name, exc_info=True)
        return PlacementError("internal", f"{type(error).__name__}, a fault of ScroogeVM")
