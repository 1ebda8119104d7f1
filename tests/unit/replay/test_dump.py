"""What a dump holds of each slice."""

from __future__ import annotations

import numpy as np
import pytest

from model.estimates import NodeEstimate
from model.nodemodel import ModelSettings, NodeModel
from model.replay.dump import DumpRecorder, slice_figures
from model.slices import Slice, usage_of

STRATEGIES = ("percentile", "borg")


def random_slices(number: int) -> list[Slice]:
    """Slices whose nodes and VMs have samples of unequal number; VMs come and go, some have no samples."""
    draw = np.random.default_rng(number)

    def samples(most: float) -> list[float]:
        values = draw.uniform(0, most, draw.integers(0, 9))
        return np.where(draw.random(values.size) < 0.1, np.nan, values).tolist()

    slices = []
    for k in range(number):
        names = tuple(f"vm{i}" for i in range(8) if draw.random() < 0.7)
        cpu, mem = (
            usage_of(
                config,
                np.array(samples(config)),
                [config / 8] * len(names),
                [np.array(samples(config / 8)) for _ in names],
            )
            for config in (16.0, 65536.0)
        )
        slices.append(Slice(3600.0 * (k + 1), 0, names, cpu, mem))
    return slices


@pytest.mark.parametrize("at_once", [0, 40, 10**6])
def test_slices_that_are_summarised_together_have_the_figures_of_each(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.replay.dump._SUMMARISED_AT_ONCE", at_once)
    slices = random_slices(50)
    names = sorted({name for one in slices for name in one.vms})
    model = NodeModel(ModelSettings(1, STRATEGIES))
    together, single = DumpRecorder(STRATEGIES, names), DumpRecorder(STRATEGIES, names)
    estimates: list[NodeEstimate] = [model.update(one) for one in slices]
    for one, estimate in zip(slices, estimates, strict=True):
        together.record(one, estimate)
        single.add(slice_figures(one, estimate))
    assert together.epoch == single.epoch
    # Before a dump asks for what waits.
    for resource, history in together.histories(1).items():
        np.testing.assert_array_equal(history.peak, single.histories(1)[resource].peak)
    assert together.encode_compact({}) == single.encode_compact({})
    assert list(together.encode({})) == list(single.encode({}))
