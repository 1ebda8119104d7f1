"""When statuses are published, to which publishers, and what is logged about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.estimator.node_worker import Progress
from model.estimator.publish_policy import PublishPolicy
from model.publishers.prometheus import EstimatorCounts
from model.publishers.status_file import StatusFile, read_status
from model.status import NodeStatus
from tests.unit.estimator.support import NODES, Clock, FakePublisher, settings_for


class Publishing:
    """A policy with two publishers, and statuses that are new with each slice."""

    def __init__(self) -> None:
        self.monotonic, self.counts = Clock(), EstimatorCounts()
        self.first, self.second = FakePublisher(), FakePublisher()
        publishers = {"first": self.first, "second": self.second}
        self.policy = PublishPolicy(publishers, self.counts, self.monotonic)

    def publish(self, number: int, after_s: float = 5.0, busy: bool = False, at_once: bool = False) -> bool:
        self.monotonic.now_s += after_s
        status = NodeStatus(NODES[0], "borg", slice_end_s=float(number))
        progress = [Progress(number, status)]
        return self.policy.publish_if_changed(progress, [status], number + 0.5, busy=busy, at_once=at_once)


def test_only_changes_are_published() -> None:
    publishing = Publishing()
    assert [publishing.publish(number) for number in (1, 1, 2)] == [True, False, True]
    assert publishing.first.published == publishing.second.published == [[1.0], [2.0]]
    assert (publishing.counts.publications, publishing.counts.lateness_s) == (4, 2.5)


def test_changes_are_bundled_for_a_second_while_nodes_are_computed() -> None:
    publishing = Publishing()
    assert publishing.publish(1)
    assert not publishing.publish(2, after_s=0.4, busy=True)
    assert publishing.publish(3, after_s=0.7, busy=True)
    assert publishing.counts.lateness_s == 1.5, "nodes are still being computed"
    assert publishing.publish(4, after_s=0.1)
    assert publishing.publish(5, after_s=0.1, busy=True, at_once=True)
    assert publishing.first.published == [[1.0], [3.0], [4.0], [5.0]]


def test_failed_publisher_alone_is_retried(event_log: pytest.LogCaptureFixture) -> None:
    publishing = Publishing()
    publishing.first.failing = True
    assert publishing.publish(1)
    assert not publishing.publish(1, after_s=0.5)
    assert publishing.publish(1)
    publishing.first.failing = False
    assert publishing.publish(1)
    assert not publishing.publish(1)
    assert publishing.first.published == publishing.second.published == [[1.0]]
    assert (publishing.counts.publications, publishing.counts.publication_failures) == (2, 2)
    assert [record.getMessage() for record in event_log.records] == [
        "first: cannot be written: No space left on device",
        "first: recovered",
    ]


def test_status_file_that_cannot_be_written_is_logged_once_and_written_when_possible(
    tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(tmp_path)
    publishing = Publishing()
    publishing.policy = PublishPolicy(
        {"status file": StatusFile(settings.status, 90)}, publishing.counts, publishing.monotonic
    )
    settings.status.path.mkdir()
    for number in range(3):
        publishing.publish(number)
    settings.status.path.rmdir()
    publishing.publish(3)
    assert [record.getMessage() for record in event_log.records] == [
        "status file: cannot be written: Not a regular file",
        "status file: recovered",
    ]
    assert read_status(settings.status.path).keys() == {NODES[0]}
    assert settings.status.path.stat().st_mode & 0o777 == 0o640
