"""Starts and ends ScroogeVM's daemons of a checkout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: A "virtual day" takes minutes.
SLICES_OF_DAY = 24

_LOGIN = {
    "OS_AUTH_URL": "http://127.0.0.1:5000/v3",
    "OS_USERNAME": "scroogevm",
    "OS_PASSWORD": "scroogevm",
    "OS_PROJECT_NAME": "service",
}


class Daemons:
    """``vmaggreg.py`` and ``scroogevm.py`` in a folder, with the settings of its ``.env``.

    Parameters
    ----------
    checkout, folder : Path
    """

    def __init__(self, checkout: Path, folder: Path) -> None:
        self._checkout, self._folder = checkout, folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def configure(
        self, stubs: Sequence[Mapping[str, str]], providers: Any, slice_s: int, more: Mapping[str, Any]
    ) -> None:
        """Write the settings.

        Parameters
        ----------
        stubs : sequence
            ``AGGREG_STUB_LIST``.
        providers : str or mapping
            ``PLACEMENT_PROVIDERS``; empty for none: nothing is published to Placement.
        slice_s : int
        more : mapping
            Further settings, which go before the others.
        """
        settings = {
            "AGGREG_STUB_LIST": stubs,
            "AGGREG_FETCH_DELAY": 0.5,
            "SCHED_SCOPE_S": SLICES_OF_DAY * slice_s,
            "SCHED_SCOPE_SLICE_S": slice_s,
            "SCHED_SCOPE_INIT_FETCH_PREVIOUS": 0,
            "SCHED_SETTLE_S": 1,
            "SCHED_CONTENTION_CHECK_S": 5,
            "STATE_ENDPOINT": self._folder / "status.json",
            **({"PLACEMENT_PROVIDERS": providers, **_LOGIN} if providers else {}),
            **more,
        }
        lines = [f"{name}='{json.dumps(v) if isinstance(v, (list, dict)) else v}'\n" for name, v in settings.items()]
        (self._folder / ".env").write_text("".join(lines))

    def start(self, program: str) -> None:
        """Start ``vmaggreg`` or ``scroogevm``; its output goes to a log in the folder."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OS_", "SCHED_", "AGGREG_"))}
        with (self._folder / f"{program}.log").open("ab") as log:
            self._processes[program] = subprocess.Popen(
                [self._checkout / ".venv/bin/python", self._checkout / f"{program}.py"],
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop(self, program: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End a daemon."""
        process = self._processes.pop(program)
        process.send_signal(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)

    def stop_all(self) -> None:
        """End what still runs."""
        for program in list(self._processes):
            self.stop(program)

    def published(self) -> dict[str, Any]:
        """The status file; empty before there is one."""
        path = self._folder / "status.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}
