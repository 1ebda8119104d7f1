"""``vmballooning.py``: opens journal, store and hosts, and runs a controller for each host.

Only settings keep the daemon from running: whatever else cannot be used at the start is tried again, because guests may
be squeezed.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from .. import __version__
from ..cli.parser import discard_output
from ..common.environment import SettingsError, environment
from ..common.errors import UsageError
from ..common.http_server import serve_metrics
from ..common.lifecycle import DaemonControl, run_daemon
from ..common.logs import EVENT, ProblemLog, set_up_logging
from ..common.threads import run_periodically, start_thread
from ..store.factory import store_name
from .actions import ActionExecutor, report_journal
from .check import run_check
from .clock import Clock
from .counts import BallooningCounts
from .driver import run_controllers
from .guest_locator import GuestLocator
from .guests import GuestUsage
from .host_controller import Executor, HostController, Intervals
from .journal import Journal
from .metrics import BallooningMetrics
from .plan_output import PlanOutput, PlanPrinter
from .settings import BallooningSettings, ballooning_settings
from .usage_reader import UsageReader

LOG = logging.getLogger("scroogevm.ballooning")

UsageOfHost = Callable[[float], Mapping[str, GuestUsage] | None]


@dataclass(frozen=True, slots=True)
class BallooningOptions:
    """Options of the command line.

    Attributes
    ----------
    dry_run : bool
        Print each plan and change nothing.
    once : bool
        Make one plan, close its sessions, exit.
    debug : int
        0: warnings and errors; 1: a line per action as well.
    json : bool
        Print the plan as JSON lines, the check as a JSON list.
    check : bool
        Query store and hosts once.
    """

    dry_run: bool
    once: bool
    debug: int
    json: bool = False
    check: bool = False


def run(options: BallooningOptions) -> int:
    """Run the ballooning daemon or its check; the exit code.

    Raises
    ------
    UsageError
        When the settings cannot be used.
    """
    set_up_logging(options.debug > 0)
    counts = BallooningCounts()
    try:
        if options.check:
            return run_check(_load(), as_json=options.json)
        return run_daemon(
            _load,
            lambda settings, control: _serve(options, counts, settings, control),
            retries=not options.once,
        )
    except SettingsError as error:
        raise UsageError(str(error)) from None


def _load() -> BallooningSettings:
    return ballooning_settings(environment())


def _serve(
    options: BallooningOptions, counts: BallooningCounts, settings: BallooningSettings, control: DaemonControl
) -> int:
    """Balloon until a stop or a reload is requested, or once; the exit code."""
    counts.up.clear()  # a reload may have removed hosts
    problems = ProblemLog(LOG)
    output = PlanOutput(sys.stdout, control.set, as_json=options.json) if options.dry_run else None
    with contextlib.ExitStack() as opened:
        journal = opened.enter_context(Journal(settings.journal_path, locked=not options.dry_run))
        if journal.fault:
            report_journal(problems, journal.fault)
            opened.callback(_retrying(journal, problems, settings.sleep_s))
        usage = UsageReader(*(settings.store, list(settings.hosts), settings.rules.scope_s, settings.sleep_s, problems))
        opened.callback(usage.close)
        if not usage.start() and options.once:
            return 1
        metrics_url = "off"
        if settings.metrics_port and not options.once:
            metrics_url = _serve_metrics(settings, counts, journal, opened)
        if not options.once:
            LOG.info(
                "started version=%s store=%s hosts=%d journal=%s metrics=%s",
                *(__version__, store_name(settings.store).removeprefix("store "), len(settings.hosts)),
                *(journal.path, metrics_url),
                extra=EVENT,
            )
        controllers = _build_controllers(options, settings, counts, journal, usage, output, problems)
        control.report_ready()
        ended = run_controllers(controllers, control.event, once=options.once, beat=control.beat)
        squeezed = [] if options.dry_run else list(journal.sessions().values())
    for session in squeezed:
        LOG.error("%s: still squeezed, the next start restores it: vm=%s", session.host, session.name)
    if output is not None and output.failure is not None:
        return _report_lost_output(output.failure)
    unavailable = options.once and not all(counts.up.get(uri) for uri in settings.hosts.values())
    return 0 if ended and not squeezed and not unavailable else 1


def _serve_metrics(
    settings: BallooningSettings, counts: BallooningCounts, journal: Journal, opened: contextlib.ExitStack
) -> str:
    """Serve the metrics until the stack is closed; their URL."""
    registry = CollectorRegistry()
    registry.register(BallooningMetrics(counts, journal))
    address = settings.metrics_address
    server = serve_metrics("BALLOONING_METRICS_PORT", settings.metrics_port, address, registry)
    opened.callback(server.close)
    return f"http://{f'[{address}]' if ':' in address else address}:{settings.metrics_port}/metrics"


def _retrying(journal: Journal, problems: ProblemLog, every_s: float) -> Callable[[], None]:
    """Try again in a thread to use the journal; the function that ends it."""
    stop = threading.Event()

    def retry() -> None:
        journal.retry()
        if not journal.fault:
            problems.resolve("journal")
            stop.set()

    start_thread("journal", run_periodically, retry, every_s, stop)
    return stop.set


def _build_controllers(
    options: BallooningOptions,
    settings: BallooningSettings,
    counts: BallooningCounts,
    journal: Journal,
    reader: UsageReader,
    output: PlanOutput | None,
    problems: ProblemLog,
) -> list[HostController]:
    """A controller for each host of the settings, and for each other host with a squeezed guest."""
    # libvirt is a compiled library that the checks of the settings do not need.
    from .hypervisor import Hypervisor

    rules, clock = settings.rules, Clock()
    intervals = Intervals(min(settings.sleep_s, rules.stats_age_s / 3), settings.check_s, settings.sleep_s)
    usages: dict[str, UsageOfHost] = {uri: _usage_of(reader, node) for node, uri in settings.hosts.items()}
    for session in journal.sessions().values():
        usages.setdefault(session.host, lambda _now_s: {})
    locator = GuestLocator(usages)

    def build(uri: str, usage: UsageOfHost) -> HostController:
        host = Hypervisor(uri, settings.timeout_s)
        executor: Executor
        if output is not None:
            executor = PlanPrinter(uri, output)
        else:
            executor = ActionExecutor(uri, host, journal, locator, rules.grace_s, counts, problems, clock)
        return HostController(
            *(uri, host, journal, usage, executor, locator, rules, intervals, counts, problems, clock),
            dry_run=options.dry_run,
            once=options.once,
        )

    return [build(uri, usage) for uri, usage in usages.items()]


def _usage_of(reader: UsageReader, node: str) -> UsageOfHost:
    return lambda now_s: reader.usage(node, now_s)


def _report_lost_output(error: OSError) -> int:
    """Report that stdout cannot be written; a reader that closed the pipe is not reported."""
    discard_output()
    if not isinstance(error, BrokenPipeError):
        LOG.error("stdout cannot be written: %s", error.strerror)
    return 1
