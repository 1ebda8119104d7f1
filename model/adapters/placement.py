"""OpenStack Placement: allocation ratios that make a provider's capacity what is booked and free on its node."""

from __future__ import annotations

import errno
import logging
import math
import queue
import random
import struct
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import requests.exceptions
import urllib3.exceptions
from keystoneauth1 import exceptions, loading, token_endpoint
from keystoneauth1.adapter import Adapter
from keystoneauth1.session import Session

from model.adapters.causes import causes, system_words
from model.adapters.runtime import Changes
from model.adapters.settings import PlacementSettings, Token
from model.status import NodeStatus, ResourceStatus

LOG = logging.getLogger("scroogevm.placement")

#: The lowest that suffices: 1.23 says which kind of conflict it is, and up to 1.25 a whole inventory is refused when
#: any class of it has all of its total reserved. Placement has it since Rocky, 2018.
_MICROVERSION = "1.26"
_AT_ONCE = 8
_TRIES = 12
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0
#: MySQL keeps a ratio as a FLOAT and gives back six digits: those below 100 with four decimals come back as they were.
_STEPS = 10_000
#: How far a ratio that went through single precision is from itself, relative to it.
_SAME = 1e-7
#: Nobody has it: whoever may list providers and speaks the microversion learns that.
_NOBODY = "00000000-0000-0000-0000-000000000000"
_SERVICE = "Placement"


@dataclass(frozen=True, slots=True)
class Promise:
    """What a node's provider shall offer, to VMs that are there and to those that may come.

    Attributes
    ----------
    node : str
    cpu : float or None
        Cores, booked and free; None leaves the resource as it is.
    mem : float or None
        MB of 2**20 bytes, likewise.
    """

    node: str
    cpu: float | None
    mem: float | None


def promises_of(statuses: Iterable[NodeStatus]) -> list[Promise]:
    """What nodes promise: nothing but what is booked where no fresh figure is free, nothing new where none ever was."""
    return [Promise(status.node, _promised(status.cpu), _promised(status.mem)) for status in statuses]


def _promised(said: ResourceStatus) -> float | None:
    return None if said.last is None else said.last.booked + said.free


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


class PlacementError(Exception):
    """A provider that can't be brought up to date.

    Attributes
    ----------
    reason : str
        One of few words, fit for the label of a metric.
    """

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words)
        self.reason = reason


class _Missing(PlacementError):
    """There is no such provider."""


class _Conflict(PlacementError):
    """Somebody wrote to the provider since it was read."""


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
        self._api = _adapter(settings)
        self._changes = Changes(LOG)
        self._lock = threading.Lock()
        #: Nodes whose provider is named, and its UUID; whose provider a UUID is.
        self._uuids: dict[str, str] = {}
        self._owners: dict[str, str] = {}
        self._under_way: set[str] = set()
        self._updates = self._conflicts = 0
        self._failures: Counter[str] = Counter()
        self._last_error = ""

    def publish(self, promises: Sequence[Promise], stop: threading.Event | None = None) -> Round:
        """Bring the providers of mapped nodes up to date, several at a time; a fault is told, never raised.

        Parameters
        ----------
        promises : sequence of Promise
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
            self._changes.right(_SERVICE)
            results = self._together(wanted, lambda node: self._update(wanted[node], ending), ending)
        else:
            results = dict.fromkeys(wanted, heard)
            if heard is not None:
                self._changes.wrong(_SERVICE, str(heard))
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
                self._changes.right(node)
                for resource, words in result.notes.items():
                    if words:
                        self._changes.wrong(f"{node} {resource}", words)
                    else:
                        self._changes.right(f"{node} {resource}")
            elif result is not None:
                failed[node] = result.reason
                if tell:
                    self._changes.wrong(node, str(result))
                with self._lock:
                    self._failures[result.reason] += 1
                    self._last_error = f"{node}: {result}" if tell else f"{_SERVICE}: {result}"
        done = {node: result.written for node, result in results.items() if isinstance(result, _Done)}
        return Round(
            updated=tuple(node for node, written in done.items() if written),
            unchanged=tuple(node for node, written in done.items() if not written),
            failed=failed,
        )

    def _update(self, promise: Promise, ending: _Ending) -> _Done:
        pause_s = _FIRST_PAUSE_S
        for _ in range(_TRIES):
            remembered = promise.node in self._uuids
            try:
                return self._try(promise)
            except _Missing:
                # Its name may stand for another one by now.
                if not remembered:
                    raise
                with self._lock:
                    self._owners.pop(self._uuids.pop(promise.node), None)
            except _Conflict:
                with self._lock:
                    self._conflicts += 1
                ending.stop.wait(min(pause_s * random.uniform(0.5, 1.5), ending.left_s()))  # noqa: S311  # no secret
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            if not ending.left_s():
                raise PlacementError("timeout", f"not done within {self._settings.round_timeout_s:g} s")
        raise PlacementError("conflict", f"somebody else wrote to the provider before us, {_TRIES} times in a row")

    def _try(self, promise: Promise) -> _Done:
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
        answer = self._ask("GET", "/resource_providers", params={"uuid": _NOBODY})
        if not isinstance(answer.get("resource_providers"), list):
            raise PlacementError("answer", "what answers there is no Placement")
        return _Done(written=False, notes={})

    def _uuid(self, node: str) -> str:
        given = self._settings.providers[node]
        if not (found := self._uuids.get(node) or _as_uuid(given)):
            answer = self._ask("GET", "/resource_providers", params={"name": given})
            providers = answer.get("resource_providers")
            if not isinstance(providers, list) or not all(isinstance(one, dict) for one in providers):
                raise PlacementError("answer", "a list of providers is none")
            if not providers:
                raise _Missing("missing", f"no resource provider has the name {given}")
            if not (found := _as_uuid(str(providers[0].get("uuid")))):
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
            raise _unconnected(error) from None
        except exceptions.ClientException as error:
            raise PlacementError("login", f"Keystone: {_line(str(error)) or type(error).__name__}") from None
        try:
            body = response.json()
        except ValueError:
            body = None
        if response.status_code != 200:
            raise _refusal(response.status_code, body)
        if not isinstance(body, dict):
            raise PlacementError("answer", "what answers there is no Placement")
        return body


def allocation_ratio(amount: float, usable: int) -> float:
    """The ratio of four decimals whose capacity is the whole part of an amount, or else the next lower one.

    Placement compares what is used, a whole number, with ``(total - reserved) * ratio``: 3 cores with a ratio of
    2.6666 take no eighth vCPU, with 2.6667 they take it, and no ninth.

    Parameters
    ----------
    amount : float
        What is promised, in units of the inventory.
    usable : int
        Its total without what is reserved, at least 1.

    Examples
    --------
    >>> allocation_ratio(12.9, 8), allocation_ratio(8.0, 3), allocation_ratio(300000.0, 257_000)
    (1.5, 2.6667, 1.1673)
    """
    # A sum of booked and free may lack a last bit.
    target = math.floor(amount + 1e-6)
    steps = target * _STEPS // usable
    for ratio in (steps / _STEPS, (steps + 1) / _STEPS, (steps + 2) / _STEPS):
        # As a server with SQLite or PostgreSQL reckons, and as one with MySQL does.
        capacities = usable * ratio, usable * struct.unpack("f", struct.pack("f", ratio))[0]
        if min(capacities) >= target and max(capacities) < target + 1:
            return ratio
    return steps / _STEPS


def _adapter(settings: PlacementSettings) -> Adapter:
    # It warns of a Keystone that is away whenever it is asked; we say that ourselves, once.
    logging.getLogger("keystoneauth").setLevel(logging.ERROR)
    login = settings.login
    common: dict[str, Any] = {
        "service_type": "placement",
        "default_microversion": _MICROVERSION,
        # A deadlock in Placement's database is a status of 500, and the next try goes well. A write that was done all
        # the same is a conflict then.
        "status_code_retries": 3,
        "retriable_status_codes": [500, 502, 503, 504],
        "status_code_retry_delay": 0.2,
    }
    session = Session(
        timeout=settings.timeout_s,
        verify=settings.ca_file or True,
        # A token is for the server that is named, not for where that may point.
        redirect=False,
        user_agent="scroogevm",
    )
    if isinstance(login, Token):
        return Adapter(session, auth=token_endpoint.Token(login.endpoint, login.token), **common)
    try:
        auth: Any = loading.get_plugin_loader(login.kind).load_from_options(**login.options)
    except exceptions.ClientException as error:
        raise PlacementError("login", _line(str(error))) from None
    return Adapter(
        session,
        interface=login.interface,
        region_name=login.region or None,
        endpoint_override=login.endpoint or None,
        auth=auth,
        **common,
    )


def _outcome(work: Callable[[str], _Done], name: str) -> _Done | PlacementError:
    try:
        return work(name)
    except PlacementError as error:
        return error
    except Exception as error:  # whatever one provider's answer does to us, the others go on
        LOG.debug("%s", name, exc_info=True)
        return PlacementError("internal", f"{type(error).__name__}, a fault of ScroogeVM")


def _as_uuid(text: str) -> str:
    """The text as Placement writes a UUID; empty if it is none."""
    try:
        found = str(uuid.UUID(text))
    except ValueError:
        return ""
    return found if found == text.lower() else ""


def _refusal(status: int, body: Any) -> PlacementError:
    errors = body.get("errors") if isinstance(body, dict) else None
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
    # The first paragraph says what the status says already.
    said = _line(str(first.get("detail", "")).strip().rpartition("\n\n")[2])
    words = f"HTTP status {status}: {said}" if said else f"HTTP status {status}"
    if status == 409 and first.get("code") == "placement.concurrent_update":
        return _Conflict("conflict", words)
    if status == 404:
        return _Missing("missing", words)
    reasons = {401: "login", 403: "forbidden"}
    return PlacementError(reasons.get(status, "server" if status >= 500 else "refused"), words)


def _unconnected(error: BaseException) -> PlacementError:
    """What is at the bottom of an error; not its URL."""
    # The system's own words come first: urllib3 counts a refused connection among those that took too long.
    for number, words in system_words(error):
        if number != errno.ETIMEDOUT:
            return PlacementError("connection", _line(words))
    silent = (exceptions.ConnectTimeout, requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
    if any(isinstance(cause, silent) for cause in causes(error)):
        return PlacementError("timeout", "no answer in time")
    return PlacementError("connection", f"no connection ({type(error).__name__})")


def _line(text: str) -> str:
    """At most 200 printable characters."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))[:200]
