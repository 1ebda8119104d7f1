"""``misc/evaluate.py``: many traces, many variants; here, in worker processes, and on a real Dask cluster."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from misc import evaluate
from model.evaluation.grid import PARAMETERS, Pooled, Row, Variant, labels, pooled, row_of, table_csv, variants
from model.evaluation.grid import evaluate as evaluate_trace
from model.oversubscriptioncomputation import STRATEGIES
from model.replay.dump import read_dumps
from model.replay.scoring import History
from model.replay.trace import Trace, parse_trace, read_trace
from tests.conftest import ROOT, bare_environment, build_trace, lists
from tests.support.servers import free_port, wait_for

MIXES = ("increasing", "decreasing", "steady", "bursty", "diurnal")
TWO = "--strategy=conformal,rclike"


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five traces of 60 slices."""
    folder = tmp_path_factory.mktemp("traces")
    for seed, mix in enumerate(MIXES):
        shape = [
            "--vms=6",
            f"--scopes={60 + seed}",
            "--samples=12",
            "--cores=16",
            "--memory-mb=65536",
            f"--seed={seed}",
        ]
        command = [sys.executable, ROOT / "misc" / "tracegen.py", f"--mix={mix}", *shape, folder / f"{mix}.json"]
        subprocess.run(command, check=True, timeout=60, capture_output=True)
    return folder


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "misc" / "evaluate.py"), *map(str, arguments)]


def run(*arguments: str | Path, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=120, env=bare_environment(), check=False, **how
    )


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=bare_environment(),
        start_new_session=True,
    )


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def done(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "done").glob("*.json"))


@pytest.fixture(scope="module")
def undisturbed(traces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What comes out when nothing goes wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finished = run(traces, "--output", folder, "--risk=0.05,0.2")
    assert (finished.returncode, finished.stderr) == (0, "")
    return folder


def same_tables(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in ("results.csv", "pooled.csv"))


# --- what it says -----------------------------------------------------------------------------------


def test_tables_and_pictures_of_every_trace_and_variant_appear(undisturbed: Path) -> None:
    rows = table(undisturbed / "results.csv")
    assert len(rows) == len(MIXES) * 2 * (len(STRATEGIES) + 1)
    assert [row["trace"] for row in rows[:: 2 * (len(STRATEGIES) + 1)]] == sorted(MIXES)
    assert {row["risk"] for row in rows if row["strategy"] == "conformal"} == {"0.05", "0.2"}
    assert {row["risk"] for row in rows if row["strategy"] != "conformal"} == {""}
    pictures = [undisturbed / "pareto.png", *(undisturbed / "traces").iterdir()]
    assert sorted(path.name for path in pictures[1:]) == sorted(
        f"{mix}-{r}.png" for mix in MIXES for r in ("cpu", "mem")
    )
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_figures_are_those_of_the_dumps_by_the_published_score(undisturbed: Path, traces: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, ROOT / "scroogevm.py", f"--load={traces / 'bursty.json'}", f"--output={tmp_path}"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    summary = {(row["strategy"], row["resource"]): row for row in table(tmp_path / "summary.csv")}
    for row in table(undisturbed / "results.csv"):
        if row["trace"] != "bursty" or row["risk"] == "0.2":
            continue
        for name in ("misprediction", "violation", "violation_frequency", "decrease"):
            assert row[f"replay_{name}"] == summary[row["strategy"], row["resource"]][name]
        promised, usable, off, broken = [], [], [], 0
        (dump,) = read_dumps(tmp_path / f"dump-{row['strategy']}.json")
        told = dump.histories[row["resource"]]
        for k in range(10, len(dump.epoch)):
            config, peak = told.config[k], told.peak[k]
            free = told.published[k - 1] - max(0.0, told.booked[k] - told.booked[k - 1])
            promised.append(max(free, 0.0) / config)
            usable.append(min(max(free, 0.0), config - peak) / config)
            off.append(abs(config - peak - free) / config)
            broken += free > config - peak + 1e-9 * config
        assert (int(row["scored"]), int(row["broken"])) == (len(off), broken)
        # A dump's figures are rounded.
        for name, values in (("published_free", promised), ("usable_free", usable), ("misprediction", off)):
            assert float(row[name]) == pytest.approx(sum(values) / len(values), abs=2e-3), row


def test_pooled_table_counts_every_slice_the_same(undisturbed: Path) -> None:
    rows, together = (table(undisturbed / name) for name in ("results.csv", "pooled.csv"))
    for point in together:
        own = [row for row in rows if all(row[name] == point[name] for name in ("strategy", *PARAMETERS, "resource"))]
        scored = [int(row["scored"]) for row in own]
        broken = [int(row["broken"]) for row in own]
        assert len(own) == int(point["traces"]) == len(MIXES)
        assert float(point["violation_frequency"]) == pytest.approx(sum(broken) / sum(scored))
        assert float(point["worst"]) == pytest.approx(max(b / s for b, s in zip(broken, scored, strict=True)))
        for name in ("misprediction", "published_free", "usable_free"):
            mean = sum(s * float(row[name]) for s, row in zip(scored, own, strict=True)) / sum(scored)
            assert float(point[name]) == pytest.approx(mean)


def test_terminal_shows_what_the_pooled_table_holds(traces: Path, tmp_path: Path) -> None:
    finished = run(traces, "--output", tmp_path, TWO, "--risk=0.05,0.2", "--no-pictures")
    for point in table(tmp_path / "pooled.csv"):
        name = {"rclike": "rclike"}.get(point["strategy"], f"conformal {point['risk']}")
        star = " *" if point["on_front"] == "True" else ""
        assert any(
            line.split() == f"{name}{star} {float(point['violation_frequency']):.1%}".split() + line.split()[-4:]
            and f"{float(point['usable_free']):.1%}" == line.split()[-1]
            for line in finished.stdout.splitlines()
            if line.strip()
        ), (point, finished.stdout)
    assert not (tmp_path / "traces").exists()


def test_first_slices_do_not_count(traces: Path, tmp_path: Path) -> None:
    for after in ("0", "50"):
        assert run(traces, "--output", tmp_path / after, TWO, "--no-pictures", f"--after={after}").returncode == 0
    early, late = (table(tmp_path / after / "results.csv")[0] for after in ("0", "50"))
    # The first slice is promised nothing.
    assert int(early["scored"]) - int(late["scored"]) == 49


# --- what strategies heed ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def restless() -> Trace:
    """A node that is half used, and full for a moment in every sixth slice; no slice is like another."""
    random = np.random.default_rng(5)
    trace = build_trace(60)
    for k, node in enumerate(trace["node"]["raw_data"]):
        usage = random.uniform(0, random.uniform(4, 12), 7)
        if k % 6 == 5:
            usage[0] = 16
        node.update(lists(np.linspace(1800 * k, 1800 * k + 1500, 7), 16.0, 32768.0, usage))
        for vm in trace["vm"].values():
            vm["raw_data"][k] = lists(node["time"], 4.0, 4096.0, usage / 16)
    return parse_trace(json.dumps(trace, default=float).encode())


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_heeds_what_it_says_and_nothing_else(name: str, restless: Trace) -> None:
    usual = {"percentile": 90.0, "aggregation": 1, "risk": 0.05, "stability": "mean"}
    others = {"percentile": 60.0, "aggregation": 4, "risk": 0.2, "stability": "always"}

    def free(**settings: Any) -> np.ndarray[Any, Any]:
        return np.concatenate([one.published for one in evaluate_trace(restless, [Variant(name, **settings)]).values()])

    for parameter in PARAMETERS:
        same = np.array_equal(free(**usual), free(**{**usual, parameter: others[parameter]}), equal_nan=True)
        assert same == (parameter not in STRATEGIES[name].parameters), parameter


def test_variants_that_share_a_replay_come_out_as_alone(traces: Path) -> None:
    trace = read_trace(traces / "increasing.json")
    values = {"percentile": [50.0, 95.0], "aggregation": [1, 2], "risk": [0.05, 0.2], "stability": ["mean", "never"]}
    chosen = variants(STRATEGIES, values)
    assert len(chosen) == len(set(chosen)) == 2 + 2 + 8 + 4 + 4 + 2
    assert len(set(labels(chosen).values())) == len(chosen)
    together = evaluate_trace(trace, chosen)
    for variant in chosen[::3]:
        for key, history in evaluate_trace(trace, [variant]).items():
            np.testing.assert_array_equal(history.published, together[key].published)


# --- pooling ----------------------------------------------------------------------------------------

SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])


@st.composite
def some_rows(draw: st.DrawFn) -> list[Row]:
    rows = []
    for strategy, name, trace in itertools.product(("a", "b", "c", "d"), ("cpu", "mem"), ("x", "y")):
        scored = draw(st.integers(0, 20))
        figures = [draw(SHARES) if scored else math.nan for _ in range(3)]
        rows.append(Row(trace, Variant(strategy), name, scored, draw(st.integers(0, scored)), *figures, *[0.0] * 4))
    return rows


@settings(max_examples=200)
@given(some_rows())
def test_front_is_what_no_other_beats(rows: list[Row]) -> None:
    points = pooled(rows)
    assert {(p.variant, p.resource) for p in points} == {(r.variant, r.resource) for r in rows if r.scored}
    for point in points:
        rivals = [other for other in points if other.resource == point.resource]
        beaten = any(
            (o.violation_frequency < point.violation_frequency and o.usable_free >= point.usable_free)
            or (o.violation_frequency <= point.violation_frequency and o.usable_free > point.usable_free)
            for o in rivals
        )
        assert point.on_front is not beaten
        assert 0 <= point.violation_frequency <= point.worst <= 1
    assert {p.resource for p in points if p.on_front} == {p.resource for p in points}
    assert len(table_csv(points, Pooled).splitlines()) == len(points) + 1


def test_nothing_scored_is_an_empty_cell() -> None:
    k = np.full(12, np.nan)
    row = row_of("t", Variant("borg"), "cpu", History(np.full(12, 4.0), k, k, k, k, 1), after=10)
    assert (row.scored, row.broken) == (0, 0)
    assert pooled([row]) == []
    assert table_csv([row], Row).splitlines()[1] == "t,borg,,,,,cpu,0,0,,,,,,,"


# --- what goes wrong --------------------------------------------------------------------------------


def test_bad_trace_is_told_and_harms_no_other(traces: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "with a bad one"
    shutil.copytree(traces, folder)
    (folder / "damaged.json").write_bytes((traces / "bursty.json").read_bytes()[:-100])
    (folder / "empty.json").touch()
    finished = run(folder, "--output", tmp_path / "out", "--risk=0.05,0.2", "--no-pictures")
    assert finished.returncode == 2
    told = finished.stderr.splitlines()
    assert len(told) == 2
    assert "damaged.json: " in told[0]
    assert told[1].endswith("empty.json: the file is empty")
    assert same_tables(tmp_path / "out", undisturbed)


def test_kill_in_the_middle_costs_only_what_was_under_way(traces: Path, undisturbed: Path, tmp_path: Path) -> None:
    arguments = (traces, "--output", tmp_path, "--risk=0.05,0.2", "--jobs=1")
    process = start(*arguments)
    wait_for(lambda: done(tmp_path))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    kept = len(done(tmp_path))
    assert 1 <= kept < len(MIXES)
    assert not (tmp_path / "results.csv").exists()
    finished = run(*arguments)
    assert (finished.returncode, finished.stderr) == (0, f"evaluate.py: {kept} of 5 traces were done already\n")
    assert same_tables(tmp_path, undisturbed)
    assert {path.name for path in (tmp_path / "traces").iterdir()} == {
        path.name for path in (undisturbed / "traces").iterdir()
    }


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interruption_keeps_what_is_done_and_leaves_no_process(traces: Path, tmp_path: Path, sent: int) -> None:
    process = start(traces, "--output", tmp_path, "--jobs=1")
    wait_for(lambda: done(tmp_path))
    # A terminal tells every process of the group, and a service manager as well.
    os.killpg(process.pid, sent)
    _, told = process.communicate(timeout=30)
    assert (process.returncode, told) == (130, "evaluate.py: interrupted; the same command goes on where it was\n")
    assert 1 <= len(done(tmp_path)) < len(MIXES)

    def nobody_left() -> bool:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_for(nobody_left)


def test_only_what_has_changed_is_evaluated_again(traces: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "traces", tmp_path / "out"
    shutil.copytree(traces, folder)
    arguments = (folder, "--output", out, TWO)
    assert run(*arguments).returncode == 0
    for path in (out / "done").iterdir():
        path.write_text(path.read_text().replace('"usable_free": 0.', '"usable_free": 7.'))

    def stale(*more: str) -> set[str]:
        """The traces whose rows are still those of the files that we have falsified."""
        assert run(*arguments, *more).returncode == 0
        return {row["trace"] for row in table(out / "results.csv") if float(row["usable_free"]) > 1}

    assert stale() == set(MIXES)
    os.utime(folder / "bursty.json")
    (out / "traces" / "steady-cpu.png").unlink()
    (out / "done" / "diurnal.json").write_text("{")
    assert stale() == {"increasing", "decreasing"}
    assert stale("--after=11") == set()


def test_traces_of_one_name_are_told_apart(traces: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(traces / "bursty.json", tmp_path / name / "week.json")
    shutil.copy(traces / "steady.json", tmp_path)
    named = (tmp_path / "a", tmp_path / "b", tmp_path / "steady.json", tmp_path / "a" / "week.json")
    assert run(*named, "--output", tmp_path / "out", TWO).returncode == 0
    names = list(dict.fromkeys(row["trace"] for row in table(tmp_path / "out" / "results.csv")))
    assert len(names) == 3
    assert names[2] == "steady"
    assert all(name.startswith("week-") for name in names[:2])
    assert len(list((tmp_path / "out" / "traces").iterdir())) == 6


def test_trace_that_ends_its_worker_is_told_and_harms_no_other(traces: Path, undisturbed: Path, tmp_path: Path) -> None:
    """As the kernel's out-of-memory killer does; here the trace is a pipe in which nothing comes."""
    folder = tmp_path / "traces"
    shutil.copytree(traces, folder)
    pipe = folder / "pipe.json"
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDWR)
    process = start(folder, "--output", tmp_path / "out", "--risk=0.05,0.2", "--no-pictures", "--jobs=2")

    spared = {os.getpid()}

    def killed() -> bool:
        """Whoever else reads the pipe, each once."""
        for file in Path("/proc").glob("[0-9]*/fd/*"):
            pid = int(file.parts[2])
            with contextlib.suppress(OSError):
                if pid not in spared and file.readlink() == pipe:
                    os.kill(pid, signal.SIGKILL)
                    spared.add(pid)
                    return True
        return False

    wait_for(killed)
    wait_for(killed)
    _, told = process.communicate(timeout=60)
    os.close(held)
    assert process.returncode == 2
    assert told.strip().endswith("pipe.json: the process that evaluated it was killed; out of memory?")
    assert told.count("\n") == 1
    assert same_tables(tmp_path / "out", undisturbed)


def test_full_disk_is_told_and_nothing_is_half_written(traces: Path, tmp_path: Path) -> None:
    def no_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    finished = run(traces, "--output", tmp_path / "out", "--no-pictures", preexec_fn=no_room)
    assert finished.returncode == 2
    assert finished.stderr.strip().endswith("File too large; what is done is kept")
    assert finished.stderr.count("\n") == 1
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing.json"], "nothing.json: no such file or folder"),
        (["."], ".: no *.json in it"),
        (["x.json"], "no trace could be evaluated"),
        (["x.json", "--strategy=hope"], "--strategy: 'hope' is none of"),
        (["x.json", "--stability=hope"], "--stability: 'hope' is none of"),
        (["x.json", "--risk=0.05,0"], "--risk: conformal keeps to risks above 0"),
        (["x.json", "--percentile=90,"], "'' is not a number from 0 to 100"),
        (["x.json", "--jobs=0"], "'0' is not a whole number of at least 1"),
        (["x.json", "--output=x.json"], "x.json: File exists"),
        (["x.json", "--dask=nowhere"], "--dask: nowhere: missing port number"),
    ],
)
def test_mistake_is_told_in_one_line(arguments: list[str], told: str, tmp_path: Path) -> None:
    if arguments != ["."]:
        (tmp_path / "x.json").write_text("{}")
    output = [] if "--output=x.json" in arguments else ["--output=out"]
    finished = run(*arguments, *output, cwd=tmp_path)
    assert finished.returncode == 2
    assert told in finished.stderr.splitlines()[-1]
    assert "Traceback" not in finished.stderr
    assert finished.stdout == ""


# --- on a cluster -----------------------------------------------------------------------------------


class Cluster:
    """A real scheduler and its workers, processes on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"tcp://127.0.0.1:{free_port()}"
        port = self.address.rpartition(":")[2]
        self.scheduler = self._start("dask_scheduler", "--port", port, "--no-show")
        self.workers: list[subprocess.Popen[bytes]] = []

    def _start(self, module: str, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{module}", "--host", "127.0.0.1", "--no-dashboard"]
        with (self.folder / f"{module}.log").open("ab") as log:
            return subprocess.Popen(
                [*command, *arguments], stdout=log, stderr=log, cwd=self.folder, env={**bare_environment(), **env}
            )

    def work(self, count: int, **env: str) -> None:
        for _ in range(count):
            name = f"worker-{len(self.workers)}"
            options = ["--no-nanny", "--nthreads", "1", "--name", name, "--local-directory", str(self.folder / name)]
            self.workers.append(self._start("dask_worker", self.address, *options, **env))

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    pytest.importorskip("distributed")
    folder = tmp_path / "cluster"
    folder.mkdir()
    started = Cluster(folder)
    yield started
    started.stop()


def test_cluster_that_loses_a_worker_in_the_middle_gives_the_same_tables(
    cluster: Cluster, traces: Path, undisturbed: Path, tmp_path: Path
) -> None:
    cluster.work(2)
    out = tmp_path / "out"
    process = start(traces, "--output", out, "--risk=0.05,0.2", f"--dask={cluster.address}")
    wait_for(lambda: done(out), seconds=60)
    cluster.workers[0].kill()
    assert len(done(out)) < len(MIXES)
    _, told = process.communicate(timeout=120)
    assert (process.returncode, told) == (0, "")
    assert same_tables(out, undisturbed)
    for path in (undisturbed / "traces").iterdir():
        assert (out / "traces" / path.name).read_bytes() == path.read_bytes()


def test_bad_trace_on_a_cluster_is_told_and_harms_no_other(cluster: Cluster, traces: Path, tmp_path: Path) -> None:
    cluster.work(1)
    bad = tmp_path / "bad.json"
    bad.write_text("[1, 2]")
    finished = run(bad, traces / "bursty.json", "--output", tmp_path / "out", TWO, f"--dask={cluster.address}")
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"evaluate.py: {bad}: ")
    assert finished.stderr.count("\n") == 1
    assert {row["trace"] for row in table(tmp_path / "out" / "results.csv")} == {"bursty"}


def test_cluster_that_ends_is_told_and_what_is_done_is_kept(cluster: Cluster, traces: Path, tmp_path: Path) -> None:
    cluster.work(1)
    out = tmp_path / "out"
    process = start(traces, "--output", out, f"--dask={cluster.address}")
    wait_for(lambda: done(out), seconds=60)
    cluster.scheduler.kill()
    _, told = process.communicate(timeout=60)
    words = "the scheduler is gone; what is done is kept"
    assert (process.returncode, told) == (2, f"evaluate.py: --dask: {cluster.address}: {words}\n")
    kept = len(done(out))
    assert 1 <= kept < len(MIXES)
    finished = run(traces, "--output", out)
    assert (finished.returncode, finished.stderr) == (0, f"evaluate.py: {kept} of 5 traces were done already\n")


def test_worker_with_another_version_of_ours_is_told(cluster: Cluster, traces: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(ROOT / "model", older / "model", ignore=shutil.ignore_patterns("__pycache__"))
    with (older / "model" / "replay" / "scoring.py").open("a") as file:
        file.write("\n# as it was last week\n")
    # A worker that has served an older client has its modules in memory.
    (older / "preloaded.py").write_text("import model.evaluation.tasks\n")
    cluster.work(1, PYTHONPATH=str(older), DASK_DISTRIBUTED__WORKER__PRELOAD="preloaded")
    finished = run(traces, "--output", tmp_path / "out", f"--dask={cluster.address}")
    assert finished.returncode == 2
    assert "has imported another version of ScroogeVM; start it anew" in finished.stderr
    assert finished.stderr.count("\n") == 1


@pytest.mark.parametrize("there", ["nobody", "no worker"])
def test_nobody_to_work_is_told_after_a_while(
    there: str,
    traces: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("distributed")
    from model.evaluation import dask_cluster

    monkeypatch.setattr(dask_cluster, "WAIT_S", 3.0)
    address = f"tcp://127.0.0.1:{free_port()}" if there == "nobody" else request.getfixturevalue("cluster").address
    # In a process of its own, signals would be ours again.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert evaluate.main([str(traces), f"--output={tmp_path}", f"--dask={address}"]) == 2
    words = {"nobody": "no Dask scheduler has answered for 3 s", "no worker": "it has no workers"}
    assert capsys.readouterr().err == f"evaluate.py: --dask: {address}: {words[there]}\n"
