"""``report.html``: the scores and pictures of a replay on one page that needs no other file and no network."""

from __future__ import annotations

import base64

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from ..slices import RESOURCES
from . import figures
from .presentation import COLUMNS, TITLES, cell, verdict
from .results import Results
from .scoring import ranked

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ results.name }}: which strategy?</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; }
.node { color: #666; margin-top: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; }
th, td { padding: .25rem .7rem; text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; font-weight: 600; }
tbody tr:first-child { background: #e8f3ec; font-weight: 600; }
tbody tr:nth-child(n+2):hover { background: #f5f5f5; }
.over { color: #b00000; }
.wide { overflow-x: auto; }
img { max-width: 100%; height: auto; }
figure { margin: 1.5rem 0; }
figcaption { color: #444; }
</style>
</head>
<body>
<h1>{{ results.name }}</h1>
<p class="node">{{ results.node_name }}: {{ results.epoch | length }} slices, {{ results.strategies | length }}
strategies</p>
{% for resource, rows in tables %}
<h2>{{ titles[resource.name] }}</h2>
<p>{{ verdict(rows) }}</p>
<div class="wide"><table>
<thead><tr><th>strategy</th>{% for _, heading, _ in columns %}<th>{{ heading }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr><td>{{ row.strategy }}</td>{% for name, _, form in columns %}<td
{%- if name == "published_violation_frequency" and row[name] > risk %} class="over"{% endif %}>
{{- cell(row, name, form) }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endfor %}
<p>Mispredictions, violations and decreases are sums over the slices, in sizes of the node: 1 is one slice in
which the whole node was misjudged. <em>Published</em>: the figure that a scheduler was given at the end of a
slice against the slice that followed. <em>Replay</em>: the threshold of a slice against the next slice at the
same position.</p>
<h2>Pictures</h2>
{% for caption, picture in pictures %}
<figure><img alt="{{ caption }}" src="{{ picture }}"><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
</body>
</html>
"""


def render_report(results: Results, risk: float) -> str:
    """The page, as HTML.

    Parameters
    ----------
    results : Results
    risk : float
        In which share of the slices a promise may be broken; decides the order of the tables.
    """
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_PAGE)
    return template.render(
        results=results,
        risk=risk,
        titles=TITLES,
        tables=[
            (resource, ranked([row for row in results.scores if row.resource == resource.name], risk))
            for resource in RESOURCES
        ],
        columns=COLUMNS,
        cell=cell,
        verdict=lambda rows: verdict(rows, risk),
        pictures=[(caption, _embedded(figure)) for caption, figure in _pictures(results)],
    )


def _pictures(results: Results) -> list[tuple[str, Figure]]:
    one = [results]
    return [
        ("Misprediction per scope, as a share of the node.", figures.misprediction_figure(one)),
        ("Misprediction, cumulated.", figures.cumulated_misprediction_figure(one)),
        ("Free resources as computed, and what was really free (black).", figures.free_figure(one)),
        (
            "Oversubscription ratio that each strategy allows; black: in hindsight.",
            figures.oversubscription_figure(one),
        ),
        *(
            (
                f"{TITLES[resource.name]}: what was published against what then happened.",
                figures.published_figure(results, resource),
            )
            for resource in RESOURCES
        ),
    ]


def _embedded(figure: Figure) -> Markup:
    return Markup(  # noqa: S704  # base64 has nothing to escape
        f"data:image/png;base64,{base64.b64encode(figures.png(figure)).decode()}"
    )
