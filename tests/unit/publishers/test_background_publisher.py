"""Publication in the background."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from model.publishers.base import BackgroundPublisher
from model.status import NodeStatus

STATUSES = [NodeStatus(name, "borg") for name in "abc"]


def test_latest_status_is_published_and_older_ones_are_dropped() -> None:
    started, release = threading.Event(), threading.Event()
    published: list[str] = []

    def work(statuses: Sequence[NodeStatus]) -> None:
        published.append(statuses[0].node)
        started.set()
        release.wait(30)

    publisher = BackgroundPublisher(work)
    publisher.publish(STATUSES[:1])
    assert started.wait(30)
    # The first publication is in progress: neither of these blocks.
    publisher.publish(STATUSES[1:2])
    publisher.publish(STATUSES[2:])
    release.set()
    publisher.close(30)
    assert published == ["a", "c"]


def test_close_does_not_wait_for_a_publication_that_hangs() -> None:
    started, release = threading.Event(), threading.Event()

    def work(_statuses: Sequence[NodeStatus]) -> None:
        started.set()
        release.wait(30)

    publisher = BackgroundPublisher(work)
    publisher.publish(STATUSES)
    assert started.wait(30)
    publisher.close(0.01)
    release.set()


def test_constructor_starts_no_thread() -> None:
    before = threading.active_count()
    publisher = BackgroundPublisher(print)
    assert threading.active_count() == before
    publisher.close(1)
