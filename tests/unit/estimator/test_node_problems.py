"""What is logged about nodes that fail."""

from __future__ import annotations

import pytest

from model.estimator.node_problems import NodeProblems

NODES = [f"n{i}" for i in range(20)]


def errors(failed: list[str], error: str = "no connection") -> dict[str, str]:
    return {node: error if node in failed else "" for node in NODES}


def lines(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records]


def test_store_is_reported_when_all_nodes_that_were_tried_failed(event_log: pytest.LogCaptureFixture) -> None:
    problems = NodeProblems(at_once=8)
    problems.report_failures(errors(NODES[:7]), NODES[7:])
    assert lines(event_log) == [], "too few nodes were tried"
    problems.report_failures(errors(NODES[:8]), NODES[8:])
    problems.report_failures(errors(NODES), [])
    assert lines(event_log) == ["store: no connection"]
    problems.report_failures(errors([]), [])
    assert lines(event_log) == ["store: no connection", "store: recovered"]


def test_single_nodes_are_reported_when_all_were_tried(event_log: pytest.LogCaptureFixture) -> None:
    problems = NodeProblems(at_once=8)
    problems.report_failures(errors(NODES[:9]), NODES[10:])  # one node was read
    assert lines(event_log) == []
    problems.report_failures(errors(NODES[:2]), [])
    problems.report_failures(errors(NODES[:1], "refused"), [])
    assert lines(event_log) == ["n0: no connection", "n1: no connection", "n0: refused", "n1: recovered"]
