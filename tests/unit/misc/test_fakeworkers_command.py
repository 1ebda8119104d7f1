"""The command line of the simulated workers."""

from __future__ import annotations

import pytest

pytest.importorskip("aiohttp")

from misc.fakeworkers import command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port=70000"], "--port"),
        (["--workers=0"], "--workers"),
        (["--fault=0:nonsense"], "nonsense"),
        (["--fault=2:slow", "--workers=2"], "worker: 2"),
        (["--fault=slow"], "worker"),
        (["--format=xml"], "--format"),
        (["--cores=-1"], "--cores"),
        (["--fault=0:contention"], "--cores"),
        (["--fault=0:quota", "--vms=0"], "no VM for quota"),
        (["--host=192.0.2.1", "--port=0"], "192.0.2.1"),
    ],
)
def test_invalid_option_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main([*arguments, "--duration=0"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
