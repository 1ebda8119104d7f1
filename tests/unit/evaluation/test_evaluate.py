"""``misc/evaluate.py`` in this process: tables, pictures, the cache of results, and mistakes."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from misc import evaluate
from model.evaluation import tasks
from model.evaluation.grid import PARAMETERS
from model.oversubscriptioncomputation import STRATEGIES
from model.replay.dump import read_dumps
from model.stability import STABILITY_DETECTORS
from tests.conftest import Run
from tests.support.evaluation import Finished, run_main, same_tables, table, write_traces

#: A strategy with a target risk is evaluated with two of them.
VARIANTS = sum(2 if "risk" in strategy.parameters else 1 for strategy in STRATEGIES.values())
MIXES = ("increasing", "decreasing", "bursty")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_traces(tmp_path_factory.mktemp("traces"), MIXES)


@pytest.fixture(scope="module")
def evaluated(traces: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """All strategies on all traces, conformal with two risks: the results and what was printed."""
    folder = tmp_path_factory.mktemp("evaluated")
    finished = run_main(traces, "--output", folder, "--risk=0.05,0.2", "--no-pictures")
    assert (finished.code, finished.err) == (0, "")
    return folder, finished


# --- results ----------------------------------------------------------------------------------------


def test_guards_lower_what_every_strategy_publishes_and_depend_on_the_risk(
    evaluated: tuple[Path, Finished], traces: Path, tmp_path: Path
) -> None:
    arguments = (traces, "--output", tmp_path, "--risk=0.05,0.2", "--no-pictures", "--strategy=percentile,clt")
    finished = run_main(*arguments, "--guards")
    assert (finished.code, finished.err) == (0, "")
    bare = {
        (row["strategy"], row["risk"], row["resource"]): float(row["published_free"])
        for row in table(evaluated[0] / "pooled.csv")
    }
    guarded = table(tmp_path / "pooled.csv")
    assert [row["risk"] for row in guarded if row["resource"] == "cpu"] == ["0.05", "0.2"] * 2
    assert {row["guards"] for row in guarded} == {"True"}
    for row in guarded:
        risk = row["risk"] if row["strategy"] == "clt" else ""
        assert float(row["published_free"]) < bare[row["strategy"], risk, row["resource"]]
    # The same folder without guards is another evaluation.
    assert run_main(*arguments).err == ""
    assert {row["guards"] for row in table(tmp_path / "pooled.csv")} == {"False"}


def test_results_have_a_row_per_trace_variant_and_resource(evaluated: tuple[Path, Finished]) -> None:
    rows = table(evaluated[0] / "results.csv")
    assert len(rows) == len(MIXES) * 2 * VARIANTS
    assert [row["trace"] for row in rows[:: 2 * VARIANTS]] == sorted(MIXES)
    for name, strategy in STRATEGIES.items():
        risks = {"0.05", "0.2"} if "risk" in strategy.parameters else {""}
        assert {row["risk"] for row in rows if row["strategy"] == name} == risks
    assert (evaluated[0] / "pareto.png").exists()
    assert not (evaluated[0] / "traces").exists()


def test_results_equal_those_of_the_dumps_by_the_published_score(
    evaluated: tuple[Path, Finished], traces: Path, tmp_path: Path, scroogevm: Run
) -> None:
    assert scroogevm("--load", traces / "bursty.json", "--output", tmp_path).returncode == 0
    summary = {(row["strategy"], row["resource"]): row for row in table(tmp_path / "summary.csv")}
    compared = 0
    for row in table(evaluated[0] / "results.csv"):
        if row["trace"] != "bursty" or row["risk"] == "0.2":
            continue
        for name in ("misprediction", "violation", "violation_frequency", "decrease"):
            assert row[f"replay_{name}"] == summary[row["strategy"], row["resource"]][name]
        published, usable, distances, violations = [], [], [], 0
        (dump,) = read_dumps(tmp_path / f"dump-{row['strategy']}.json")
        history = dump.histories[row["resource"]]
        for k in range(10, len(dump.epoch)):
            config, peak = history.config[k], history.peak[k]
            free = history.published[k - 1] - max(0.0, history.booked[k] - history.booked[k - 1])
            published.append(max(free, 0.0) / config)
            usable.append(min(max(free, 0.0), config - peak) / config)
            distances.append(abs(config - peak - free) / config)
            violations += free > config - peak + 1e-9 * config
        assert (int(row["slices"]), int(row["violations"])) == (len(distances), violations)
        # A dump's figures are rounded.
        for name, values in (("published_free", published), ("usable_free", usable), ("misprediction", distances)):
            assert float(row[name]) == pytest.approx(sum(values) / len(values), abs=2e-3), row
        compared += 1
    assert compared == 2 * len(STRATEGIES)


def test_pooled_table_gives_every_slice_the_same_weight(evaluated: tuple[Path, Finished]) -> None:
    rows, points = (table(evaluated[0] / name) for name in ("results.csv", "pooled.csv"))
    assert len(points) == 2 * VARIANTS
    for point in points:
        own = [row for row in rows if all(row[name] == point[name] for name in ("strategy", *PARAMETERS, "resource"))]
        slices = [int(row["slices"]) for row in own]
        violations = [int(row["violations"]) for row in own]
        assert len(own) == int(point["traces"]) == len(MIXES)
        assert (int(point["slices"]), int(point["violations"])) == (sum(slices), sum(violations))
        assert float(point["violation_frequency"]) == pytest.approx(sum(violations) / sum(slices))
        assert float(point["worst"]) == pytest.approx(max(v / s for v, s in zip(violations, slices, strict=True)))
        for name in ("misprediction", "published_free", "usable_free"):
            mean = sum(s * float(row[name]) for s, row in zip(slices, own, strict=True)) / sum(slices)
            assert float(point[name]) == pytest.approx(mean)


def test_terminal_shows_the_pooled_table(evaluated: tuple[Path, Finished]) -> None:
    folder, finished = evaluated
    lines = [line.split() for line in finished.out.splitlines() if line.strip()]
    for point in table(folder / "pooled.csv"):
        name = f"{point['strategy']} {point['risk']}".strip()
        star = " *" if point["on_front"] == "True" else ""
        columns = ("violation_frequency", "worst", "misprediction", "published_free", "usable_free")
        assert f"{name}{star} {' '.join(f'{float(point[column]):.1%}' for column in columns)}".split() in lines
    assert finished.out.splitlines()[0].strip() == "CPU; *: not dominated by another row"
    assert finished.out.splitlines()[1].split() == ["violated", "in", "its", "mean", "published", "and", "really"]


def test_first_slices_are_not_scored(traces: Path, tmp_path: Path) -> None:
    for after in ("0", "30"):
        named = (traces / "bursty.json", "--output", tmp_path / after)
        assert run_main(*named, "--strategy=borg", "--no-pictures", f"--after={after}").code == 0
    early, late = (table(tmp_path / after / "results.csv")[0] for after in ("0", "30"))
    # Nothing is published before the first slice, so it has no score anyway.
    assert int(early["slices"]) - int(late["slices"]) == 29


# --- the cache of results ---------------------------------------------------------------------------


def test_only_what_has_changed_is_evaluated_again(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "traces", tmp_path / "out"
    shutil.copytree(traces, folder)
    write_traces(folder, ("steady", "diurnal"))
    arguments = (folder, "--output", out, "--strategy=borg", "--pictures")
    assert run_main(*arguments).code == 0
    for path in (out / "done").iterdir():
        path.write_text(path.read_text().replace('"usable_free": 0.', '"usable_free": 7.'))

    def cached(*more: str) -> set[str]:
        """The traces whose rows are those of the altered files."""
        assert run_main(*arguments, *more).code == 0
        return {row["trace"] for row in table(out / "results.csv") if float(row["usable_free"]) > 1}

    assert cached() == {*MIXES, "steady", "diurnal"}
    os.utime(folder / "bursty.json")
    (out / "traces" / "steady-cpu.png").unlink()
    (out / "done" / "diurnal.json").write_text("{")
    (out / "done" / "increasing.json").write_text('{"key": "", "rows": [{"scored": 1}]}')
    assert cached() == {"decreasing"}
    assert cached("--after=11") == set()


def test_traces_are_drawn_only_where_asked_for(traces: Path, tmp_path: Path) -> None:
    arguments = (traces / "bursty.json", "--output", tmp_path, "--strategy=borg")
    assert run_main(*arguments).code == 0
    assert not (tmp_path / "traces").exists()
    assert run_main(*arguments, "--pictures").code == 0
    assert len(list((tmp_path / "traces").iterdir())) == 2


def test_finished_traces_are_counted(traces: Path, tmp_path: Path) -> None:
    arguments = ("--output", tmp_path, "--strategy=borg", "--no-pictures")
    assert run_main(traces / "bursty.json", *arguments).code == 0
    finished = run_main(traces, *arguments)
    assert (finished.code, finished.err) == (0, "evaluate.py: 1 of 3 traces are already done\n")


def test_traces_with_the_same_name_are_kept_apart(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(traces / "bursty.json", tmp_path / name / "week.json")
    shutil.copy(traces / "increasing.json", tmp_path)
    named = (tmp_path / "a", tmp_path / "b", tmp_path / "increasing.json", tmp_path / "a" / "week.json")
    assert run_main(*named, "--output", tmp_path / "out", "--strategy=borg", "--pictures").code == 0
    names = list(dict.fromkeys(row["trace"] for row in table(tmp_path / "out" / "results.csv")))
    assert len(names) == 3
    assert names[2] == "increasing"
    assert all(name.startswith("week-") for name in names[:2])
    assert len(list((tmp_path / "out" / "traces").iterdir())) == 6


# --- mistakes ---------------------------------------------------------------------------------------


def test_bad_traces_are_reported_and_the_others_evaluated(
    traces: Path, evaluated: tuple[Path, Finished], tmp_path: Path
) -> None:
    folder = tmp_path / "with bad ones"
    shutil.copytree(traces, folder)
    (folder / "damaged.json").write_bytes((traces / "bursty.json").read_bytes()[:-100])
    (folder / "empty.json").touch()
    (folder / "gone.json").symlink_to(tmp_path / "nowhere.json")
    finished = run_main(folder, "--output", tmp_path / "out", "--risk=0.05,0.2", "--no-pictures")
    assert finished.code == 2
    lines = finished.err.splitlines()
    assert len(lines) == 3
    assert lines[0] == f"evaluate.py: {tmp_path / 'nowhere.json'}: No such file or directory"
    assert lines[1].startswith(f"evaluate.py: {folder / 'damaged.json'}: ")
    assert lines[2] == f"evaluate.py: {folder / 'empty.json'}: the file is empty"
    assert same_tables(tmp_path / "out", evaluated[0])


def test_fault_of_one_trace_does_not_cost_the_others(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = tasks.read_trace

    def read_or_fail(path: str) -> Any:
        if path.endswith("bursty.json"):
            raise RuntimeError("two\nlines")
        return read(path)

    monkeypatch.setattr(tasks, "read_trace", read_or_fail)
    finished = run_main(traces, "--output", tmp_path, "--strategy=borg", "--no-pictures")
    assert (finished.code, finished.err) == (2, f"evaluate.py: {traces}/bursty.json: RuntimeError: two\\nlines\n")
    assert {row["trace"] for row in table(tmp_path / "results.csv")} == {"increasing", "decreasing"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.json"], "nothing.json: no such file or folder"),
        (["x.json/y.json"], "x.json/y.json: no such file or folder"),
        (["y" * 300], f"{'y' * 300}: File name too long"),
        (["empty"], "empty: no *.json in it"),
        (["x.json"], "no trace could be evaluated"),
        (["x.json", "--strategy=hope"], f"argument -s/--strategy: 'hope' is none of {', '.join(STRATEGIES)}, all"),
        (["x.json", "--strategy=borg,"], f"argument -s/--strategy: '' is none of {', '.join(STRATEGIES)}, all"),
        (["x.json", "--stability=hope"], "argument --stability: 'hope' is none of mean, range, always, never"),
        (["x.json", "--risk=0.05,0"], "--risk: conformal supports target risks above 0 and up to 0.3, not 0"),
        (["x.json", "--percentile=90,"], "argument --percentile: '' is not a number from 0 to 100"),
        (["x.json", "--jobs=0"], "argument -j/--jobs: '0' is not a whole number of at least 1"),
        (["x.json", "--output=x.json"], "x.json: File exists; finished traces are kept"),
        (["--hlep"], "unrecognized option --hlep; did you mean --help?"),
        (["x.json", "--ouptut=out"], "unrecognized option --ouptut; did you mean --output?"),
    ],
)
def test_mistake_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    output = [] if any(word.startswith(("--output", "--hlep", "--ouptut")) for word in arguments) else ["--output=out"]
    finished = run_main(*arguments, *output)
    assert (finished.code, finished.out) == (2, "")
    assert finished.err.splitlines()[-1] == f"evaluate.py: {message}"
    assert len(finished.err.splitlines()) == (2 if arguments[:1] == ["x.json"] and "could" in message else 1)


def test_options_after_two_dashes_are_traces(tmp_path: Path) -> None:
    finished = run_main("--output", tmp_path, "--", "--hlep")
    assert (finished.code, finished.err) == (2, "evaluate.py: --hlep: no such file or folder\n")


def test_unreadable_folder_is_one_line(traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, who may read every folder."""

    def refuse(path: Path) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(tasks.os, "scandir", refuse)
    finished = run_main(traces, "--output", tmp_path / "out")
    assert (finished.code, finished.err) == (2, f"evaluate.py: {traces}: Permission denied\n")
    assert not (tmp_path / "out").exists()


# --- the registries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STABILITY_DETECTORS)
def test_every_stability_detector_can_be_chosen(name: str) -> None:
    args = evaluate.build_parser().parse_args(["x.json", "--output=out", f"--stability={name}"])
    assert args.stability == [name]


def test_help_describes_every_strategy_and_detector(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.build_parser().parse_args(["--help"])
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    for registry in (STRATEGIES, STABILITY_DETECTORS):
        for name, entry in registry.items():
            assert [name, entry.summary] in lines


def test_every_name_is_evaluated_once(traces: Path, tmp_path: Path) -> None:
    run_main(traces / "bursty.json", "--output", tmp_path, "--strategy=borg,doa,borg", "--aggreg=2,2", "--no-pictures")
    rows = [
        (row["strategy"], row["aggregation"]) for row in table(tmp_path / "results.csv") if row["resource"] == "cpu"
    ]
    assert rows == [("borg", ""), ("doa", "2")]
