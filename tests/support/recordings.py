"""Recorded results of the original ScroogeVM, and the differences that the contract allows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.nodemodel import ModelSettings
from model.numerics import FloatArray
from model.oversubscriptioncomputation import StrategySettings
from model.replay.replay import Replay
from model.replay.trace import Trace, parse_trace
from model.slices import RESOURCES
from model.stability import StabilityDetector, mean_predictor

#: The first version of the original has no memory in greedy, and only its first slices are recorded.
ORIGINAL_SLICES = 37
STATISTICS = ("avg", "std", "max")


def recordings(folder: Path) -> list[Any]:
    """A test parameter per recording, the path of its file."""
    paths = sorted(folder.glob("expected/*/*.json"))
    # The original crashes on two percentiles that its own dump code cannot write.
    finished = [path for path in paths if not json.loads(path.read_bytes()).get("crash")]
    return [pytest.param(path, id=f"{path.parent.name}-{path.stem}") for path in finished]


def trace_of(recorded: Any, folder: Path) -> Trace:
    trace = json.loads((folder / "traces" / f"{recorded['trace']}.json").read_bytes())
    if recorded["trace"] == "tiny-fraction" and recorded["strategy"] in {"rclike", "maxpeak"}:
        trace["config"]["vm_cpu_unit"] = "share"
    return parse_trace(json.dumps(trace).encode())


def recorded_flags(recorded: Any, trace: Trace, seen: list[tuple[bool, bool]]) -> dict[str, StabilityDetector]:
    """The original's flags in place of a detector, which is called from slice (h + 1) S on."""
    first = (trace.config.historical + 1) * trace.config.positions

    def playback(resource: str) -> StabilityDetector:
        flags = iter(recorded["node"][f"{resource}_stable_state"][first:])

        def detector(older: FloatArray, new: FloatArray, /) -> bool:
            flag = bool(next(flags))
            seen.append((flag, mean_predictor(older, new)))
            return flag

        return detector

    return {resource.name: playback(resource.name) for resource in RESOURCES}


def replay_recording(path: Path, folder: Path, seen: list[tuple[bool, bool]]) -> tuple[Any, Any]:
    """The dump of a replay with the recorded flags, and the recording; appends recorded and computed flags to seen."""
    recorded = json.loads(path.read_bytes())
    trace = trace_of(recorded, folder)
    settings = ModelSettings(
        trace.config.historical,
        (recorded["strategy"],),
        StrategySettings(recorded["cpu_percentile"], recorded["aggregation"]),
        StrategySettings(recorded["mem_percentile"], recorded["aggregation"]),
    )
    outcome = Replay(trace, settings, recorded_flags(recorded, trace, seen)).run()
    return json.loads(dict(outcome.dumps("node", "recorded"))[recorded["strategy"]]), recorded


def explained(path: Path) -> Callable[[str, int], bool]:
    """Which figures of a recording may differ, by the rules of the contract."""
    name, version = path.stem, path.parent.name
    trace, strategy = name.split(".")[:2]
    by_vm = strategy in {"rclike", "maxpeak"}
    by_booking = strategy == "borg" or by_vm

    def allowed(key: str, k: int) -> bool:
        cpu = "cpu" in key
        if version == "original" and not cpu:
            return True
        # Both versions of the original take a share of a VM for cores, and multiply.
        if by_vm and cpu and (trace != "tiny-fraction" or version == "original"):
            return True
        if trace == "edge-constant":  # constant usage is not a departure: the original loses all VMs at slice 1
            return k >= 1 and (by_booking or "booked" in key)
        if trace == "multi-slice":  # the original counts a departed VM for one scope more
            return k in {13, 14, 15, 21, 22, 23} and (by_booking or "booked" in key)
        if trace == "edge-vm-restart":  # departed VMs do not count, returned ones do
            return k >= 4 and by_vm
        # An exact tie: 14.95 cores.
        return name == "small-increasing.greedy" and cpu and k == 6

    return allowed


def differences(dump: Any, recorded: Any, path: Path) -> list[str]:
    """A line per figure that differs and is not explained."""
    allowed = explained(path)
    lines = []

    def compare(key: str, ours: list[float], theirs: list[float]) -> None:
        for k, (a, b) in enumerate(zip(ours, theirs, strict=False)):
            if abs(a - b) > 1e-6 * max(1.0, abs(b)) and not allowed(key, k):
                lines.append(f"{key}[{k}]: {a} where {b} is recorded")

    for key in ("cpu_tier0", "mem_tier0", "free_cpu", "free_mem"):
        compare(key, dump["model"][key], recorded["model"][key][:ORIGINAL_SLICES])
    for key in ("booked_cpu", "booked_mem", "cpu_config", "mem_config"):
        compare(key, dump["node"][key], recorded["node"][key])
    if recorded["aggregation"] == 1:  # the original summarises aggregated samples
        for resource in RESOURCES:
            for figure in STATISTICS:
                key = f"{resource.name}_{figure}"
                compare(key, dump["node"][key], recorded["node"][key])
        for key, percentile in (("cpu", "99"), ("cpu", "90"), ("mem", "90")):
            ours = [figures[percentile] for figures in dump["node"][f"{key}_percentile"]]
            compare(f"{key}_percentile_{percentile}", ours, recorded["node"][f"{key}_percentile_{percentile}"])
    return lines
