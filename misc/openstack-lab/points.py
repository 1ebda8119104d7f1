"""Single situations on the lab's Placement, with nodes and VMs that only it has: what may a scheduler place?

Each situation is a node of its own. VMs are allocations, as nova writes them, and domains on the exporters' pages.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
import uuid
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from bridge import Bridge, Domain, node_name
from cloud import CloudError, Placement, log_in
from daemons import Daemons

from model.cli.parser import Parser, whole_number
from model.common.atomic_files import write_atomically

_MB_PER_VCPU = 1024
_TRAIT = "CUSTOM_NO_OVERCOMMIT"

#: Size of the VMs that are tried, vCPUs.
_SIZE = 4


class Constant:
    """The usage of VMs whose profile is a share of their vCPUs in percent."""

    def share(self, name: str, second: int) -> float:
        """The share, the same at all times."""
        del second
        return float(name) / 100.0


@dataclass(slots=True)
class Node:
    """A node with a provider, and VMs of 4 vCPUs.

    Attributes
    ----------
    name : str
    cores : int
        Of the machine.
    vcpu, pcpu, reserved : int
        Total of the inventory VCPU, or of PCPU; reserved VCPU.
    vms, percent : int
        VMs at the begin, and what they use of their size.
    """

    name: str
    cores: int = 16
    vcpu: int = 16
    pcpu: int = 0
    reserved: int = 0
    vms: int = 4
    percent: int = 10
    pinned: int = 0
    orphan: int = 0
    provider: str = ""
    domains: dict[str, Domain] = field(default_factory=dict)

    def inventories(self) -> dict[str, dict[str, Any]]:
        """As nova-compute would write them, with an initial ratio of 1."""
        memory_mb = self.cores * 16384
        sizes = {"VCPU": self.vcpu, "MEMORY_MB": memory_mb} | ({"PCPU": self.pcpu} if self.pcpu else {})
        rest = {"min_unit": 1, "step_size": 1, "allocation_ratio": 1.0, "reserved": 0}
        found = {name: {"total": total, "max_unit": total, **rest} for name, total in sizes.items()}
        found["VCPU"]["reserved"] = self.reserved
        found["VCPU"]["allocation_ratio"] = 4.0 if self.vms * _SIZE > self.vcpu - self.reserved else 1.0
        return found


NODES = (
    Node("plain"),
    Node("dedicated", cores=32, vcpu=8, pcpu=24, vms=2, percent=20, pinned=4),
    Node("larger", cores=32, vcpu=40),
    Node("orphan", orphan=40),
    Node("stale", vms=10, percent=20),
    Node("busy", vms=10, percent=95),
    Node("reserved", reserved=6),
    Node("written"),
    Node("skipped"),
)


class Points:
    """The situations, in one run of the daemons."""

    def __init__(self, args: Namespace, folder: Path) -> None:
        self._args, self._folder = args, folder
        self._placement = Placement(log_in())
        self._nodes = {one.name: one for one in NODES}
        sizes = {one.name: (one.cores, one.cores * 16384, one.pcpu) for one in NODES}
        self._begin_s = int(time.time() // args.slice_s + 1) * args.slice_s
        self._bridge = Bridge(sizes, Constant(), self._begin_s)
        self._daemons = Daemons(args.checkout, folder)
        self.results: dict[str, Any] = {}

    def prepare(self) -> None:
        """Make the providers and their VMs."""
        for node in self._nodes.values():
            created = self._placement.call("POST", "/resource_providers", {"name": node.name})
            node.provider = created["uuid"]
            body = {"resource_provider_generation": 0, "inventories": node.inventories()}
            self._placement.call("PUT", f"/resource_providers/{node.provider}/inventories", body)
            for _ in range(node.vms):
                assert self.place(node)  # noqa: S101  # the inventory is made for them
            for _ in range(node.pinned):
                assert self.place(node, pinned=True)  # noqa: S101
            if node.orphan:
                node.domains["unknown"] = Domain("unknown", node.orphan, node.orphan * 128, str(node.percent))
            self._show(node)
        self._placement.call("PUT", f"/traits/{_TRAIT}")
        skipped = f"/resource_providers/{self._nodes['skipped'].provider}/traits"
        self._placement.call(
            "PUT", skipped, {"resource_provider_generation": self._generation(skipped), "traits": [_TRAIT]}
        )

    def _generation(self, path: str) -> int:
        return int(self._placement.call("GET", path)["resource_provider_generation"])

    def clean(self) -> None:
        """Delete the providers."""
        for node in self._nodes.values():
            if node.provider:
                for consumer in self._placement.allocations(node.provider):
                    self._placement.call("DELETE", f"/allocations/{consumer}")
                self._placement.call("DELETE", f"/resource_providers/{node.provider}")

    def place(self, node: Node, *, pinned: bool = False, seen: bool = True) -> bool:
        """Allocate a VM as a scheduler would; False when Placement refuses it. ``seen``: the exporters list it."""
        consumer = str(uuid.uuid4())
        resources = {"PCPU" if pinned else "VCPU": _SIZE, "MEMORY_MB": _SIZE * _MB_PER_VCPU}
        body = {
            "allocations": {node.provider: {"resources": resources}},
            **{"project_id": "points", "user_id": "points", "consumer_generation": None, "consumer_type": "INSTANCE"},
        }
        try:
            self._placement.call("PUT", f"/allocations/{consumer}", body)
        except CloudError:
            return False
        if seen:
            domain = Domain(f"instance-{consumer[:8]}", _SIZE, _SIZE * _MB_PER_VCPU, str(node.percent), pinned)
            node.domains[consumer] = domain
        return True

    def _show(self, node: Node) -> None:
        self._bridge.extra[node.name] = list(node.domains.values())

    def delete(self, node: Node, count: int) -> None:
        """Delete VMs, in Placement and on the host."""
        for consumer in [name for name in node.domains if name != "unknown"][:count]:
            self._placement.call("DELETE", f"/allocations/{consumer}")
            del node.domains[consumer]
        self._show(node)

    def fill(self, name: str) -> int:
        """How many VMs Placement accepts now; they are not on the pages yet."""
        node = self._nodes[name]
        count = 0
        while count < 40 and self.place(node, seen=False):
            count += 1
        return count

    def vcpu(self, name: str) -> dict[str, float]:
        """Ratio, capacity and usage of VCPU."""
        one = self._placement.provider(self._nodes[name].provider)
        ratio = one.inventories["VCPU"]["allocation_ratio"]
        return {"ratio": ratio, "capacity": one.capacity("VCPU"), "allocated": one.usages["VCPU"]}

    def state(self, name: str) -> dict[str, Any]:
        """What is published of a node."""
        status = self._daemons.published().get(node_name(name), {})
        cpu = status.get("cpu") or {}
        return {"state": status.get("state"), "free": status.get("free_cpu"), "booked_now": cpu.get("booked_now")}

    async def run(self) -> None:
        """Run the daemons and look."""
        await self._bridge.pages.start()
        providers = {node_name(one.name): one.provider for one in NODES}
        more = {"SCHED_GUARDS": 0, "SCHED_STRATEGY": "percentile", "PLACEMENT_POLL_S": 3, "PLACEMENT_SKIP": _TRAIT}
        self._daemons.configure(self._bridge.stubs(), providers, self._args.slice_s, more)
        steps = asyncio.create_task(self._run_seconds())
        try:
            self._daemons.start("vmaggreg")
            self._daemons.start("scroogevm")
            await asyncio.to_thread(self._look)
        finally:
            steps.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await steps
            await asyncio.to_thread(self._daemons.stop_all)
            await self._bridge.pages.stop()

    async def _run_seconds(self) -> None:
        second = 0
        while True:
            await asyncio.sleep(max(0.0, self._begin_s + second - time.time()))
            self._bridge.run_second(second)
            second += 1

    def _wait_slice(self, slices: int = 1) -> None:
        """Until the figures of a slice that begins at the next boundary, or later, are published."""
        slice_s = self._args.slice_s
        time.sleep((time.time() // slice_s + slices) * slice_s + 5 - time.time())

    def _note(self, name: str, value: Any) -> None:
        self.results[name] = value
        print(f"{name}: {value}", flush=True)

    def _look(self) -> None:
        self._wait_slice(4)
        for name in ("plain", "dedicated", "larger", "orphan", "stale", "busy", "reserved", "skipped"):
            self._note(f"published: {name}", self.state(name) | self.vcpu(name))
        self._bridge.silence("stale", True)
        self._wait_slice(3)
        self._note("stale, before VMs are deleted", self.state("stale") | self.vcpu("stale"))
        for name in ("stale", "busy"):
            self.delete(self._nodes[name], 5)
        written = self._nodes["written"].provider
        self._placement.change_inventories(written, {"VCPU": {"allocation_ratio": 16.0}})
        time.sleep(6)
        for name in ("stale", "busy"):
            self._note(f"{name}, VMs let in 6 s after 5 of 10 were deleted", self.fill(name))
        self._note("another writer set 16, 6 s ago", self.vcpu("written"))
        self._wait_slice()
        self._note("another writer, a slice later", self.vcpu("written"))
        log = (self._folder / "scroogevm.log").read_text().splitlines()
        self._note("another writer, log", [line for line in log if "written" in line])
        for name in ("orphan", "plain"):
            found = []
            for _ in range(5):
                found.append(self.fill(name))
                self._wait_slice()
            self._note(f"{name}, VMs let in during 5 slices, none seen on the host yet", found)

    def find_by_name(self) -> None:
        """PLACEMENT_PROVIDERS=auto, and what --check shows."""
        self._daemons.configure(self._bridge.stubs(), "auto", self._args.slice_s, {"PLACEMENT_SKIP": _TRAIT})
        program = [self._args.checkout / ".venv/bin/python", self._args.checkout / "scroogevm.py", "--check"]
        done = subprocess.run(
            program, cwd=self._folder, capture_output=True, text=True, timeout=120, check=False, env={"COLUMNS": "200"}
        )
        self._note("auto, --check", {"rc": done.returncode})
        print(done.stdout, done.stderr, sep="\n", flush=True)
        self.results["auto, --check, text"] = [line.rstrip() for line in (done.stdout + done.stderr).splitlines()]


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(prog="lab.sh points", description=__doc__)
    default = Path(__file__).resolve().parent.parent.parent
    parser.add_argument("--lab", type=Path, required=True, metavar="FOLDER", help="the lab's folder (set by lab.sh)")
    parser.add_argument("--checkout", type=Path, default=default, metavar="FOLDER", help="ScroogeVM; default: this one")
    parser.add_argument("--slice-s", type=whole_number(10), default=15, metavar="N", help="length of a slice (15)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="results as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run all situations; returns the exit code."""
    args = build_parser().parse_args(argv)
    folder = args.lab / "runs" / time.strftime("points-%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    points = Points(args, folder)
    try:
        points.prepare()
        asyncio.run(points.run())
        points.find_by_name()
    finally:
        points.clean()
    if args.output:
        write_atomically(args.output, json.dumps(points.results, indent=1).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
