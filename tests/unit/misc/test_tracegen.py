"""misc/tracegen.py: deterministic, valid traces with the course of each mix."""

from __future__ import annotations

import json
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
def test_generated_trace_is_valid_and_within_the_capacities(mix: str, tmp_path: Path) -> None:
    generate(tmp_path / "t", "--mix", mix, "--arrivals=3", "--departures=3", "--extra-fields=2")
    for s in read_trace(tmp_path / "t").slices():
        assert s.cpu.measured
        assert (s.cpu.vm_usage <= s.cpu.vm_config[:, None]).all()
        assert (s.mem.vm_usage <= s.mem.vm_config[:, None]).all()
        assert s.cpu.node.max() <= 64
        # The node uses the sum of its VMs plus an overhead.
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


def test_arrivals_and_departures_are_as_many_as_set(tmp_path: Path) -> None:
    generate(tmp_path / "t", "--arrivals=4", "--departures=3")
    stays = [set(s.vms) for s in read_trace(tmp_path / "t").slices()]
    all_vms = set().union(*stays)
    assert len(all_vms - stays[0]) == 4
    assert len(all_vms - stays[-1]) == 3


def test_slices_are_aligned_to_the_unix_epoch(tmp_path: Path) -> None:
    trace = generate(tmp_path / "t", "--slice-s=900")
    assert all(end % 900 == 0 for end in trace["epoch"])
    times = trace["node"]["raw_data"][0]["time"]
    assert trace["epoch"][0] - 900 < times[0] < times[-1] <= trace["epoch"][0]


def test_node_without_vms_is_a_valid_trace(tmp_path: Path) -> None:
    trace = generate(tmp_path / "t", "--vms=0")
    assert parse_trace(json.dumps(trace).encode()).vms == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scope-s=1000"], "--scope-s: 1000 is not a multiple"),
        (["--start=7"], "--start: 7"),
        (["--arrivals=10", "--departures=10"], "more than --vms"),
        (["--vms=x"], "'x'"),
        (["--mix=wild"], "wild"),
        (["--cores=0"], "'0'"),
    ],
)
def test_invalid_option_is_one_line_and_writes_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        tracegen.main([*SMALL, *arguments, str(tmp_path / "t")])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("mix", "seed"), [("increasing", 1), ("decreasing", 2)])
def test_generator_reproduces_the_bundled_example(mix: str, seed: int, tmp_path: Path) -> None:
    """The README has the command; the last digit may differ with another numpy."""
    arguments = [f"--mix={mix}", f"--seed={seed}", "--samples=24", "--vms=60", "--cores=128", "--memory-mb=524288"]
    assert tracegen.main([*arguments, str(tmp_path / "t")]) == 0
    generated, bundled = read_trace(tmp_path / "t"), read_trace(ROOT / f"{mix}-workload.json")
    for a, b in zip(generated.slices(), bundled.slices(), strict=True):
        assert a.vms == b.vms
        np.testing.assert_allclose(a.cpu.node, b.cpu.node, atol=0.01)
        np.testing.assert_allclose(a.mem.vm_usage, b.mem.vm_usage, atol=0.2)
