"""Stores, and the statuses of an undisturbed run that many tests compare with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from model.status import NodeStatus
from model.store.sqlite import SqliteStore
from tests.unit.estimator.support import NODES, STORED, LiveRun, fill, settings_for


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """An empty store."""
    made = SqliteStore(tmp_path / "store.sqlite", 86400)
    yield made
    made.close()


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteStore]:
    """A store with the slices :data:`STORED` of all nodes; read-only by convention."""
    made = SqliteStore(tmp_path_factory.mktemp("stored") / "store.sqlite", 86400)
    fill(made, NODES, STORED)
    yield made
    made.close()


@pytest.fixture(scope="session")
def steady(stored: SqliteStore, tmp_path_factory: pytest.TempPathFactory) -> list[list[NodeStatus]]:
    """What a run with every strategy publishes after each slice of :data:`STORED`."""
    return LiveRun(settings_for(tmp_path_factory.mktemp("steady")), stored).play(STORED)
