"""What a fault gets and gives: the request with the regular page, and responses in the exposition format."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from aiohttp import web

from misc.fakeworkers.lies import Liar

EXPOSITION = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}


@dataclass(slots=True)
class Fault:
    """A fault that replaces the pages of a worker.

    Attributes
    ----------
    name : str
        Key of ``ANSWERS``.
    delay_s : float
        Of the fault ``slow``.
    until_s : float or None
        When it ends, Unix seconds.
    left : int or None
        For how many more requests it lasts.
    held : dict of str to bytes
        Pages of the fault ``stale`` by endpoint.
    liar : Liar or None
        Changes the pages, if the fault is a lie.
    """

    name: str
    delay_s: float
    until_s: float | None
    left: int | None
    held: dict[str, bytes]
    liar: Liar | None = None


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A request that gets a fault; ``page`` is the regular page, ``random`` depends on worker and time."""

    http: web.Request
    fault: Fault
    page: bytes
    random: np.random.Generator

    @property
    def endpoint(self) -> str:
        """Which of the pages of the worker is requested."""
        return self.http.match_info["endpoint"]


def page_response(body: bytes) -> web.Response:
    """Build the HTTP response with a page."""
    return web.Response(body=body, headers=EXPOSITION)
