"""The generator: deterministic, legal, and of the kind that it is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from misc import tracegen
from model.replay.trace import parse_trace, read_trace
from tests.conftest import ROOT, strict_json

SMALL = ["--vms=12", "--scopes=8", "--samples=6", "--cores=64", "--memory-mb=131072"]


def generate(path: Path, *arguments: str) -> Any:
    assert tracegen.main([*SMALL, *arguments, str(path)]) == 0
    return strict_json(path.read_bytes())


@pytest.mark.parametrize("mix", tracegen.MIXES)
def test_same_command_gives_the_same_file(mix: str, tmp_path: Path) -> None:
    generate(tmp_path / "a", "--mix", mix)
    generate(tmp_path / "b", "--mix", mix)
    generate(tmp_path / "c", "--mix", mix, "--seed=2")
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize("mix", tracegen.MIXES)
def test_generated_trace_is_legal_and_stays_within_the_machines(mix: str, tmp_path: Path) -> None:
    generate(tmp_path / "t", "--mix", mix, "--arrivals=3", "--departures=3", "--extra-fields=2")
    for s in read_trace(tmp_path / "t").slices():
        assert s.cpu.measured
        assert (s.cpu.vm_usage <= s.cpu.vm_config[:, None]).all()
        assert (s.mem.vm_usage <= s.mem.vm_config[:, None]).all()
        assert s.cpu.node.max() <= 64
        # The node uses what its VMs use, and a little more.
        assert s.cpu.node.sum() >= s.cpu.vm_usage.sum()


def test_increasing_fills_and_decreasing_empties_the_node(tmp_path: Path) -> None:
    for mix, sign in (("increasing", 1), ("decreasing", -1)):
        generate(tmp_path / mix, "--mix", mix)
        counts = [len(s.vms) for s in read_trace(tmp_path / mix).slices()]
        assert (np.diff(counts) * sign >= 0).all()
        assert {counts[0], counts[-1]} == {3, 12}


def test_diurnal_peaks_in_office_hours(tmp_path: Path) -> None:
    arguments = ("--mix=diurnal", "--scopes=3", "--scope-s=86400", "--slice-s=3600", "--vms=40", "--samples=4")
    generate(tmp_path / "t", *arguments)
    usage = np.array([s.cpu.node.mean() for s in read_trace(tmp_path / "t").slices()]).reshape(3, 24).mean(axis=0)
    assert 9 <= int(usage.argmax()) <= 18
    assert usage.max() > 1.5 * usage.min()


def test_bursty_has_higher_peaks_over_its_mean_than_steady(tmp_path: Path) -> None:
    peaks = {}
    for mix in ("bursty", "steady"):
        generate(tmp_path / mix, "--mix", mix, "--samples=60", "--scopes=20")
        rows = np.concatenate([s.cpu.vm_usage for s in read_trace(tmp_path / mix).slices()], axis=1)
        peaks[mix] = float(np.median(rows.max(axis=1) / rows.mean(axis=1)))
    assert peaks["bursty"] > 1.5 * peaks["steady"]


def test_arrivals_and_departures_are_as_many_as_asked_for(tmp_path: Path) -> None:
    generate(tmp_path / "t", "--arrivals=4", "--departures=3")
    stays = [set(s.vms) for s in read_trace(tmp_path / "t").slices()]
    everyone = set().union(*stays)
    assert len(everyone - stays[0]) == 4
    assert len(everyone - stays[-1]) == 3


def test_slices_are_aligned_to_the_unix_epoch(tmp_path: Path) -> None:
    trace = generate(tmp_path / "t", "--slice-s=900")
    assert all(end % 900 == 0 for end in trace["epoch"])
    times = trace["node"]["raw_data"][0]["time"]
    assert trace["epoch"][0] - 900 < times[0] < times[-1] <= trace["epoch"][0]


def test_empty_node_is_a_trace_too(tmp_path: Path) -> None:
    trace = generate(tmp_path / "t", "--vms=0")
    assert parse_trace(json.dumps(trace).encode()).vms == ()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scope-s=1000"], "--scope-s: 1000 is not a multiple"),
        (["--start=7"], "--start: 7"),
        (["--arrivals=10", "--departures=10"], "more of them"),
        (["--vms=x"], "'x'"),
        (["--mix=wild"], "wild"),
        (["--cores=0"], "'0'"),
    ],
)
def test_mistake_is_one_line_and_writes_nothing(arguments: list[str], words: str, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "misc" / "tracegen.py", *SMALL, *arguments, tmp_path / "t"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("mix", "seed"), [("increasing", 1), ("decreasing", 2)])
def test_bundled_example_is_what_the_generator_writes(mix: str, seed: int, tmp_path: Path) -> None:
    """The command stands in the README; figures may differ in the last digit on another numpy."""
    arguments = [f"--mix={mix}", f"--seed={seed}", "--samples=24", "--vms=60", "--cores=128", "--memory-mb=524288"]
    assert tracegen.main([*arguments, str(tmp_path / "t")]) == 0
    ours, bundled = read_trace(tmp_path / "t"), read_trace(ROOT / f"{mix}-workload.json")
    for a, b in zip(ours.slices(), bundled.slices(), strict=True):
        assert a.vms == b.vms
        np.testing.assert_allclose(a.cpu.node, b.cpu.node, atol=0.01)
        np.testing.assert_allclose(a.mem.vm_usage, b.mem.vm_usage, atol=0.2)
