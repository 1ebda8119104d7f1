"""The offline mode: a trace in; dumps, a summary, a report and a table out."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from ..cli.model_options import ModelOptions, chosen_detectors, given_model_options, model_settings, strategies_of
from ..cli.progress import ProgressBar
from ..common.atomic_files import Staged, staged
from ..common.errors import UsageError
from ..common.text import printable
from ..nodemodel import NodeEstimate
from ..slices import Slice
from .presentation import log_scope
from .replay import Replay, dump_name
from .results import replay_results
from .scoring import summary_csv
from .tables import print_scores
from .trace import Trace, TraceError, read_trace

LOG = logging.getLogger("scroogevm")


def run(args: argparse.Namespace) -> int:
    """Replay the trace that the command line names.

    Raises
    ------
    UsageError
        When trace, strategies or output can't be used; nothing has been written then.
    """
    options = ModelOptions(**given_model_options(args))
    strategies = strategies_of(options, "all")
    named = None if args.url is None else node_of(args.url)
    folder = None if args.output is None else _folder(args.output)
    bar = ProgressBar()
    try:
        with bar.busy(f"reading {Path(args.load).name}"):
            trace = read_trace(args.load)
    except TraceError as error:
        raise UsageError(str(error)) from None
    node_name = named or trace.config.node_name
    _warn_of_jumps(trace)
    settings = model_settings(options, strategies, trace.config.historical)
    replay = Replay(trace, settings, chosen_detectors(options))
    replay.run(progress=bar.track, on_slice=_scope_logger(node_name, trace.config.positions))
    with bar.busy("writing"):
        _write(args, options, folder, replay, node_name)
    print_scores(replay.scores(), options.risk)
    return 0


def _folder(output: str) -> Path:
    """Where the results go, there already or not."""
    folder = Path(output)
    try:
        if not output or (folder.exists() and not folder.is_dir()):
            raise UsageError(f"--output: {output!r} is not a folder")
    except OSError as error:
        raise UsageError(f"--output: {printable(output)}: {error.strerror}") from None
    return folder


def _warn_of_jumps(trace: Trace) -> None:
    """Positions are counted, slice by slice: a trace that leaves slices out has others than its node had."""
    for k, (before, end_s) in enumerate(itertools.pairwise(trace.epoch), 1):
        if abs(end_s - before - trace.config.slice_scope) > 1e-3 * trace.config.slice_scope:
            LOG.warning(
                "epoch[%d] is %g s after the slice before, not %g: positions count slices as if there were no gap",
                *(k, end_s - before, trace.config.slice_scope),
            )
            return


def node_of(text: str) -> str:
    """The node that ``--url`` names for a replay: a list of one, or of none to choose from."""
    try:
        nodes = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError("--url: is not JSON") from None
    if not isinstance(nodes, list) or not nodes or not all(isinstance(node, str) and node for node in nodes):
        raise UsageError('--url: not a list of URLs such as ["http://node:9100/metrics"]')
    if len(nodes) > 1:
        raise UsageError(f"--url: {len(nodes)} nodes, but a trace is of one")
    return str(nodes[0])


def _scope_logger(node_name: str, positions: int) -> Callable[[Slice, NodeEstimate], None]:
    """Logs a line per strategy at the end of each scope."""
    slices = 0

    def log(finished: Slice, estimate: NodeEstimate) -> None:
        nonlocal slices
        slices += 1
        if slices % positions == 0:
            log_scope(LOG, node_name, slices // positions, finished, estimate)

    return log


def _write(
    args: argparse.Namespace, options: ModelOptions, folder: Path | None, replay: Replay, node_name: str
) -> None:
    """Everything that was asked for appears, or nothing."""
    target = folder or Path()
    with _made(target), staged() as files:
        if folder is not None:
            for strategy, text in replay.dumps(node_name, options.stability):
                files.write(folder / f"dump-{strategy}.json", text)
            files.write(folder / "summary.csv", summary_csv(replay.scores()).encode())
        elif len(replay.settings.strategies) == 1:
            for _, text in replay.dumps(node_name, options.stability):
                files.write(Path(dump_name(node_name, replay.settings)), text)
        _write_pictures(files, args, options, target, replay, node_name)


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A folder for what is written in the block; when that fails, the folders that were made for it go again."""
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


def _write_pictures(
    files: Staged, args: argparse.Namespace, options: ModelOptions, target: Path, replay: Replay, node_name: str
) -> None:
    if args.report:
        # matplotlib is half a second that nobody should wait for who asked for no picture.
        from .report import render_report

        results = replay_results(Path(args.load).stem, node_name, replay)
        files.write(target / "report.html", render_report(results, options.risk).encode())
    if args.debug >= 2:
        from .figures import tiers_png

        for strategy in replay.settings.strategies:
            files.write(target / f"tiers-{strategy}.png", tiers_png(replay.recorder, strategy, node_name))
