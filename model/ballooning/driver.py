"""Runs host controllers in threads until they are stopped or done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from ..common.threads import start_thread
from .host_controller import END_S, HostController


def run_controllers(
    controllers: Sequence[HostController],
    stop: threading.Event,
    *,
    once: bool,
    beat: Callable[[], object] = lambda: None,
) -> bool:
    """Run each controller in a thread of its own until stopped, or with ``once`` until it is done.

    Parameters
    ----------
    controllers : sequence of HostController
    stop : threading.Event
        May be set by a signal handler of the calling thread.
    once : bool
    beat : callable
        Called several times a second while the controllers run.

    Returns
    -------
    bool
        False when a thread did not end in time.
    """
    threads = [
        start_thread(f"host {controller.name}", _run_controller, controller, stop, once) for controller in controllers
    ]
    # Not stop.wait(): it holds the event's lock for moments, and a signal handler that sets the event in such a moment
    # would wait forever for the thread that it interrupted.
    while any(thread.is_alive() for thread in threads) and not stop.is_set():
        beat()
        time.sleep(0.1)
    deadline = time.monotonic() + 2 * END_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def _run_controller(controller: HostController, stop: threading.Event, once: bool) -> None:
    while not stop.is_set():
        controller.step()
        if once and controller.is_done():
            break
        stop.wait(controller.pause_s())
    controller.end()
