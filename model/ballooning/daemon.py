"""``vmballooning.py``: settings in; a store, a journal and a keeper of each host, wired and run."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FrameType

from prometheus_client import CollectorRegistry

from ..common.environment import SettingsError, environment
from ..common.errors import UsageError
from ..common.http_server import serve_metrics
from ..common.logs import set_up_logging
from ..common.text import printable
from ..store.base import StoreRefused
from ..store.factory import open_store
from .guests import GuestUsage
from .host_controller import BallooningCounts, HostController, Pace, find_guest, run_controllers
from .hypervisor import Hypervisor
from .journal import Journal, JournalRefused
from .metrics import BallooningMetrics
from .plan import Action
from .settings import BallooningSettings, ballooning_settings
from .usage_cache import UsageCache

LOG = logging.getLogger("scroogevm.ballooning")


def run(args: argparse.Namespace) -> int:
    """Run what the command line asks for; the exit code.

    Raises
    ------
    UsageError
        When settings, store or journal can't be used.
    """
    set_up_logging(args.debug > 0)
    stop = _stop_on_signals()
    try:
        settings = ballooning_settings(environment())
        store = open_store(settings.store)
    except (SettingsError, StoreRefused) as error:
        raise UsageError(str(error)) from None
    with contextlib.ExitStack() as opened:
        try:
            journal = Journal(settings.journal_path, locked=not args.dry_run)
        except JournalRefused as error:
            raise UsageError(str(error)) from None
        opened.callback(journal.close)
        counts = BallooningCounts()
        if settings.metrics_port and not args.once:
            registry = CollectorRegistry()
            registry.register(BallooningMetrics(counts, journal))
            serve_metrics("BALLOONING_METRICS_PORT", settings.metrics_port, settings.metrics_address, registry)
        metrics = UsageCache(store, settings.rules.scope_s)
        controllers = _keepers(settings, journal, metrics, counts, dry_run=args.dry_run)
        left = run_controllers(
            controllers,
            lambda: metrics.refresh(list(settings.hosts), time.time()),
            settings.sleep_s,
            stop,
            once=args.once,
        )
        squeezed = [] if args.dry_run else list(journal.sessions().values())
    for session in squeezed:
        LOG.error("%s: %s is still squeezed; the next start gives it back", session.host, session.name)
    silent = args.once and not all(counts.up.get(uri) for uri in settings.hosts.values())
    return 0 if left and not squeezed and not silent else 1


def _stop_on_signals() -> threading.Event:
    """Ctrl-C and SIGTERM set the event; a second one ends the process at once."""
    stop = threading.Event()

    def ask(sent: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(sent, signal.SIG_DFL)

    signal.signal(signal.SIGINT, ask)
    signal.signal(signal.SIGTERM, ask)
    return stop


def _keepers(
    settings: BallooningSettings, journal: Journal, metrics: UsageCache, counts: BallooningCounts, *, dry_run: bool
) -> list[HostController]:
    """A keeper of each host: those of the settings, and those where something is still squeezed."""
    pace = Pace(min(settings.sleep_s, settings.rules.stats_age_s / 3), settings.check_s, settings.sleep_s)
    controllers: list[HostController] = []
    lock = threading.Lock()

    def report(host: str, actions: Sequence[Action]) -> None:
        with lock:
            sys.stdout.writelines(f"{line}\n" for line in plan_lines(host, actions))
            sys.stdout.flush()

    def keep(uri: str, of_node: Callable[[float], Mapping[str, GuestUsage] | None]) -> None:
        controllers.append(
            HostController(
                uri,
                Hypervisor(uri, settings.timeout_s),
                journal,
                of_node,
                settings.rules,
                pace,
                counts,
                lambda uuid, since: find_guest(controllers, uri, uuid, since),
                report if dry_run else None,
            )
        )

    for node, uri in settings.hosts.items():
        keep(uri, lambda now_s, node=node: metrics.of(node, now_s))  # type: ignore[misc]
    for uri in {session.host for session in journal.sessions().values()} - set(settings.hosts.values()):
        keep(uri, lambda _now_s: {})
    return controllers


def plan_lines(host: str, actions: Iterable[Action]) -> Iterator[str]:
    """The plan as text, a line per VM: host, VM, action, from and to in MB, reason."""
    for action in actions:
        sizes = "" if math.isnan(action.to_mb) else f"  {action.from_mb:.0f} -> {action.to_mb:.0f} MB"
        yield f"{host}  {printable(action.name)}  {action.kind}{sizes}  {action.reason}"
