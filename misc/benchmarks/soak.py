#!/usr/bin/env python3
"""Runs aggregator and estimator for minutes at accelerated pace with VMs that come and go, and prints what they hold.

Workers are scraped every second, slices take ten. VMs of some workers leave and return, those of others have a new
name on each page. Memory, file descriptors, threads and files are printed at the start, the middle and the end.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from model.cli.main import require_libraries, run_interruptible
from model.cli.parser import Parser, number, whole_number

with require_libraries("live"):
    from misc.benchmarks.processes import control, daemon, fake_workers, file_mb, open_files, rss_mb, threads

_VMS = 10
_SLICE_S = 10
_SLICES = 6
#: Share of the workers whose VMs have new names on each page.
_RENAMED = 0.1
#: The figures of the start are those after this share of the time.
_WARM_UP = 0.2
_HEADER = f"{'':>8} {'':12} {'RSS MB':>8} {'files':>6} {'threads':>8}"


def main(argv: list[str] | None = None) -> int:
    """Run the soak; the exit code."""
    parser = Parser(prog="soak.py", description=__doc__)
    parser.add_argument("--minutes", type=number(0.1), default=20.0, metavar="N", help="length (20)")
    parser.add_argument("--workers", type=whole_number(1), default=20, metavar="N", help=f"of {_VMS} VMs each (20)")
    args = parser.parse_args(argv)
    return run_interruptible(lambda: _soak(args.minutes * 60.0, args.workers), lambda: 130)


def _soak(seconds: float, workers: int) -> int:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stubs = stack.enter_context(fake_workers(workers, _VMS, 1000))
        for worker in range(max(1, int(workers * _RENAMED))):
            control(stubs, worker=worker, fault="renamed-vms")
        settings = _settings(folder, stubs, seconds)
        log = stack.enter_context((folder / "log").open("wb"))
        pids = {
            name: stack.enter_context(daemon(name, settings, cwd=folder, stderr=log))
            for name in ("vmaggreg.py", "scroogevm.py")
        }
        print(f"{workers} workers x {_VMS} VMs, a scrape every second, slices of {_SLICE_S} s, {seconds / 60:g} min")
        print(_HEADER)
        start_s = time.monotonic()
        for share in (_WARM_UP, 0.5 + _WARM_UP / 2, 1.0):
            _churn(stubs, workers, start_s + share * seconds)
            _print_state(folder, pids, time.monotonic() - start_s)
        lines = (folder / "log").read_text().splitlines()
    print(f"{len(lines)} lines were logged" + "".join(f"\n    {line}" for line in lines[:10]))
    return 0


def _settings(folder: Path, stubs: list[Any], seconds: float) -> dict[str, str]:
    return {
        "AGGREG_STUB_LIST": json.dumps(stubs),
        "AGGREG_FETCH_DELAY": "1",
        # All renamed VMs of the whole run are allowed.
        "AGGREG_MAX_VMS": str(int(_VMS * (seconds + 60))),
        "STATE_ENDPOINT": str(folder / "status.json"),
        "SCHED_SCOPE_S": str(_SLICES * _SLICE_S),
        "SCHED_SCOPE_SLICE_S": str(_SLICE_S),
        "SCHED_SCOPE_HISTORICAL": "1",
        "SCHED_SCOPE_INIT_FETCH_PREVIOUS": "0",
    }


def _churn(stubs: list[Any], workers: int, until_s: float) -> None:
    """Let a VM leave and another return every second, on a worker drawn at random."""
    draw = random.Random(1)  # noqa: S311  # not for cryptography
    away: list[tuple[int, int]] = []
    while (left_s := until_s - time.monotonic()) > 0:
        time.sleep(min(1.0, left_s))
        gone = (draw.randrange(workers), draw.randrange(_VMS))
        if gone not in away:
            control(stubs, worker=gone[0], fault="vm-leaves", vm=gone[1])
            away.append(gone)
        if len(away) > workers:
            worker, vm = away.pop(0)
            control(stubs, worker=worker, fault="vm-returns", vm=vm)
    for worker, vm in away:
        control(stubs, worker=worker, fault="vm-returns", vm=vm)


def _print_state(folder: Path, pids: dict[str, int], elapsed_s: float) -> None:
    for name, pid in pids.items():
        print(f"{elapsed_s:7.0f}s {name:12} {rss_mb(pid):8.1f} {open_files(pid):6} {threads(pid):8}")
    files = ("store.sqlite", "store.sqlite-wal", "estimator.sqlite", "estimator.sqlite-wal")
    print(" " * 9 + ", ".join(f"{name} {file_mb(folder / name):.1f} MB" for name in files), flush=True)


if __name__ == "__main__":
    sys.exit(main())
