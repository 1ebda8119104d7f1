"""The estimator's status page: what is published of every node and how it came to that, as plain HTML and SVG."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal
from urllib.parse import parse_qs, urlencode

import jinja2
import numpy as np

from ...numerics import FloatArray
from ...slices import CPU, MEMORY, RESOURCES, Resource
from ...status import NodeStatus
from .sparklines import DISPLAY, HEIGHT, STEP, WIDTH, Sparkline, draw_sparkline

LOG = logging.getLogger("scroogevm.estimator")

#: How many slices a picture shows.
KEPT = 96

NODES_PER_PAGE = 200

_REFRESH_S = 10

_LONGEST_FILTER = 200

#: Cores or MB; no machine has as much.
LARGEST_SHOWN = 1e15

#: Columns of a course: the end of a slice, then free, booked and config of each resource.
_COLUMNS = {CPU: slice(1, 4), MEMORY: slice(4, 7)}

PageState = Literal["ok", "stale", "unknown", "outdated"]

_STATES: tuple[PageState, ...] = ("ok", "stale", "unknown", "outdated")

# --- what is drawn -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Query:
    """What of it a reader wants to see.

    Attributes
    ----------
    node : str
        Part of a name, in small letters.
    state : str
        One of the states, or empty for all.
    page : int
        From 1.
    refresh : bool
        Whether the page comes anew by itself.
    """

    node: str = ""
    state: str = ""
    page: int = 1
    refresh: bool = True

    @classmethod
    def parsed(cls, text: str) -> Query:
        """Of the query in a URL; what makes no sense is left out."""
        given = {key: values[-1] for key, values in parse_qs(text, max_num_fields=None, errors="replace").items()}
        page = given.get("page", "")
        return cls(
            node=given.get("node", "").strip().lower()[:_LONGEST_FILTER],
            state=given["state"] if given.get("state") in _STATES else "",
            page=max(1, int(page)) if page.isascii() and page.isdigit() and len(page) < 7 else 1,
            refresh=given.get("refresh") != "0",
        )

    def link(self, **changed: str | int) -> str:
        """A URL of the same page with something changed."""
        words = {"node": self.node, "state": self.state, "page": self.page, "refresh": "" if self.refresh else "0"}
        words |= changed
        return "./?" + urlencode({key: value for key, value in words.items() if value not in {"", 1}})


@dataclass(frozen=True, slots=True)
class _Row:
    """A node as it is shown."""

    status: NodeStatus
    state: PageState
    age: str
    pictures: Mapping[Resource, Sparkline]


class StatusPage:
    """Draws the page.

    Parameters
    ----------
    slice_s : float
        How long a slice is.
    valid_s : float
        For how long after the end of its slice what was published is good.
    kept : int
        How many slices are shown.
    """

    def __init__(self, slice_s: float, valid_s: float, kept: int = KEPT) -> None:
        self._slice_s = slice_s
        self._valid_s = valid_s
        self._kept = kept
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters |= {"figure": _figure, "ratio": _ratio}
        self._template = environment.from_string(_PAGE)

    def render(
        self, statuses: Sequence[NodeStatus], courses: Mapping[str, FloatArray], query: Query, now_s: float
    ) -> bytes:
        """The page, as HTML in UTF-8.

        Parameters
        ----------
        statuses : sequence of NodeStatus
        courses : mapping of node to (slices, 7) float64
            See :class:`History`.
        query : Query
        now_s : float
            Unix seconds.
        """
        states = [self._state(status, now_s) for status in statuses]
        chosen = [
            (status, state)
            for status, state in zip(statuses, states, strict=True)
            if query.node in status.node.lower() and query.state in {"", state}
        ]
        pages = max(1, -(-len(chosen) // NODES_PER_PAGE))
        page = min(query.page, pages)
        newest = max((course[-1, 0] for course in courses.values() if len(course)), default=math.nan)
        return self._template.render(
            rows=[
                _Row(
                    status,
                    state,
                    "-" if math.isnan(status.slice_end_s) else _time(max(0.0, now_s - status.slice_end_s)),
                    self._pictures(self._placed(courses.get(status.node), newest)),
                )
                for status, state in chosen[(page - 1) * NODES_PER_PAGE : page * NODES_PER_PAGE]
            ],
            totals=[(resource, *_total(resource, statuses)) for resource in RESOURCES],
            pictures=self._pictures(self._summed(courses.values(), newest)),
            states=[(state, states.count(state)) for state in _STATES],
            number=len(statuses),
            chosen=len(chosen),
            page=page,
            pages=pages,
            query=query,
            refresh_s=_REFRESH_S,
            moment=datetime.fromtimestamp(now_s, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
            slice=_time(self._slice_s),
            kept=self._kept,
            period=_time(self._kept * self._slice_s),
            quotient=_quotient,
            shown=DISPLAY,
            resources=RESOURCES,
            inner=STEP * self._kept,
            width=WIDTH,
            height=HEIGHT,
        ).encode()

    def _state(self, status: NodeStatus, now_s: float) -> PageState:
        # Who sees this sees a daemon that answers and does not estimate.
        return "outdated" if now_s > status.slice_end_s + self._valid_s else status.state

    def _placed(self, course: FloatArray | None, newest_s: float) -> FloatArray:
        """A course on the page's time: (kept, 7), NaN where there was no slice."""
        placed = np.full((self._kept, 7), np.nan)
        if course is not None and len(course):
            place = self._kept - 1 - np.rint((newest_s - course[:, 0]) / self._slice_s).astype(np.int64)
            placed[place[place >= 0]] = course[place >= 0]
        return placed

    def _summed(self, courses: Iterable[FloatArray], newest_s: float) -> FloatArray:
        """All courses together; NaN where there was nothing at all."""
        total, known = np.zeros((self._kept, 7)), np.zeros((self._kept, 7), dtype=bool)
        for course in courses:
            placed = self._placed(course, newest_s)
            there = ~np.isnan(placed)
            total[there] += placed[there]
            known |= there
        return np.where(known, total, np.nan)

    def _pictures(self, placed: FloatArray) -> dict[Resource, Sparkline]:
        return {resource: draw_sparkline(resource, *placed[:, _COLUMNS[resource]].T) for resource in RESOURCES}


def _total(resource: Resource, statuses: Sequence[NodeStatus]) -> tuple[float, float, float, float]:
    """Free, booked, config and ratio of all nodes together."""
    last = [figures for status in statuses if (figures := status.of(resource).last) is not None]
    free = sum(status.of(resource).free for status in statuses)
    booked, config = sum(figures.booked for figures in last), sum(figures.config for figures in last)
    return free, booked, config, _quotient(free + booked, config)


def _quotient(above: float, below: float) -> float:
    return above / below if below > 0 else math.nan


def _figure(value: float, resource: Resource) -> str:
    return f"{value / DISPLAY[resource][2]:.1f}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{round(seconds / size, 1):g} {unit}"
    return f"{math.floor(seconds)} s"


# --- the page ----------------------------------------------------------------------------------------

_PAGE = """\
{% macro course(picture) %}
<svg role="img" viewBox="0 0 {{ inner }} {{ height }}" preserveAspectRatio="none"
 width="{{ width }}" height="{{ height }}">
<title>{{ picture.words }}</title>
{% if picture.sold %}<path class="free" d="{{ picture.sold }}"/>
<path class="booked" d="{{ picture.booked }}"/>{% endif %}
{% if picture.config %}<path class="config" d="{{ picture.config }}"/>{% endif %}
</svg>
{%- endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{% if query.refresh %}<meta http-equiv="refresh" content="{{ refresh_s }}">{% endif %}

<title>ScroogeVM: what may be placed on each node</title>
<style>
:root { color-scheme: light dark; --text: #1d2329; --faint: #59636e; --ground: #fff; --line: #d5dae0; --band: #f4f6f8;
  --free: #7fbf9a; --booked: #4a6f93; --config: #1d2329; --ok: #17693a;
  --stale: #8a5300; --bad: #b3202a; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e3e7eb; --faint: #9aa5b1; --ground: #14181c; --line: #353d45; --band: #1c2227;
    --free: #3f8a60; --booked: #7fa6cc; --config: #e3e7eb; --ok: #6cc890;
    --stale: #e5ab4c; --bad: #ff8a85; --link: #7fb8f0; }
}
body { font: 14px/1.45 system-ui, sans-serif; color: var(--text); background: var(--ground); margin: 1.5rem; }
h1 { font-size: 1.35rem; margin: 0; }
p { margin: .3rem 0; }
a { color: var(--link); }
.faint, caption { color: var(--faint); }
.totals { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0; padding: 0; list-style: none; }
.totals li { border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .9rem; }
.totals b { font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.totals svg { display: block; margin-top: .4rem; width: 100%; }
nav, form { display: flex; flex-wrap: wrap; gap: .4rem .9rem; align-items: center; margin: .5rem 0; }
input, button { font: inherit; padding: .15rem .5rem; }
[aria-current] { font-weight: 700; color: var(--text); text-decoration: none; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
caption { text-align: left; padding: .3rem 0; }
caption span { display: inline-block; max-width: calc(100vw - 4rem); }
caption svg { vertical-align: -2px; margin-left: .6rem; }
th, td { padding: .2rem .4rem; text-align: right; vertical-align: top; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
thead th { border-bottom: 2px solid var(--line); font-weight: 600; vertical-align: bottom; }
thead th[scope=colgroup] { text-align: center; border-bottom: 1px solid var(--line); }
tbody tr { border-bottom: 1px solid var(--line); }
tbody tr:hover { background: var(--band); }
tbody th { font-weight: 500; text-align: left; white-space: normal; overflow-wrap: anywhere;
  min-width: 15.5rem; max-width: 26rem; }
.left { text-align: left; }
td small { display: block; color: var(--faint); }
.free { fill: var(--free); }
.booked { fill: var(--booked); }
.config { fill: none; stroke: var(--config); stroke-width: 1.2; stroke-dasharray: 4 2; }
svg { border-bottom: 1px solid var(--line); }
.state { font-weight: 600; }
.ok { color: var(--ok); }
.stale { color: var(--stale); }
.unknown, .outdated { color: var(--bad); }
summary { cursor: pointer; }
details tr, details tbody tr { border: 0; }
details td, tbody details th { padding: 0 .5rem 0 0; min-width: 0; white-space: nowrap; overflow-wrap: normal; }
</style>
</head>
<body>
<header>
<h1>What may be placed on each node</h1>
<p class="faint">{{ moment }} ·
{% if query.refresh %}
new every {{ refresh_s }} s, <a href="{{ query.link(refresh='0') }}">hold</a>
{% else %}
held, <a href="{{ query.link(refresh='') }}">go on</a>
{% endif %}
· <a href="status.json">status.json</a> · <a href="metrics">metrics</a></p>
<ul class="totals">
{% for resource, free, booked, config, ratio in totals %}
<li>{{ shown[resource][0] }}: <b>{{ free | figure(resource) }}</b> {{ shown[resource][1] }} free<br>
<span class="faint">{{ booked | figure(resource) }} booked of {{ config | figure(resource) }}, ratio
{{ ratio | ratio }}</span>
{{ course(pictures[resource]) }}</li>
{% endfor %}
</ul>
</header>
<nav aria-label="nodes by state">
<a href="{{ query.link(state='', page=1) }}"
{%- if not query.state %} aria-current="true"{% endif %}>{{ number }} nodes</a>
{% for state, count in states %}
{% if count or query.state == state %}
<a class="state {{ state }}" href="{{ query.link(state=state, page=1) }}"
{%- if query.state == state %} aria-current="true"{% endif %}>{{ count }} {{ state }}</a>
{% endif %}
{% endfor %}
</nav>
<form action="./" method="get">
<label>name holds <input type="search" name="node" value="{{ query.node }}" maxlength="200"></label>
{% if query.state %}<input type="hidden" name="state" value="{{ query.state }}">{% endif %}
{% if not query.refresh %}<input type="hidden" name="refresh" value="0">{% endif %}
<button>show</button>
{% if chosen != number %}<span class="faint">{{ chosen }} of {{ number }}</span>{% endif %}
</form>
<main class="wide">
<table>
<caption><span>The last {{ kept }} slices of {{ slice }}:
<svg width="12" height="12" aria-hidden="true"><path class="booked" d="M0 0H12V12H0Z"/></svg> booked,
<svg width="12" height="12" aria-hidden="true"><path class="free" d="M0 0H12V12H0Z"/></svg> free on top of it,
<svg width="18" height="12" aria-hidden="true"><path class="config" d="M0 6H18"/></svg> what the node has.
Ratio: (booked + free) / of.</span></caption>
<thead>
<tr><th rowspan="2" scope="col" class="left">node</th><th rowspan="2" scope="col" class="left">state</th>
{% for resource in resources %}
<th colspan="5" scope="colgroup">{{ shown[resource][0] }}, {{ shown[resource][1] }}</th>
{% endfor %}
<th rowspan="2" scope="col">age of<br>the slice</th><th rowspan="2" scope="col" class="left">strategy</th></tr>
<tr>{% for resource in resources %}<th scope="col">free</th><th scope="col">booked</th><th scope="col">of</th>
<th scope="col">ratio</th><th scope="col" class="left">last {{ period }}</th>{% endfor %}</tr>
</thead>
<tbody>
{% for row in rows %}
<tr><th scope="row">{{ row.status.node }}</th><td class="left state {{ row.state }}">{{ row.state }}</td>
{% for resource in resources %}
{% set said = row.status.of(resource) %}
<td>{{ said.free | figure(resource) }}
{%- if said.state == "stale" and said.last %}<small>last {{ said.last.free | figure(resource) }}</small>{% endif %}
{%- if said.state != row.status.state %} <small class="{{ said.state }}">{{ said.state }}</small>{% endif %}</td>
{% if said.last %}
<td>{{ said.last.booked | figure(resource) }}</td><td>{{ said.last.config | figure(resource) }}</td>
<td>{{ quotient(said.last.booked + said.free, said.last.config) | ratio }}</td>
{% else %}
<td>-</td><td>-</td><td>-</td>
{% endif %}
<td>{{ course(row.pictures[resource]) }}</td>
{% endfor %}
<td>{{ row.age }}</td><td class="left">
{%- set names = row.status.cpu.others or row.status.mem.others %}
{%- if names | length > 1 %}
<details><summary>{{ row.status.strategy }}</summary><table>
<tr><th scope="col">free</th>
{% for resource in resources %}<th scope="col">{{ shown[resource][0] }}</th>{% endfor %}</tr>
{% for name in names %}
<tr><th scope="row">{{ name }}</th>
{% for resource in resources %}
{% set others = row.status.of(resource).others %}
<td>{{ others[name] | figure(resource) if name in others else "-" }}</td>
{% endfor %}
</tr>
{% endfor %}
</table></details>
{%- else %}{{ row.status.strategy }}{% endif %}</td></tr>
{% else %}
<tr><th scope="row" colspan="14">{{ "no node fits" if number else "nothing is published yet" }}</th></tr>
{% endfor %}
</tbody>
</table>
</main>
{% if pages > 1 %}
<nav aria-label="pages">page
{% for k in range(1, pages + 1) %}
<a href="{{ query.link(page=k) }}"{% if k == page %} aria-current="page"{% endif %}>{{ k }}</a>
{% endfor %}
</nav>
{% endif %}
</body>
</html>
"""
