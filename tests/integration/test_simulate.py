"""``misc/simulate.py`` in this process: inputs, tables, files, the results that are kept, and mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from misc import simulate, tracegen
from model.oversubscriptioncomputation import STRATEGIES
from model.simulation import command, tasks
from model.simulation.draw import DrawSettings, SampledVm, draw_workload
from model.simulation.grid import COLUMNS
from model.simulation.workload_file import read_workload, write_workload
from tests.support.simulation import Finished, rows_of, run_simulate

DAYS = ("--scope-s=86400", "--slice-s=3600")
#: A fleet and workloads on which a run takes a tenth of a second.
SMALL = ("--nodes=2", "--node-cores=16", "--days=1", "--per-node-hour=4")
FAST = (*SMALL, "--strategy=borg", "--ratio=2", "--seeds=1", "--no-oracle", "--no-hosts-needed")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two traces of nodes whose VMs neither arrive nor leave."""
    folder = tmp_path_factory.mktemp("traces")
    for seed, name in enumerate(("one", "two")):
        shape = ["--mix=bursty", "--vms=4", *DAYS, "--scopes=2", "--samples=12", "--cores=16", "--memory-mb=65536"]
        assert tracegen.main([*shape, f"--seed={seed}", str(folder / f"{name}.json")]) == 0
    return folder


def sampled(count: int = 6) -> list[SampledVm]:
    rng = np.random.default_rng(7)
    sizes = [1.0, 2.0, 2.0, 4.0, 8.0, 1.0]
    return [
        SampledVm(sizes[i % 6], 2048.0, rng.random(288).astype(np.float32), rng.random(288).astype(np.float32))
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("workload") / "week.json"
    write_workload(path, draw_workload(sampled(), 300.0, DrawSettings(nodes=2, days=1, per_node_hour=3), 1))
    return path


@pytest.fixture(scope="module")
def simulated(traces: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """A comparison with all parts: its folder, and what was printed."""
    folder = tmp_path_factory.mktemp("simulated") / "out"
    arguments = (
        "--strategy=conformal,nsigma",
        "--risk=0.1",
        "--slice-s=7200",
        "--ratio=1,2",
        "--seeds=1-2",
        "--harm=0.02",
    )
    finished = run_simulate(traces, *SMALL, *arguments, "--guards", "--no-guards", "--output", folder, draw=True)
    assert (finished.code, finished.err) == (0, "")
    return folder, finished


# --- results ------------------------------------------------------------------------------------------


def test_folder_has_a_table_and_pictures_per_workload_and_one_report(simulated: tuple[Path, Finished]) -> None:
    names = {path.name for path in simulated[0].iterdir() if path.is_file()}
    pictures = {f"{name}{suffix}.png" for name in ("front", "fleet", "reported") for suffix in ("", "-finite")}
    assert names == {"simulation.csv", "simulation-finite.csv", "report.html", *pictures}
    assert all((simulated[0] / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    page = (simulated[0] / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures)
    assert "conformal 10% bare" in page


def test_table_has_a_row_per_setting_and_seed(simulated: tuple[Path, Finished]) -> None:
    text = (simulated[0] / "simulation.csv").read_text()
    contract = "strategy,risk,ratio,guards,seed,sold,hosted,accepted,accepted_vcpu,accepted_large,used,over,worst_node,unserved,p999,mem_over,mem_sold,reported,hosts_needed,wait_5,wait_10,wait_20,waits"
    assert text.splitlines()[0] == contract
    rows = rows_of(simulated[0] / "simulation.csv")
    settings = list(dict.fromkeys(tuple(row[name] for name in ("strategy", "risk", "ratio", "guards")) for row in rows))
    assert settings[:-1] == [
        ("ratio", "", "1.0", ""),
        ("ratio", "", "2.0", ""),
        ("oracle", "", "", ""),
        ("conformal", "0.1", "", "on"),
        ("conformal", "0.1", "", "off"),
        ("nsigma", "", "", "on"),
        ("nsigma", "", "", "off"),
    ]
    assert settings[-1][0] == "best-ratio"
    assert [row["seed"] for row in rows] == ["1", "2"] * len(settings)


def test_only_the_finite_stream_has_the_nodes_that_it_needs(simulated: tuple[Path, Finished]) -> None:
    flood, finite = (rows_of(simulated[0] / f"simulation{suffix}.csv") for suffix in ("", "-finite"))
    assert {row["hosts_needed"] for row in flood} == {""}
    needed = {(row["strategy"], row["ratio"], row["seed"]): int(row["hosts_needed"] or 0) for row in finite}
    assert all(0 < needed["oracle", "", seed] <= needed["ratio", "2.0", seed] for seed in "12")


def test_fixed_ratio_sells_at_most_that_ratio_and_the_oracle_does_no_harm(simulated: tuple[Path, Finished]) -> None:
    for row in rows_of(simulated[0] / "simulation.csv"):
        if row["ratio"]:
            assert float(row["sold"]) <= float(row["ratio"]) + 1e-9
        if row["strategy"] == "oracle":
            assert float(row["over"]) == 0


def test_best_ratio_is_the_largest_that_keeps_the_accepted_harm(
    simulated: tuple[Path, Finished], traces: Path, tmp_path: Path
) -> None:
    best = [row for row in rows_of(simulated[0] / "simulation.csv") if row["strategy"] == "best-ratio"]
    assert np.mean([float(row["over"]) for row in best]) <= 0.02
    above = float(best[0]["ratio"]) + 0.1
    arguments = (
        traces,
        *SMALL,
        "--strategy=borg",
        f"--ratio={above}",
        "--slice-s=7200",
        "--seeds=1,2",
        "--no-oracle",
        "--arrivals=flood",
    )
    assert run_simulate(*arguments, "--output", tmp_path).code == 0
    next_one = [row for row in rows_of(tmp_path / "simulation.csv") if row["strategy"] == "ratio"]
    assert np.mean([float(row["over"]) for row in next_one]) > 0.02


def test_terminal_shows_means_and_spread_and_the_answer(simulated: tuple[Path, Finished]) -> None:
    folder, finished = simulated
    sold = [float(row["sold"]) for row in rows_of(folder / "simulation.csv") if row["strategy"] == "oracle"]
    line = next(line for line in finished.out.splitlines() if line.split()[:1] == ["oracle"])
    assert f"{np.mean(sold):.2f} ({min(sold):.2f}..{max(sold):.2f})" in line
    lines = finished.out.splitlines()
    assert lines[0].strip() == "flood, means of 2 seeds (least..most); *: at most 2 % over"
    assert len([line for line in lines if line.startswith("at most 2 % over: ")]) == 2
    assert lines[-1] == str(folder / "report.html")


def test_json_has_the_same_figures(simulated: tuple[Path, Finished], traces: Path) -> None:
    arguments = (
        "--strategy=nsigma",
        "--ratio=1,2",
        "--slice-s=7200",
        "--seeds=1-2",
        "--harm=0.02",
        "--arrivals=flood",
        "--json",
    )
    finished = run_simulate(traces, *SMALL, *arguments)
    assert (finished.code, finished.err) == (0, "")
    found = json.loads(finished.out)
    (one,) = found["workloads"]
    assert (found["harm"], one["workload"]) == (0.02, "flood")
    for entry in one["settings"]:
        own = [
            float(row["sold"])
            for row in rows_of(simulated[0] / "simulation.csv")
            if (row["strategy"], row["guards"] or "on") == (entry["strategy"], "on")
            and row["ratio"] == ("" if entry["ratio"] is None else str(float(entry["ratio"])))
        ]
        assert entry["sold"]["mean"] == pytest.approx(np.mean(own))
        assert (entry["sold"]["min"], entry["sold"]["max"]) == pytest.approx((min(own), max(own)))


def test_without_a_folder_nothing_is_written(traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished = run_simulate(traces, *FAST)
    assert finished.code == 0
    assert "borg" in finished.out
    assert list(tmp_path.iterdir()) == []


# --- options that change the runs ---------------------------------------------------------------------


def plan_of(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> tuple[Any, list[Any]]:
    """The plan and the tasks of a command line, whose runs are not simulated."""
    plans: list[Any] = []
    seen: list[Any] = []

    def work(plan: Any) -> Any:
        plans.append(plan)
        return original(plan)

    def run(task: Any, plan: Any) -> Any:
        seen.append(task)
        return tasks.Outcome(error="not simulated")

    original = tasks.simulation_work
    monkeypatch.setattr(command, "simulation_work", work)
    monkeypatch.setattr(tasks, "_run", run)
    run_simulate(*arguments)
    return plans[0], seen


@pytest.mark.parametrize(
    ("option", "where", "value"),
    [
        ("--nodes=7", "size.nodes", 7),
        ("--node-cores=48", "size.cores", 48.0),
        ("--node-memory-mb=65536", "size.memory_mb", 65536.0),
        ("--weigher=pack", "weigher", "pack"),
        ("--publish=both", "publish_memory", True),
        ("--slice-s=1800", "slice_s", 1800.0),
        ("--warm-up-s=7200", "warm_up_s", 7200.0),
    ],
)
def test_option_of_the_fleet_reaches_the_runs(
    option: str, where: str, value: Any, workload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = plan_of(monkeypatch, workload, option)
    found = plan.simulation
    for name in where.split("."):
        found = getattr(found, name)
    assert found == value


def test_scope_slice_and_history_reach_the_node_models(workload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _ = plan_of(monkeypatch, workload, "--scope-s=43200", "--slice-s=1800", "--historical=5")
    assert (plan.positions, plan.historical) == (24, 5)


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [
        ("--mix=busy", "mix", "busy"),
        ("--same-clock", "same_clock", True),
        ("--days=2", "days", 2.0),
        ("--per-node-hour=9", "per_node_hour", 9.0),
        ("--nodes=5", "nodes", 5),
        ("--arrivals=ramp", "arrivals", "ramp"),
    ],
)
def test_option_of_the_drawing_reaches_the_runs(
    option: str, name: str, value: Any, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = plan_of(monkeypatch, traces, option)
    assert getattr(plan.sources[0].draw, name) == value


def test_default_is_the_strategy_clt_with_guards_a_flood_and_a_finite_stream(
    traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, seen = plan_of(monkeypatch, traces)
    assert [(one.name, one.finite) for one in plan.sources] == [("flood", False), ("finite", True)]
    assert list(dict.fromkeys(one.setting.label for one in seen)) == [
        *("clt 1%", "ratio 1", "ratio 2", "ratio 4", "oracle"),
        "ratio 8.5",  # the first one of the search
    ]
    assert {one.seed for one in seen} == {1, 2, 3}
    assert {one.setting.guards for one in seen} == {None, True}
    assert {one.source for one in seen if one.find_hosts} == {1}


@pytest.mark.parametrize(
    ("options", "guards"),
    [((), {True}), (("--guards",), {True}), (("--no-guards",), {False}), (("--no-guards", "--guards"), {True, False})],
)
def test_guards_are_on_off_or_both(
    options: tuple[str, ...], guards: set[bool], workload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, seen = plan_of(monkeypatch, workload, *options)
    assert {one.setting.guards for one in seen if one.setting.is_strategy} == guards


@pytest.mark.parametrize(
    ("options", "waits"),
    [((), {False}), (("--no-waits",), {False}), (("--waits",), {True}), (("--waits", "--no-waits"), {True, False})],
)
def test_waits_are_measured_or_not_or_both(
    options: tuple[str, ...], waits: set[bool], workload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, seen = plan_of(monkeypatch, workload, *options)
    assert {one.setting.waits for one in seen if one.setting.is_strategy} == waits


@pytest.mark.parametrize(("text", "seeds"), [("4", [4]), ("1-3", [1, 2, 3]), ("5,1-2,2", [5, 1, 2]), ("0", [0])])
def test_seeds_are_numbers_and_ranges(text: str, seeds: list[int]) -> None:
    assert simulate.build_parser().parse_args(["x", f"--seeds={text}"]).seeds == seeds


def test_hosts_can_be_searched_for_any_workload_and_left_out_for_a_finite_stream(
    traces: Path, workload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, seen = plan_of(monkeypatch, workload, "--hosts-needed")
    assert any(one.find_hosts for one in seen)
    _, seen = plan_of(monkeypatch, traces, "--no-hosts-needed")
    assert not any(one.find_hosts for one in seen)


def test_warm_up_is_at_most_a_third_of_the_workload_by_default(
    workload: Path, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = plan_of(monkeypatch, workload)
    assert plan.simulation.warm_up_s == 8 * 3600
    plan, _ = plan_of(monkeypatch, traces, "--days=20")
    assert plan.simulation.warm_up_s == 4 * 86400


def test_more_cores_take_more_and_bare_figures_differ_from_guarded_ones(workload: Path, tmp_path: Path) -> None:
    for cores in ("8", "16"):
        arguments = (
            "--nodes=2",
            f"--node-cores={cores}",
            "--strategy=percentile",
            "--guards",
            "--no-guards",
            "--scope-s=3600",
        )
        assert run_simulate(workload, *arguments, "--output", tmp_path / cores).code == 0
    small, large = (rows_of(tmp_path / cores / "simulation.csv") for cores in ("8", "16"))
    assert float(small[0]["hosted"]) < float(large[0]["hosted"])
    guarded, bare = (next(row for row in small if row["guards"] == guards) for guards in ("on", "off"))
    assert float(guarded["sold"]) < float(bare["sold"])


# --- inputs -------------------------------------------------------------------------------------------


def test_workload_file_is_simulated_as_it_is(workload: Path, tmp_path: Path) -> None:
    finished = run_simulate(workload, *FAST, "--output", tmp_path)
    assert (finished.code, finished.err) == (0, "")
    rows = rows_of(tmp_path / "simulation.csv")
    assert {row["seed"] for row in rows} == {""}
    assert finished.out.startswith("week; *")


def test_several_workloads_have_a_table_each(workload: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(workload, other / "week.json")
    shutil.copy(workload, other / "month.json")
    assert run_simulate(workload, other, *FAST, "--output", tmp_path / "out").code == 0
    names = {path.name for path in (tmp_path / "out").glob("*.csv")}
    assert names == {"simulation.csv", "simulation-month.csv", "simulation-week-2.csv"}


def test_same_file_under_two_names_is_read_once(workload: Path, tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(workload)
    assert run_simulate(workload, tmp_path / "link.json", *FAST, "--output", tmp_path / "out").code == 0
    assert [path.name for path in (tmp_path / "out").glob("*.csv")] == ["simulation.csv"]


def test_arrivals_of_traces_are_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = [
        "--mix=bursty",
        "--vms=4",
        "--arrivals=3",
        *DAYS,
        "--scopes=2",
        "--samples=6",
        "--cores=16",
        "--memory-mb=65536",
    ]
    assert tracegen.main([*shape, str(tmp_path / "trace.json")]) == 0
    plan, seen = plan_of(monkeypatch, tmp_path / "trace.json")
    assert [(one.name, one.finite, one.seeded) for one in plan.sources] == [("replay", False, False)]
    assert {one.seed for one in seen} == {None}
    plan, _ = plan_of(monkeypatch, tmp_path / "trace.json", "--arrivals=replay,ramp")
    assert [one.name for one in plan.sources] == ["replay", "ramp"]


def test_best_ratio_is_the_smallest_of_those_that_sell_as_much(workload: Path, tmp_path: Path) -> None:
    """Memory binds: from some ratio on nothing changes."""
    arguments = ("--strategy=borg", "--ratio=1,8", "--nodes=2", "--node-cores=16", "--node-memory-mb=20000", "--harm=1")
    assert run_simulate(workload, *arguments, "--output", tmp_path).code == 0
    rows = {(row["strategy"], row["ratio"]): row for row in rows_of(tmp_path / "simulation.csv")}
    (best,) = (ratio for strategy, ratio in rows if strategy == "best-ratio")
    assert 1 < float(best) <= 8
    assert rows["best-ratio", best]["sold"] == rows["ratio", "8.0"]["sold"] > rows["ratio", "1.0"]["sold"]


def test_workloads_are_drawn_of_traces_of_different_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ["--mix=bursty", "--vms=4", "--arrivals=3", *DAYS, "--scopes=2", "--samples=6", "--cores=16"]
    for start in (86400, 8640000):
        arguments = [*shape, "--memory-mb=65536", f"--start={start}", str(tmp_path / f"{start}.json")]
        assert tracegen.main(arguments) == 0
    plan, _ = plan_of(monkeypatch, tmp_path)
    assert [one.name for one in plan.sources] == ["flood", "finite"]
    finished = run_simulate(tmp_path, *FAST, "--arrivals=replay")
    assert finished.code == 2
    assert "the traces are not of the same time" in finished.err


def test_saved_workload_gives_the_same_figures(traces: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    one = ("--arrivals=flood", "--save-workload", saved)
    assert run_simulate(traces, *FAST, *one, "--output", tmp_path / "drawn").code == 0
    assert read_workload(saved).steps == 288
    assert run_simulate(saved, *FAST, "--output", tmp_path / "saved").code == 0
    drawn, again = (rows_of(tmp_path / name / "simulation.csv") for name in ("drawn", "saved"))
    assert [{**row, "seed": ""} for row in drawn] == again


def test_same_seed_gives_the_same_files_and_another_one_does_not(traces: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        arguments = [word for word in FAST if "seeds" not in word]
        assert run_simulate(traces, *arguments, f"--seeds={seed}", "--output", tmp_path / name).code == 0
    texts = [(tmp_path / name / "simulation.csv").read_text() for name in "abc"]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2].replace(",2,", ",1,")


def test_list_of_arrivals_is_joined_with_the_usage_of_traces(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "instances.csv"
    rows = [f"vm{i},2026-01-0{1 + i % 3}T0{i}:00:00,,2,4096" for i in range(9)]
    listed.write_text("\n".join(["uuid,created_at,deleted_at,vcpus,memory_mb", *rows]) + "\n")
    options = ("--arrival-list", listed, "--arrival-format=nova")
    finished = run_simulate(traces, *options, *FAST, "--from-day=1", "--days=2", "--output", tmp_path / "out")
    assert (finished.code, finished.err) == (0, "")
    assert {row["seed"] for row in rows_of(tmp_path / "out" / "simulation.csv")} == {"1"}
    plan, _ = plan_of(monkeypatch, traces, *options, "--from-day=1", "--days=2")
    (source,) = plan.sources
    arrived = source.workload(1)
    assert (source.name, len(arrived), arrived.duration_s) == ("arrivals", 9, 2 * 86400)
    # Those of the first day are there at the start.
    assert (arrived.create_s == 0).sum() == 3


def test_arrivals_with_usage_of_their_own_need_no_traces(tmp_path: Path) -> None:
    vms = [
        {"name": f"vm{i}", "cpu": 2, "mem": 4, "slice_postponed": i, "slice_lifetime": 0, "usage": [10, 50]}
        for i in range(24)
    ]
    (tmp_path / "vms.json").write_text(json.dumps(vms))
    options = ("--arrival-list", tmp_path / "vms.json", "--arrival-format=cloudfactory", "--arrival-slice-s=3600")
    finished = run_simulate(*options, *FAST, "--output", tmp_path / "out")
    assert (finished.code, finished.err) == (0, "")
    assert {row["seed"] for row in rows_of(tmp_path / "out" / "simulation.csv")} == {""}


def test_arrivals_without_usage_need_traces(tmp_path: Path) -> None:
    listed = tmp_path / "instances.csv"
    listed.write_text("uuid,created_at,deleted_at,vcpus,memory_mb\na,2026-01-01T00:00:00,,2,4096\n")
    finished = run_simulate("--arrival-list", listed, "--arrival-format=nova", *FAST)
    assert (finished.code, finished.out, finished.err.count("\n")) == (2, "", 1)
    assert "--arrival-list: " in finished.err
    assert "name traces as INPUT" in finished.err


def test_bad_inputs_are_reported_and_the_others_simulated(workload: Path, traces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "inputs"
    shutil.copytree(traces, folder)
    (folder / "damaged.json").write_bytes((traces / "one.json").read_bytes()[:-50])
    (folder / "bad-workload.json").write_text('{"step_s": 300, "duration_s": 0, "series": [], "vms": []}')
    (folder / "gone.json").symlink_to(tmp_path / "nowhere.json")
    finished = run_simulate(folder, *FAST, "--output", tmp_path / "out")
    assert finished.code == 2
    lines = finished.err.splitlines()
    assert len(lines) == 3
    assert lines[0] == f"simulate.py: {folder / 'bad-workload.json'}: duration_s: 0 is not a length of time"
    assert lines[1].startswith(f"simulate.py: {folder / 'damaged.json'}: ")
    assert lines[2] == f"simulate.py: {folder / 'gone.json'}: No such file or directory"
    assert run_simulate(traces, *FAST, "--output", tmp_path / "good").code == 0
    assert (tmp_path / "out" / "simulation.csv").read_bytes() == (tmp_path / "good" / "simulation.csv").read_bytes()


# --- the results that are kept ------------------------------------------------------------------------


def test_only_what_has_changed_is_simulated_again(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    ran: list[tasks.Task] = []
    run = tasks._run

    def noted(task: Any, plan: Any) -> Any:
        ran.append(task)
        return run(task, plan)

    monkeypatch.setattr(tasks, "_run", noted)

    def simulated(*more: str) -> set[tuple[str, int | None]]:
        ran.clear()
        assert run_simulate(traces, *FAST, "--output", out, "--arrivals=flood", *more).code == 0
        return {(one.setting.strategy, one.seed) for one in ran}

    assert simulated() == {("borg", 1), ("ratio", 1)}
    first = (out / "simulation.csv").read_bytes()
    assert simulated() == set()
    assert (out / "simulation.csv").read_bytes() == first
    assert simulated("--strategy=borg,doa") == {("doa", 1)}
    assert simulated("--nodes=3") == {("borg", 1), ("ratio", 1)}
    for path in (out / "done").iterdir():
        path.write_text("{")
    assert simulated() == {("borg", 1), ("ratio", 1)}


def test_run_that_fails_is_reported_and_the_others_are_kept(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy_of = tasks.policy_of

    def fail(setting: Any, *others: Any) -> Any:
        if setting.strategy == "doa":
            raise RuntimeError("two\nlines")
        return policy_of(setting, *others)

    monkeypatch.setattr(tasks, "policy_of", fail)
    arguments = (*FAST, "--arrivals=flood", "--strategy=borg,doa", "--output", tmp_path)
    finished = run_simulate(traces, *arguments)
    assert (finished.code, finished.err) == (2, "simulate.py: flood: doa, seed 1: RuntimeError: two\\nlines\n")
    assert {row["strategy"] for row in rows_of(tmp_path / "simulation.csv")} >= {"borg", "ratio"}


def test_file_in_the_way_leaves_older_results_unchanged(traces: Path, tmp_path: Path) -> None:
    (tmp_path / "simulation.csv").write_text("older")
    (tmp_path / "front.png").mkdir()
    finished = run_simulate(traces, *FAST, "--output", tmp_path)
    assert finished.code == 2
    assert finished.err == f"simulate.py: {tmp_path / 'front.png'}: Not a regular file; finished runs are kept\n"
    assert (tmp_path / "simulation.csv").read_text() == "older"
    assert {path.name for path in tmp_path.iterdir()} == {"simulation.csv", "front.png", "done"}


# --- mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no INPUT: name workload files, traces, or folders of them"),
        (["nothing.json"], "nothing.json: no such file or folder"),
        (["empty"], "empty: no *.json in it"),
        (["y" * 300], f"{'y' * 300}: File name too long"),
        (["x.json"], "no input could be used"),
        (["w.json", "--strategy=hope"], f"argument -s/--strategy: 'hope' is none of {', '.join(STRATEGIES)}, all"),
        (["w.json", "--strategy=conformal", "--risk=0.05,0"], "--risk: conformal supports target risks above 0 and up to 0.3, not 0"),
        (["w.json", "--strategy=conformal", "--risk-mem=0.4"], "--risk-mem: conformal supports target risks above 0 and up to 0.3, not 0.4"),
        (["w.json", "--risk-mem=2"], "argument --risk-mem: '2' is not a number from 0 to 1"),
        (["w.json", "--risk=x"], "argument --risk: 'x' is not a number from 0 to 1"),
        (["w.json", "--ratio=0.5"], "argument --ratio: '0.5' is not a number from 1 to 16"),
        (["w.json", "--ratio=1,17"], "argument --ratio: '17' is not a number from 1 to 16"),
        (["w.json", "--harm=2"], "argument --harm: '2' is not a number from 0 to 1"),
        (["w.json", "--nodes=0"], "argument --nodes: '0' is not a whole number of at least 1"),
        (["w.json", "--node-cores=0"], "argument --node-cores: '0' is not a number from 1 to 1e+06"),
        (["w.json", "--node-memory-mb=64"], "argument --node-memory-mb: '64' is not a number from 4096 to 1e+12"),
        (["w.json", "--weigher=best"], "argument --weigher: invalid choice: 'best' (choose from 'spread', 'pack')"),
        (["w.json", "--publish=mem"], "argument --publish: invalid choice: 'mem' (choose from 'cpu', 'both')"),
        (["w.json", "--slice-s=1000", "--scope-s=86000"], "--slice-s: 1000 is not a multiple of the steps of w, 300 s"),
        (["w.json", "--slice-s=172800", "--scope-s=172800"], "--slice-s: 172800 is longer than w, 86400 s"),
        (["w.json", "--scope-s=5000"], "--scope-s: 5000 is not a multiple of --slice-s, 3600"),
        (["w.json", "--historical=-1"], "argument --historical: '-1' is not a whole number of at least 0"),
        (["w.json", "--warm-up-s=86400"], "--warm-up-s: 86400 leaves no slice of 86400 s"),
        (["w.json", "--arrivals=storm"], "argument --arrivals: 'storm' is none of flood, ramp, finite, replay"),
        (["steady.json", "--arrivals=replay"], "--arrivals: replay, but in these traces no VM arrives or leaves"),
        (["w.json", "--mix=odd"], "argument --mix: invalid choice: 'odd' (choose from 'even', 'busy', 'turn')"),
        (["w.json", "--days=0"], "argument --days: '0' is not a number from 0.01 to 3660"),
        (["w.json", "--per-node-hour=0"], "argument --per-node-hour: '0' is not a number from 0.001 to 10000"),
        (["w.json", "--seeds=3-1"], "argument --seeds: '3-1' is neither a seed nor a range such as 1-5"),
        (["w.json", "--seeds=1-1000000"], "argument --seeds: '1-1000000' is neither a seed nor a range such as 1-5"),
        (["w.json", "--seeds=x"], "argument --seeds: 'x' is neither a seed nor a range such as 1-5"),
        (["w.json", "--arrival-list=a.csv"], "--arrival-list and --arrival-format: give both, or none"),
        (["w.json", "--arrival-format=nova"], "--arrival-list and --arrival-format: give both, or none"),
        (["w.json", "--flavors=f.json"], "--flavors: needs --arrival-format=nova"),
        (["w.json", "--arrival-list=a.csv", "--arrival-format=nova"], "a.csv: No such file or directory"),
        (["w.json", "--jobs=0"], "argument -j/--jobs: '0' is not a whole number of at least 1"),
        (["w.json", "--output=w.json"], "--output: w.json is not a folder"),
        (["w.json", "--output="], "argument -o/--output: the path is empty"),
        (["steady.json", "--save-workload=s.json"], "--save-workload: there are 6 workloads; choose one with --arrivals and --seeds"),
        (["w.json", "--save-workload=no/s.json", *FAST], "--save-workload: no/s.json: No such file or directory"),
        (["--hlep"], "unrecognized option --hlep; did you mean --help?"),
        (["w.json", "--node=3"], "unrecognized option --node; did you mean --nodes?"),
    ],
)  # fmt: skip
def test_mistake_is_one_line(
    arguments: list[str], message: str, workload: Path, traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    shutil.copy(workload, tmp_path / "w.json")
    shutil.copy(traces / "one.json", tmp_path / "steady.json")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    finished = run_simulate(*arguments)
    assert (finished.code, finished.out) == (2, "")
    assert finished.err.splitlines()[-1] == f"simulate.py: {message}"
    assert len(finished.err.splitlines()) == (2 if arguments[:1] == ["x.json"] else 1)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_help_describes_every_strategy(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        simulate.build_parser().parse_args(["--help"])
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    for name, strategy in STRATEGIES.items():
        assert [name, strategy.summary] in lines


def test_columns_are_the_figures_of_the_table() -> None:
    assert len(COLUMNS) == 23
