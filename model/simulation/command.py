"""The comparison of settings in closed loop: from options to tables and pictures on disk."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..cli.progress import ProgressBar
from ..cli.tables import print_json
from ..common.atomic_files import Staged, staged
from ..common.errors import UsageError
from ..common.text import printable
from ..parallel.workers import finish
from .grid import BEST_RATIO, FIXED_RATIO, RatioSearch, Row, Setting, row_of, table_csv
from .inputs import Inputs, files_of, read_inputs, sources_of
from .options import SimulationOptions
from .result_cache import ResultCache
from .results import SourceResult
from .simulation import SimulationSettings
from .sources import Source
from .summary import Comparison, summaries_of
from .tables import print_comparisons
from .tasks import FleetSeries, Outcome, Plan, Task, simulation_work
from .workload_file import WorkloadError, write_workload

#: Default of the warm-up, seconds; but no more than this share of the workload.
_WARM_UP_S, _WARM_UP_SHARE = 4 * 86400.0, 1 / 3


def run_simulation(options: SimulationOptions) -> int:
    """Compare the settings and write the results.

    Returns
    -------
    int
        Exit code: 2 when an input could not be used or a run failed.

    Raises
    ------
    UsageError
        When no input can be used, options contradict each other, a path is unusable, or the cluster is lost.
    """
    _check(options)
    inputs = _read(options)
    try:
        sources = sources_of(inputs, options)
    finally:
        for line in (*inputs.notes, *inputs.errors):
            _report(line)
    _check_saving(options, sources)
    errors: list[str] = []
    try:
        if options.output is not None:
            options.output.mkdir(parents=True, exist_ok=True)
        results, errors = compare(options, sources)
        if results:
            _write(options, sources, results)
    except OSError as error:
        place = printable(str(error.filename or options.output))
        raise UsageError(f"{place}: {error.strerror or error}; finished runs are kept") from None
    finally:
        for line in errors:
            _report(line)
    if not results:
        raise UsageError("no run succeeded")
    _print(options, results)
    return 2 if inputs.errors or errors else 0


def compare(options: SimulationOptions, sources: Sequence[Source]) -> tuple[list[SourceResult], list[str]]:
    """Run all settings, and the best fixed ratio, on some sources.

    Returns
    -------
    results : list of SourceResult
        Of the sources on which a run succeeded.
    errors : list of str
        A line for each run that failed.

    Raises
    ------
    UsageError
        When the options do not fit the sources, or the cluster is lost.
    """
    plan = _plan(options, sources)
    runner = Runner(options, plan)
    runner.run(_tasks(options, plan))
    best = runner.find_best_ratios()
    runner.run(
        Task(number, seed, Setting(FIXED_RATIO, ratio=ratio), find_hosts=True)
        for number, ratio in best.items()
        if plan.sources[number].finite
        for seed in seeds_of(plan.sources[number], options)
    )
    results = [_result(options, plan, number, best, runner) for number in range(len(sources))]
    return [result for result in results if result.rows], sorted(runner.errors)


def seeds_of(source: Source, options: SimulationOptions) -> Sequence[int | None]:
    """The seeds of a source; None where nothing is drawn."""
    return options.seeds if source.seeded else (None,)


# --- before the runs ----------------------------------------------------------------------------------


def _check(options: SimulationOptions) -> None:
    if options.scope_s % options.slice_s:
        raise UsageError(f"--scope-s: {options.scope_s:g} is not a multiple of --slice-s, {options.slice_s:g}")
    if options.output is not None and options.output.exists() and not options.output.is_dir():
        raise UsageError(f"--output: {printable(str(options.output))} is not a folder")


def _check_saving(options: SimulationOptions, sources: Sequence[Source]) -> None:
    workloads = sum(len(seeds_of(source, options)) for source in sources)
    if options.save_workload is not None and workloads > 1:
        raise UsageError(f"--save-workload: there are {workloads} workloads; choose one with --arrivals and --seeds")


def _read(options: SimulationOptions) -> Inputs:
    files = files_of(options.inputs)
    with ProgressBar().counted("reading", len(files)) as advance:
        inputs = read_inputs(files, advance)
    if not inputs.workloads and not inputs.traces and options.arrival_list is None:
        for line in inputs.errors:
            _report(line)
        raise UsageError("no input could be used")
    return inputs


def _plan(options: SimulationOptions, sources: Sequence[Source]) -> Plan:
    seconds = []
    for source in sources:
        step_s, duration_s = source.step_s, source.duration_s
        if options.slice_s % step_s:
            raise UsageError(
                f"--slice-s: {options.slice_s:g} is not a multiple of the steps of {source.name}, {step_s:g} s"
            )
        if options.slice_s > duration_s:
            raise UsageError(f"--slice-s: {options.slice_s:g} is longer than {source.name}, {duration_s:g} s")
        seconds.append(duration_s)
    warm_up_s = options.warm_up_s
    if warm_up_s is None:
        warm_up_s = min(_WARM_UP_S, _WARM_UP_SHARE * min(seconds)) // options.slice_s * options.slice_s
    elif warm_up_s > min(seconds) - options.slice_s:
        raise UsageError(f"--warm-up-s: {warm_up_s:g} leaves no slice of {min(seconds):g} s")
    simulation = SimulationSettings(
        size=options.size,
        slice_s=options.slice_s,
        weigher=options.weigher,
        publish_memory=options.publish_memory,
        warm_up_s=warm_up_s,
    )
    positions = round(options.scope_s / options.slice_s)
    return Plan(tuple(sources), simulation, positions, options.historical, options.memory_risk)


def _tasks(options: SimulationOptions, plan: Plan) -> Iterator[Task]:
    """All tasks but those of the best ratio."""
    for number, source in enumerate(plan.sources):
        for seed in seeds_of(source, options):
            for setting in options.settings:
                yield Task(number, seed, setting)
                if source.finite:
                    yield Task(number, seed, setting, find_hosts=True)


# --- runs ---------------------------------------------------------------------------------------------


class Runner:
    """Runs tasks and keeps their outcomes.

    Parameters
    ----------
    options : SimulationOptions
    plan : Plan

    Attributes
    ----------
    outcomes : dict of Task to Outcome
        Of the tasks that succeeded.
    errors : list of str
        A line for each of the others.
    """

    def __init__(self, options: SimulationOptions, plan: Plan) -> None:
        self._options = options
        self._plan = plan
        self._cache = ResultCache(options.output, plan)
        self.outcomes: dict[Task, Outcome] = {}
        self.errors: list[str] = []

    def run(self, tasks: Iterable[Task], what: str = "simulating") -> None:
        """Run the tasks whose outcome is neither here nor in the cache."""
        pending = []
        for task in dict.fromkeys(tasks):
            if task not in self.outcomes:
                if (outcome := self._cache.load(task)) is not None:
                    self.outcomes[task] = outcome
                else:
                    pending.append(task)
        # The longest first, so that the last worker does not run long after the others.
        pending.sort(key=lambda task: (task.find_hosts, task.setting.is_strategy), reverse=True)
        if not pending:
            return
        work = simulation_work(self._plan)
        with ProgressBar().counted(what, len(pending)) as advance:
            for task, outcome in finish(work, pending, self._options.jobs, self._options.dask):
                if outcome.error:
                    self.errors.append(f"{self._plan.sources[task.source].name}: {outcome.error}")
                else:
                    self._cache.save(task, outcome)
                    self.outcomes[task] = outcome
                advance()

    def find_best_ratios(self) -> dict[int, float]:
        """The best fixed ratio of each source that has one, by the index of the source."""
        searches = {}
        for number in range(len(self._plan.sources)):
            searches[number] = RatioSearch(self._options.harm, self._plan.simulation.most_ratio)
            for setting in self._options.settings:
                if setting.ratio is not None:
                    self._note(searches[number], number, setting.ratio)
        pending = dict(searches)
        while pending:
            tried = {number: ratio for number, search in pending.items() if (ratio := search.next()) is not None}
            self.run(
                (task for number, ratio in tried.items() for task in self._ratio_tasks(number, ratio)),
                "searching the best ratio",
            )
            # Where a run failed, there is no figure to go on with.
            pending = {
                number: searches[number]
                for number, ratio in tried.items()
                if self._note(searches[number], number, ratio)
            }
        return {
            number: self._least_equal(number, search.best)
            for number, search in searches.items()
            if search.best is not None
        }

    def _least_equal(self, number: int, best: float) -> float:
        """The smallest ratio that sells as much: where memory or demand binds, ratios above some limit are equal."""
        sold = {ratio: self._mean(number, ratio, "sold") for ratio in self._tried(number) if ratio <= best}
        return min((ratio for ratio, value in sold.items() if value >= sold.get(best, math.inf)), default=best)

    def _tried(self, number: int) -> set[float]:
        """The fixed ratios that were simulated on a source."""
        ratios = {task.setting.ratio for task in self.outcomes if task.source == number and not task.find_hosts}
        return {ratio for ratio in ratios if ratio is not None}

    def _mean(self, number: int, ratio: float, name: str) -> float:
        """The mean of a figure of a ratio over the seeds; NaN when a run is missing."""
        outcomes = [self.outcomes.get(task) for task in self._ratio_tasks(number, ratio)]
        figures = [math.nan if one is None or one.figures is None else getattr(one.figures, name) for one in outcomes]
        return float(np.mean(figures))

    def _ratio_tasks(self, number: int, ratio: float) -> list[Task]:
        seeds = seeds_of(self._plan.sources[number], self._options)
        return [Task(number, seed, Setting(FIXED_RATIO, ratio=ratio)) for seed in seeds]

    def _note(self, search: RatioSearch, number: int, ratio: float) -> bool:
        """Enter the mean harm of a ratio into a search; False when a run is missing."""
        over = self._mean(number, ratio, "over")
        if not math.isnan(over):
            search.note(ratio, over)
        return not math.isnan(over)


def _result(
    options: SimulationOptions, plan: Plan, number: int, best: Mapping[int, float], runner: Runner
) -> SourceResult:
    source = plan.sources[number]
    rows: list[Row] = []
    series: dict[Setting, list[FleetSeries]] = {}
    shown = {setting: setting for setting in options.settings}
    if number in best:
        shown[Setting(BEST_RATIO, ratio=best[number])] = Setting(FIXED_RATIO, ratio=best[number])
    for setting, simulated in shown.items():
        for seed in seeds_of(source, options):
            outcome = runner.outcomes.get(Task(number, seed, simulated))
            hosts = runner.outcomes.get(Task(number, seed, simulated, find_hosts=True))
            if outcome is not None and outcome.figures is not None and outcome.series is not None:
                rows.append(row_of(setting, seed, outcome.figures, None if hosts is None else hosts.hosts_needed))
                series.setdefault(setting, []).append(outcome.series)
    comparison = Comparison(source.name, summaries_of(rows), options.harm, memory=options.publish_memory)
    return SourceResult(comparison, rows, series, plan.simulation.slice_s, plan.simulation.warm_up_s)


# --- after the runs -----------------------------------------------------------------------------------


def _write(options: SimulationOptions, sources: Sequence[Source], results: Sequence[SourceResult]) -> None:
    """Write all files, or none."""
    if options.save_workload is not None:
        _save_workload(options, sources)
    if options.output is None:
        return
    with ProgressBar().busy("drawing"), staged() as files:
        _stage(files, options.output, results)


def _stage(files: Staged, folder: Path, results: Sequence[SourceResult]) -> None:
    from .report import pictures_of, render_report

    pictures = []
    for i, result in enumerate(results):
        suffix = f"-{result.comparison.name}" if i else ""
        files.write(folder / f"simulation{suffix}.csv", table_csv(result.rows).encode())
        own = pictures_of(result)
        pictures.append(own)
        for name, png in own.items():
            files.write(folder / f"{name}{suffix}.png", png)
    files.write(folder / "report.html", render_report(results, pictures).encode())


def _save_workload(options: SimulationOptions, sources: Sequence[Source]) -> None:
    seeds = seeds_of(sources[0], options)
    try:
        write_workload(options.save_workload or "", sources[0].workload(seeds[0]))
    except WorkloadError as error:
        raise UsageError(f"--save-workload: {error}") from None


def _print(options: SimulationOptions, results: Sequence[SourceResult]) -> None:
    comparisons = [result.comparison for result in results]
    if options.json:
        print_json({"harm": options.harm, "workloads": [one.as_json() for one in comparisons]})
        return
    print_comparisons(comparisons)
    if options.output is not None:
        print(printable(str(options.output / "report.html")))


def _report(line: str) -> None:
    print(f"simulate.py: {line}", file=sys.stderr)
