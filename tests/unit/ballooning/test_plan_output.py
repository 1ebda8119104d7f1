"""The output of a dry run."""

from __future__ import annotations

import errno
import io
import math

from model.ballooning.plan_output import PlanOutput, PlanPrinter, plan_json, plan_lines
from model.ballooning.sessions import Action
from tests.conftest import strict_json

ACTIONS = [
    Action("squeeze", "a", "u1", 4096.0, 3891.5, "3000 MB to gain"),
    Action("skip", "b\x1b[2J", "u2", math.nan, math.nan, "excluded by name"),
]


def test_text_has_a_line_per_vm_without_control_characters() -> None:
    squeeze, skip = plan_lines("h", ACTIONS)
    assert squeeze == "h  a  squeeze  4096 -> 3892 MB  3000 MB to gain"
    assert skip.startswith("h  b")
    assert skip.endswith("  skip  excluded by name")
    assert skip.isprintable()


def test_json_has_a_line_per_vm_with_null_for_unchanged_sizes() -> None:
    squeeze, skip = (strict_json(line) for line in plan_json("h", ACTIONS))
    assert squeeze == {
        **{"host": "h", "vm": "a", "action": "squeeze", "from_mb": 4096.0, "to_mb": 3891.5},
        "reason": "3000 MB to gain",
    }
    assert (skip["vm"], skip["from_mb"], skip["to_mb"]) == ("b\x1b[2J", None, None)


def test_unwritable_stream_is_reported_once_and_not_written_again() -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    calls: list[str] = []
    output = PlanOutput(Full(), lambda: calls.append("stop"), as_json=False)
    printer = PlanPrinter("h", output)
    printer.apply(ACTIONS, {})
    printer.apply(ACTIONS, {})
    assert calls == ["stop"]
    assert output.failure is not None
    assert output.failure.errno == errno.ENOSPC
