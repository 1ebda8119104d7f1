"""The closed loop on a real OpenStack: nova admits VMs, they use CPU, ScroogeVM measures that and sets ratios.

More VMs are asked for than fit. A line per slice and host shows what nova admitted, what may be admitted in total, and
what the VMs used and wanted. With --ratio the same VMs are asked for at a fixed ratio, without ScroogeVM.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
from bridge import Bridge, Domain, node_name
from cloud import CloudError, Nova, Placement, host_sizes, log_in, run_service
from customers import Customers
from daemons import SLICES_OF_DAY, Daemons
from recording import Recorder
from workload import MB_PER_VCPU, Arrival, Usage, draw_arrivals

from model.cli.parser import Parser, number, whole_number
from model.common.atomic_files import write_atomically

#: Slices of a "virtual day", mean life of a VM, and time in which the first VMs arrive.
_DAY, _LIFE, _FILL = SLICES_OF_DAY, 54, 24

#: Ratio with which the run begins, and slices until ScroogeVM publishes: before that it only learns what VMs use.
_FIRST_RATIO, _LEARN = 2.0, 30

#: Slices that the figures leave out, slices of all runs, and slices after them in which another process writes ratios.
_WARM_UP, _COMMON, _OTHER_WRITER = 44, 84, 24

#: Slices in which VMs arrive.
_ARRIVALS = 96

#: vCPUs that are asked for per core that VMs share, and mean share of its vCPUs that a VM wants.
_ASKED, _LEVEL = 5.0, 0.15

_STALE, _ORPHAN, _STOPPED, _WRITER = "compute2", "compute1", "compute3", "compute1"


class Run:
    """One run of the loop."""

    def __init__(self, args: Namespace, folder: Path) -> None:
        self._args, self._folder = args, folder
        self._fixed: float | None = args.ratio
        self._slice_s: int = args.slice_s
        self.slices = _COMMON + (0 if self._fixed is not None else _OTHER_WRITER)
        self._sizes = host_sizes(args.lab)
        session = log_in()
        self._nova, self._placement = Nova(session), Placement(session)
        self._providers = self._placement.providers()
        run_s = _ARRIVALS * self._slice_s
        shared = sum(cores - dedicated for cores, _, dedicated in self._sizes.values())
        self._begin_s = 0
        self._usage = Usage(args.seed, run_s + 60, _DAY * self._slice_s, _LEVEL)
        arrivals = draw_arrivals(args.seed, _ASKED * shared, _LIFE * self._slice_s, _FILL * self._slice_s, run_s)
        pinned = [Arrival(f"pinned-{i}", (2 + 28 * i) * self._slice_s, 1e9, 2, pinned=True) for i in range(3)]
        self.customers = Customers(self._nova, sorted([*arrivals, *pinned], key=lambda one: one.at_s))
        self._daemons = Daemons(args.checkout, folder)
        self._recorder = Recorder(self._placement, self._providers)
        self._rows: list[dict[str, Any]] = []
        self._notes: list[str] = []
        self._background: list[asyncio.Future[Any]] = []

    def prepare(self) -> None:
        """Empty the cloud and set the ratios with which the run begins."""
        deadline = time.monotonic() + 120
        while servers := self._nova.servers():
            if time.monotonic() > deadline:
                raise CloudError(f"VM {servers[0].id} of host {servers[0].host} cannot be deleted")
            for server in servers:
                self._nova.delete(server.id)
            time.sleep(5)
        for host in self._sizes:
            options = self._args.lab / "etc" / f"{host}.conf"
            if options.exists() and options.read_text():
                options.write_text("")
                self._restart(f"nova-compute-{host}")
            ratios = {"VCPU": {"allocation_ratio": self._fixed or _FIRST_RATIO}, "MEMORY_MB": {"allocation_ratio": 1.0}}
            self._placement.change_inventories(self._providers[host], ratios)

    async def loop(self) -> None:
        """Run all slices."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # in a coroutine
        for one in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(one, task.cancel)
        self._begin_s = int(time.time() // self._slice_s + 2) * self._slice_s
        bridge = Bridge(self._sizes, self._usage, self._begin_s)
        await bridge.pages.start()
        with ThreadPoolExecutor(8) as pool:
            loop.set_default_executor(pool)
            watcher = asyncio.create_task(self._watch(bridge))
            try:
                if self._fixed is None:
                    self._daemons.configure(bridge.stubs(), "", self._slice_s, dict(self._args.set))
                    self._daemons.start("vmaggreg")
                    self._daemons.start("scroogevm")
                await self._run_slices(bridge)
            finally:
                watcher.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watcher
                await asyncio.to_thread(self._daemons.stop_all)
                await bridge.pages.stop()

    async def _watch(self, bridge: Bridge) -> None:
        """Every two seconds: what nova runs, and what Placement has allocated."""
        while True:
            try:
                servers = await asyncio.to_thread(self._nova.servers)
                bridge.set_servers(servers)
                await asyncio.to_thread(self.customers.take_servers, servers)
                if self._args.record:
                    await asyncio.to_thread(self._recorder.look, self._now_s())
            except (CloudError, OSError) as error:
                self._note(f"nova or Placement: {error}")
            await asyncio.sleep(2)

    def _now_s(self) -> float:
        return time.time() - self._begin_s

    def _note(self, text: str) -> None:
        self._notes.append(f"{self._now_s():.0f} s: {text}")
        print(f"      -- {text}", flush=True)

    async def _run_slices(self, bridge: Bridge) -> None:
        events = self._events(bridge)
        for k in range(self.slices):
            for event in events.get(k, ()):
                event()
            for second in range(k * self._slice_s, (k + 1) * self._slice_s):
                await asyncio.sleep(max(0.0, self._begin_s + second - time.time()))
                bridge.run_second(second)
                self.customers.run_until(second)
            await asyncio.sleep(max(0.0, self._begin_s + (k + 1) * self._slice_s - time.time()))
            self._end_slice(k, bridge)

    def _end_slice(self, number: int, bridge: Bridge) -> None:
        loads = bridge.take_loads()
        admitted, refused = self.customers.take_counts()

        def look() -> None:
            published = self._daemons.published()
            for host, load in loads.items():
                one = self._placement.provider(self._providers[host])
                status = published.get(node_name(host), {})
                cpu = status.get("cpu") or {}
                row = {
                    "slice": number,
                    "host": host,
                    "cores": load.cores,
                    "used_vcpu": one.usages.get("VCPU", 0),
                    "used_pcpu": one.usages.get("PCPU", 0),
                    "capacity": round(one.capacity("VCPU"), 2),
                    "domains_vcpu": load.vcpus,
                    "state": status.get("state", ""),
                    "free": status.get("free_cpu"),
                    "booked_now": cpu.get("booked_now"),
                    "closed": cpu.get("closed"),
                    "config": cpu.get("config"),
                    "used": round(sum(load.used) / len(load.used), 2),
                    "demand_p99": round(float(np.percentile(load.demand, 99)), 2),
                }
                row["over"] = row["demand_p99"] > load.cores
                self._rows.append(row)
                self._recorder.note_slice(row)
            print(_lines(number, self._now_s(), admitted, refused, self._rows[-len(loads) :]), flush=True)

        self._in_background(look)

    def _in_background(self, work: Callable[[], None]) -> None:
        """Work that takes longer than the loop may wait."""

        def guarded() -> None:
            try:
                work()
            except (CloudError, OSError) as error:
                self._note(str(error))

        self._background.append(asyncio.get_running_loop().run_in_executor(None, guarded))

    def _restart(self, service: str) -> None:
        for command in ("stop", "start"):
            run_service(self._args.lab, command, service)

    def _events(self, bridge: Bridge) -> dict[int, list[Callable[[], None]]]:
        """What happens at the begin of a slice."""

        def note(text: str) -> Callable[[], None]:
            return lambda: self._note(text)

        def silence(silent: bool) -> Callable[[], None]:
            return lambda: bridge.silence(_STALE, silent)

        def orphan(domains: list[Domain]) -> Callable[[], None]:
            return lambda: bridge.extra.update({_ORPHAN: domains})

        def late(seconds: float) -> Callable[[], None]:
            return lambda: setattr(bridge, "late_s", seconds)

        def restart(service: str) -> Callable[[], None]:
            return lambda: self._in_background(lambda: self._restart(service))

        def kill_scroogevm() -> None:
            self._daemons.stop("scroogevm", signal.SIGKILL)
            self._daemons.start("scroogevm")

        def publish() -> None:
            listed = {node_name(host): host for host in self._sizes}
            more = {"PLACEMENT_MAX_RATIO": 8, "PLACEMENT_POLL_S": 4} | dict(self._args.set)
            self._daemons.stop("scroogevm")
            providers = "auto" if self._args.auto else listed
            self._daemons.configure(bridge.stubs(), providers, self._slice_s, more)
            self._daemons.start("scroogevm")

        def with_scroogevm(text: str, work: Callable[[], None]) -> list[Callable[[], None]]:
            return [] if self._fixed is not None else [note(text), lambda: self._in_background(work)]

        def write_ratio() -> None:
            (self._args.lab / "etc" / f"{_WRITER}.conf").write_text("[DEFAULT]\ncpu_allocation_ratio = 8\n")
            self._in_background(lambda: self._restart(f"nova-compute-{_WRITER}"))

        def change(host: str, count: int, action: str) -> Callable[[], None]:
            return lambda: self._in_background(lambda: self._note(self.customers.change(host, count, action)))

        domain = Domain("orphan", 24, 24 * MB_PER_VCPU, "orphan")
        return {
            _LEARN: with_scroogevm("scroogevm.py publishes to Placement from now on", publish),
            46: [note(f"{_STALE} is silent until slice 51"), silence(True)],
            48: [change(_STALE, 2, "delete")],
            51: [silence(False)],
            53: [note(f"{_ORPHAN} has a VM of 24 vCPUs of which nova does not know, until slice 59"), orphan([domain])],
            59: [orphan([])],
            61: [change(_STOPPED, 3, "stop")],
            63: [note("VMs are on the pages 15 s after their start, until slice 68"), late(15.0)],
            68: [late(0.0)],
            70: [note(f"nova-compute of {_STOPPED} restarts"), restart(f"nova-compute-{_STOPPED}")],
            73: with_scroogevm("scroogevm.py is killed and restarts", kill_scroogevm),
            77: [note("Placement restarts"), restart("placement")],
            _COMMON: [note(f"nova-compute of {_WRITER} has cpu_allocation_ratio=8"), write_ratio],
        }

    def results(self) -> dict[str, Any]:
        """Everything that was seen, and the figures of the slices after the warm-up that all runs have."""
        counted = [row for row in self._rows if _WARM_UP <= row["slice"] < _COMMON]
        after = [row for row in self._rows if row["slice"] >= _COMMON]
        cores = sum(row["cores"] for row in counted)
        # The other writer's slices are in no run with a fixed ratio.
        end_s = _COMMON * self._slice_s
        vcpus = [one.vcpus for one in self.customers.admitted if one.at_s < end_s]
        return {
            "ratio": self._fixed,
            "seed": self._args.seed,
            "slice_s": self._slice_s,
            "figures": {
                "vms_admitted": len(vcpus),
                "vcpus_admitted": sum(vcpus),
                "vms_refused": self.customers.refused,
                "sold": round(sum(row["used_vcpu"] for row in counted) / cores, 3),
                "used": round(sum(row["used"] for row in counted) / cores, 3),
                "node_slices": len(counted),
                "over": sum(row["over"] for row in counted),
                "over_after_other_writer": sum(row["over"] for row in after),
                "node_slices_after_other_writer": len(after),
            },
            "notes": self._notes,
            "rows": self._rows,
            "admitted": [asdict(one) for one in self.customers.admitted],
        }

    def recording(self) -> dict[str, Any]:
        """What Placement saw."""
        return {"slice_s": self._slice_s, **self._recorder.content()}


def _lines(number: int, now_s: float, admitted: int, refused: int, rows: list[dict[str, Any]]) -> str:
    lines = [f"slice {number:2}  {now_s:4.0f} s   admitted {admitted}, refused {refused}"]
    for row in rows:
        pinned = f" + {row['used_pcpu']} pinned" if row["used_pcpu"] else ""
        free = "-" if row["free"] is None else f"{row['free']:.1f}{' closed' if row['closed'] else ''}"
        lines.append(
            f"   {row['host']:9} {row['state']:6} allocated {row['used_vcpu']:4}{pinned:11} of {row['capacity']:6.1f}"
            f"   on the host {row['domains_vcpu']:4}   free {free:12} used {row['used']:5.1f}"
            f"   wanted {row['demand_p99']:5.1f} of {row['cores']}{'  OVER' if row['over'] else ''}"
        )
    return "\n".join(lines)


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(prog="lab.sh run", description=__doc__)
    default = Path(__file__).resolve().parent.parent.parent
    parser.add_argument("--lab", type=Path, required=True, metavar="FOLDER", help="the lab's folder (set by lab.sh)")
    parser.add_argument("--checkout", type=Path, default=default, metavar="FOLDER", help="ScroogeVM; default: this one")
    parser.add_argument("--ratio", type=number(0.01), metavar="R", help="a fixed ratio, without ScroogeVM")
    parser.add_argument("--auto", action="store_true", help="PLACEMENT_PROVIDERS=auto instead of a list")
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="NAME=VALUE", help="a setting")
    parser.add_argument("--seed", type=whole_number(0), default=1, metavar="N", help="of VMs and usage (default: 1)")
    parser.add_argument("--slice-s", type=whole_number(4), default=4, metavar="N", help="length of a slice (4)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="results as JSON")
    parser.add_argument("--record", type=Path, metavar="FILE", help="what Placement saw, for a test")
    return parser


def _setting(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


@contextlib.contextmanager
def _work_folder(lab: Path) -> Iterator[Path]:
    folder = lab / "runs" / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    print(f"settings and logs of ScroogeVM are in {folder}", flush=True)
    yield folder


def main(argv: list[str] | None = None) -> int:
    """Run the loop and print its figures; returns the exit code."""
    args = build_parser().parse_args(argv)
    with _work_folder(args.lab) as folder:
        run = Run(args, folder)
        run.prepare()
        try:
            asyncio.run(run.loop())
        except asyncio.CancelledError:
            print("stopped")
            return 1
        finally:
            run.customers.close()
        results = run.results()
        for name, value in results["figures"].items():
            print(f"  {name:32} {value}")
        if args.output:
            write_atomically(args.output, json.dumps(results, separators=(",", ":")).encode() + b"\n")
        if args.record:
            write_atomically(args.record, json.dumps(run.recording(), separators=(",", ":")).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
