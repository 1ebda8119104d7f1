"""The offline mode: reads a trace, writes dumps, summary and report, prints the answer."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from ..cli.model_options import chosen_detectors, model_settings
from ..cli.progress import ProgressBar
from ..common.atomic_files import Staged, staged
from ..common.errors import UsageError
from ..common.text import printable
from ..estimates import NodeEstimate
from ..slices import Slice
from .options import ReplayOptions
from .presentation import log_scope
from .replay import Replay, SliceSubscriber, dump_name
from .results import Results, replay_results
from .scoring import summary_csv
from .tables import print_json, print_results
from .trace import Trace, TraceError, read_trace

LOG = logging.getLogger("scroogevm")

#: From this level of debugging on pictures of the tiers are written.
_DEBUG_TIERS = 2


def run(options: ReplayOptions) -> int:
    """Replay one trace.

    Raises
    ------
    UsageError
        When trace, strategies or output are not usable; nothing is written then.
    """
    bar = ProgressBar()
    trace_name = printable(Path(options.trace).stem)
    try:
        with bar.busy(f"reading {printable(Path(options.trace).name)}"):
            trace = read_trace(options.trace)
    except TraceError as error:
        raise UsageError(str(error)) from None
    node_name = options.node_name or trace.config.node_name
    _warn_of_gaps(trace)
    settings = model_settings(options.model, options.strategies, trace.config.historical)
    replay = Replay(trace, settings, chosen_detectors(options.model))
    # Most records would be dropped after they are made: at 28 days of hourly scopes a twentieth of the replay.
    loggers = [_scope_logger(node_name, trace.config.positions)] if options.debug else []
    if _writes_dumps(options):
        histories = replay.run(*loggers, progress=bar.track).histories()
    else:
        # What a dump holds beside them takes an eighth of the time.
        histories = replay.run_for_histories(*loggers, progress=bar.track)
    results = replay_results(trace_name, node_name, replay, histories)
    with bar.busy("writing"):
        _write(options, replay, results)
    _print(options, results)
    return 0


def _writes_dumps(options: ReplayOptions) -> bool:
    """Whether a dump, or a picture of what it holds, is written."""
    return options.output is not None or len(options.strategies) == 1 or options.debug >= _DEBUG_TIERS


def _print(options: ReplayOptions, results: Results) -> None:
    if options.json:
        print_json(results, options.target_risks)
        return
    print_results(results, options.target_risks)
    if options.report and options.output is not None:
        print(f"\n{printable(str(options.output / 'report.html'))}")


def output_folder(output: str) -> Path:
    """The folder of the results, which need not exist yet.

    Raises
    ------
    UsageError
        When the path is not that of a folder.
    """
    folder = Path(output)
    try:
        if not output or (folder.exists() and not folder.is_dir()):
            raise UsageError(f"--output: {output!r} is not a folder")
    except OSError as error:
        raise UsageError(f"--output: {printable(output)}: {error.strerror}") from None
    return folder


def _warn_of_gaps(trace: Trace) -> None:
    """Positions are counted slice by slice, so a slice missing from the trace shifts those after it."""
    for k, (before, end_s) in enumerate(itertools.pairwise(trace.epoch), 1):
        if abs(end_s - before - trace.config.slice_scope) > 1e-3 * trace.config.slice_scope:
            LOG.warning(
                "epoch[%d] is %g s after the slice before, not %g: positions count slices as if there were no gap",
                *(k, end_s - before, trace.config.slice_scope),
            )
            return


def node_of(text: str) -> str:
    """The node name in ``--url``: a URL, or the only entry of a JSON list.

    Raises
    ------
    UsageError
        When it is neither.
    """
    # Imports the parsers of addresses.
    from ..common.targets import is_url

    if is_url(text):
        return text
    try:
        nodes = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError("--url: is neither an http(s) URL nor JSON") from None
    if not isinstance(nodes, list) or not nodes or not all(isinstance(node, str) and node for node in nodes):
        raise UsageError('--url: not a list of URLs such as ["http://node:9100/metrics"]')
    if len(nodes) > 1:
        raise UsageError(f"--url: {len(nodes)} nodes, but a trace is of one")
    return str(nodes[0])


def _scope_logger(node_name: str, positions: int) -> SliceSubscriber:
    """A subscriber that logs a line per strategy at the end of each scope."""
    slices = 0

    def log(finished: Slice, estimate: NodeEstimate) -> None:
        nonlocal slices
        slices += 1
        if slices % positions == 0:
            log_scope(LOG, node_name, slices // positions, finished, estimate)

    return log


def _write(options: ReplayOptions, replay: Replay, results: Results) -> None:
    """Write all files of the replay, or none."""
    target = options.output or Path()
    names = results.node_name, options.model.stability
    dumps = replay.dumps_in_pieces(*names)
    with _created(target), staged() as files:
        if options.output is not None:
            if options.compact:
                files.write_pieces(target / "dump-all.json", replay.compact_dump(*names))
            else:
                for strategy, pieces in dumps:
                    files.write_pieces(target / f"dump-{strategy}.json", pieces)
            files.write(target / "summary.csv", summary_csv(results.scores).encode())
        elif len(replay.settings.strategies) == 1:
            for _, pieces in dumps:
                files.write_pieces(Path(dump_name(results.node_name, replay.settings)), pieces)
        if options.report:
            _write_report(files, target, results, options)
        if options.debug >= _DEBUG_TIERS:
            _write_tiers(files, target, replay, results.node_name)


@contextlib.contextmanager
def _created(folder: Path) -> Iterator[None]:
    """The folder exists within the block; if the block fails, the folders created for it are removed."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        if isinstance(error, OSError):
            place = printable(str(error.filename or folder))
            raise UsageError(f"{place}: {error.strerror}; nothing was written") from None
        raise


def _write_report(files: Staged, target: Path, results: Results, options: ReplayOptions) -> None:
    # jinja2 takes a tenth of a second to import.
    from .report import render_report

    files.write(target / "report.html", render_report(results, options.target_risks).encode())


def _write_tiers(files: Staged, target: Path, replay: Replay, node_name: str) -> None:
    # matplotlib takes half a second to import.
    from .figures import tiers_png

    for strategy in replay.settings.strategies:
        files.write(target / f"tiers-{strategy}.png", tiers_png(replay.recorder, strategy, node_name))
