"""Logs the problems of nodes: one line when one begins, one when it is over, one for all nodes when the store fails."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from ..common.logs import ProblemLog
from ..status import NodeStatus
from .node_worker import format_utc

LOG = logging.getLogger("scroogevm.estimator")


class NodeProblems:
    """Logs failures and missing samples.

    Parameters
    ----------
    at_once : int
        Nodes that are computed at the same time.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._problems = ProblemLog(LOG)

    def report_failures(self, errors: Mapping[str, str], running: Iterable[str]) -> None:
        """Log which nodes failed and which recovered.

        Parameters
        ----------
        errors : mapping of node to str
            Of all nodes; empty for a node without an error.
        running : iterable of str
            Nodes that are being computed or wait for a thread.
        """
        running = set(running)
        failed = {node: error for node, error in errors.items() if error}
        untried = sum(not errors[node] for node in running)
        # While the store is away some node is always being read, so that the end of all reads is not waited for.
        if len(failed) >= min(self._at_once, len(errors)) and len(failed) + untried == len(errors):
            self._problems.report("store", next(iter(failed.values())))
            return
        if running:
            return
        self._problems.resolve("store")
        for node in errors:
            if node in failed:
                self._problems.report(node, failed[node])
            else:
                self._problems.resolve(node)

    def report_missing_samples(self, statuses: Sequence[NodeStatus], errors: Mapping[str, str]) -> None:
        """Log which nodes have no samples in the due slice although the store could be read."""
        for status in statuses:
            subject = f"samples of {status.node}"
            if status.state == "ok":
                self._problems.resolve(subject)
            elif not errors[status.node]:
                self._problems.report(subject, f"{_cause(status)}, published free is 0")


def _cause(status: NodeStatus) -> str:
    reasons = [reason for reason in (status.cpu.reason, status.mem.reason) if reason]
    if status.state == "unknown" and not reasons:
        return "none stored yet"
    return f"{reasons[0] if reasons else 'none'} in the slice that ended at {format_utc(status.slice_end_s)}"
