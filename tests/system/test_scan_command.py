"""``scroogevm.py --scan`` from traces and from a store, through the command line."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.samples import ScrapeSample
from model.store.sqlite import SqliteStore
from tests.conftest import ROOT, bare_environment, strict_json
from tests.support.clusters import Cluster
from tests.support.replays import TINY
from tests.unit.estimator.support import FIRST, NODES, SLICE_S, fill

PROGRAM = [sys.executable, str(ROOT / "scroogevm.py"), "--scan"]


def run(
    *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120, "cwd": cwd}
    return subprocess.run([*PROGRAM, *arguments], env=env or bare_environment(), check=False, **options)


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    folder = tmp_path / "traces"
    folder.mkdir()
    shutil.copy(TINY, folder / "n1.json")
    shutil.copy(TINY, folder / "n2.json")
    return folder


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, str]:
    """The environment of a store with two nodes."""
    with contextlib.closing(SqliteStore(tmp_path / "store.sqlite", 86400)) as store:
        fill(store, NODES, range(FIRST, FIRST + 20))
    return {
        **bare_environment(),
        "SCHED_NODES": json.dumps([*NODES, "http://nobody:9100/metrics"]),
        "SCHED_SCOPE_S": "180",
        "SCHED_SCOPE_SLICE_S": str(SLICE_S),
        "STATE_ENDPOINT": str(tmp_path / "status.json"),
        "STORE_PATH": str(tmp_path / "store.sqlite"),
    }


def test_folder_of_traces_gives_table_page_csv_and_json(traces: Path, tmp_path: Path) -> None:
    output = tmp_path / "made" / "scan"
    done = run(f"--load={traces}", f"--output={output}", "--jobs=2")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[1] for line in done.stdout.splitlines()[2:4]] == ["n1", "n2"]
    assert done.stdout.splitlines()[-1].startswith("2 nodes: ")
    assert sorted(path.name for path in output.iterdir()) == ["scan.csv", "scan.html", "scan.json"]
    data = strict_json((output / "scan.json").read_bytes())
    assert [node["node"] for node in data["nodes"]] == ["n1", "n2"]
    assert data["nodes"][0]["cpu"]["slices"] > 0
    assert run(f"--load={traces}", "--csv").stdout == (output / "scan.csv").read_text()
    assert json.loads(run(f"--load={traces}", "--json").stdout) == data


def test_one_bad_trace_does_not_cost_the_others(traces: Path) -> None:
    (traces / "bad.json").write_text("{")
    done = run(f"--load={traces}", "--csv")
    rows = {row["node"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
    assert done.returncode == 1
    assert rows["bad"]["note"]
    assert rows["n1"]["cpu_slices"] == rows["n2"]["cpu_slices"] != ""


def test_store_of_the_settings_is_scanned_and_nothing_is_changed(stored: dict[str, str], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    since = f"--since={FIRST * SLICE_S}"
    done = run(since, f"--until={(FIRST + 20) * SLICE_S}", "--csv", "--strategy=nsigma,clt", env=stored)
    rows = {row["node"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
    assert done.returncode == 1
    assert rows["http://nobody:9100/metrics"]["note"] == "no confirmed samples"
    assert float(rows[NODES[0]]["cpu_config"]) == 32.0
    assert sorted(path for path in tmp_path.iterdir() if "-shm" not in path.name and "-wal" not in path.name) == before


def test_row_is_explained(stored: dict[str, str]) -> None:
    done = run("--days=0.5", f"--node={NODES[1]}", "--risk=0.05", env=stored)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{NODES[1]}: unsure, too little is known\n")
    assert "compared" in done.stdout
    unknown = run("--days=0.5", "--node=nobody", env=stored)
    assert (unknown.returncode, unknown.stderr) == (2, "scroogevm.py: --node: nobody: no such node\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--load=nowhere"], "--load: nowhere: No such file or directory"),
        (["--load=.", "--since=1"], "--since, --until and --days need a store; a trace is scanned as a whole"),
        (["--load=.", "--json", "--csv"], "--json and --csv exclude each other"),
        (["--load=.", "--prometheus=http://p"], "--prometheus and --load exclude each other"),
        (["--load=.", "--simulate", "--csv"], "--csv and --simulate exclude each other"),
        (["--load=.", "--simulate", "--node=a"], "--node and --simulate exclude each other"),
        (["--prometheus=ftp://p"], "PROMETHEUS_URL: is not an http(s) URL"),
        (["--once"], "--scan and --once exclude each other"),
        (["--load=.", "--risk=0.7"], "--risk: clt supports target risks above 0 and up to 0.5, not 0.7"),
        (["--load=.", "--strategy=best"], "--strategy: 'best' is none of"),
        (["--load=.", "--jobs=0"], "--jobs"),
        ([], "SCHED_NODES"),
    ],
)
def test_bad_options_are_one_clear_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "option", ["--prometheus=http://p", "--days=3", "--node=a", "--simulate", "--csv", "--jobs=2", "--dask=tcp://a"]
)
def test_options_of_the_scan_need_it(option: str) -> None:
    done = subprocess.run(
        [*PROGRAM[:-1], option], env=bare_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert f"{option.partition('=')[0]} needs --scan" in done.stderr


@pytest.fixture
def days(tmp_path: Path) -> dict[str, str]:
    """The environment of a store with two days of a node of 8 cores, whose four VMs are busy at noon."""
    slice_s, first = 1800, 900_000
    with contextlib.closing(SqliteStore(tmp_path / "store.sqlite", 86400)) as store:
        for time_s in range(first * slice_s, (first + 96) * slice_s, 225):
            used = 0.5 + 0.4 * math.sin(2 * math.pi * time_s / 86400)
            domain = {"cpu": 2.0, "mem": 4096.0, "cpu_usage": used, "mem_usage": 1024.0}
            fields = {"cpu": 8.0, "mem": 65536.0, "cpu_usage": 4 * used, "mem_usage": 8192.0, "elapsed_time": 225_000.0}
            sample = ScrapeSample(
                NODES[0], time_s * 1000, {**fields, "oc_cpu": 1.0, "oc_mem": 0.25}, {f"vm{i}": domain for i in range(4)}
            )
            store.write([store.encode(sample)])
    return {
        **bare_environment(),
        "SCHED_NODES": json.dumps([NODES[0]]),
        "STATE_ENDPOINT": str(tmp_path / "status.json"),
        "STORE_PATH": str(tmp_path / "store.sqlite"),
        "END": str((first + 96) * slice_s),
    }


def test_scheduler_that_fills_what_is_published_is_simulated(days: dict[str, str], tmp_path: Path) -> None:
    period = ("--days=3", f"--until={days.pop('END')}")
    done = run("--simulate", *period, f"--output={tmp_path / 'o'}", "--strategy=clt,borg", env=days)
    assert done.returncode == 0, done.stderr
    assert "could be placed at 1 % risk" in done.stdout
    loop = strict_json((tmp_path / "o" / "scan.json").read_bytes())["closed_loop"]
    assert {one["strategy"] for one in loop["settings"]} >= {"clt", "borg", "ratio"}
    assert all(one["runs"] == 3 for one in loop["settings"])
    assert loop["sentence"] in done.stdout.replace("\n", " ")
    assert "Behind a scheduler" in (tmp_path / "o" / "scan.html").read_text()
    assert "sampled" not in (tmp_path / "o" / "scan.json").read_text()


def test_simulation_needs_a_day_of_history(traces: Path) -> None:
    done = run(f"--load={traces}", "--simulate")
    assert (done.returncode, done.stderr) == (2, "scroogevm.py: --simulate: no VM has a day of history\n")


def test_cluster_gives_the_same_figures(traces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir()
    cluster = Cluster(folder)
    try:
        cluster.start_workers(1)
        done = run(f"--load={traces}", "--csv", f"--dask={cluster.address}")
    finally:
        cluster.stop()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run(f"--load={traces}", "--csv").stdout


def test_nodes_of_the_command_line_are_scanned_in_place_of_the_settings(stored: dict[str, str]) -> None:
    done = run("--days=0.5", f"--url={NODES[1]}", "--csv", env=stored)
    assert [row["node"] for row in csv.DictReader(io.StringIO(done.stdout))] == [NODES[1]]


def test_scan_covers_the_nodes_of_all_masters(stored: dict[str, str]) -> None:
    done = run("--days=0.5", "--csv", env={**stored, "SCHED_SHARD": "1/2"})
    assert {row["node"] for row in csv.DictReader(io.StringIO(done.stdout))} >= set(NODES)
