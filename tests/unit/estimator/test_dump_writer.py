"""Dumps of a live run."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.estimator.configuration import RunConfiguration
from model.estimator.dump_writer import DumpWriter
from model.estimator.options import EstimatorOptions
from model.replay.dump import read_dumps
from model.store.sqlite import SqliteStore
from tests.unit.estimator.support import DETECTORS, FIRST, NODES, SLICE_S, LiveRun, settings_for


def test_corrupt_figures_cost_the_dump_of_their_node_alone(
    stored: SqliteStore, tmp_path: Path, event_log: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "dumps"
    settings = settings_for(tmp_path)
    live = LiveRun(settings, stored, ["percentile"], recorded=True)
    options = EstimatorOptions(NODES, folder, debug=1, once=False, model={})
    configuration = RunConfiguration(settings, live.model, DETECTORS)
    dump = DumpWriter(options, configuration, live.checkpoints)
    live.on_slice = dump.on_slice
    live.wake(FIRST + 1)
    live.checkpoints._database.connection.execute("UPDATE figures SET data = x'93c0' WHERE name = ?", (NODES[1],))
    assert live.wake(FIRST + 2)[1].slice_end_s == (FIRST + 3) * SLICE_S
    dump.write_all()
    live.stop()
    (path,) = folder.iterdir()
    assert [len(dump.epoch) for dump in read_dumps(path)] == [3]
    (line,) = [record.getMessage() for record in event_log.records if "dump" in record.getMessage()]
    assert line.startswith(f"dump of {NODES[1]}: cannot be written: ")
