"""README and docs against the code: what they name exists, and what exists is named."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry, Metric

from misc import evaluate, simulate, traceconvert, tracegen
from misc.fakeworkers import command as fakeworkers
from model.commands import scroogevm, vmaggreg, vmballooning
from model.commands.configuration import SETTINGS
from model.evaluation.grid import Pooled, Row, Variant
from model.oversubscriptioncomputation import STRATEGIES
from model.replay.scoring import SUMMARY_COLUMNS
from model.replay.trace import parse_trace
from model.simulation.grid import COLUMNS
from model.status import Figures, NodeStatus, ResourceStatus
from tests.conftest import ROOT
from tests.support.markdown import DOCS, PAGES, README, Page, code_of

PARSERS = {
    "scroogevm.py": scroogevm.build_parser,
    "vmaggreg.py": vmaggreg.build_parser,
    "vmballooning.py": vmballooning.build_parser,
    "misc/evaluate.py": evaluate.build_parser,
    "misc/simulate.py": simulate.build_parser,
    "misc/tracegen.py": tracegen.build_parser,
    "misc/traceconvert.py": traceconvert.build_parser,
    "misc/fakeworkers": fakeworkers.build_parser,
}
COMMANDS = [(page, command) for page in PAGES for command in page.commands]
VIOLATED = "a slice is violated when the 99th percentile of the node's samples in it exceeds what was published as left"
#: In the README, of what is published live.
FULL_OR_EXCEEDED = "a slice is violated when the node is full, or when more is used than was published as left"
#: Words of the first version; STYLE has standard terms for them.
PRIVATE_WORDS = r"\b(promis\w*|judg\w*|told|tells|reckon\w*|heed\w*|anew|nobody|somebody|can't)\b"


def pages_of(*names: str) -> list[Page]:
    return [README if name == "README.md" else DOCS[name] for name in names]


def flags_of(parser: Any) -> set[str]:
    flags = {flag for action in parser._actions for flag in action.option_strings}
    return flags - {"-h", "--help", "--version"}


# --- pages --------------------------------------------------------------------------------------------


def test_readme_takes_two_minutes() -> None:
    assert len(README.text.splitlines()) <= 200
    assert len(README.pictures) == 2


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_and_anchors_resolve(page: Page) -> None:
    for link in page.links:
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.path.parent / name).resolve() if name else page.path
        assert target.exists(), link
        assert not anchor or anchor in Page(target).anchors, link


def test_every_page_is_reached_from_index_and_readme() -> None:
    for page in DOCS.values():
        assert page.path.name == "index.md" or page.path.name in DOCS["index.md"].links, page
        assert page.path.name == "index.md" or f"docs/{page.path.name}" in README.links, page


@pytest.mark.parametrize("name", ["README.md", "replay.md", "strategies.md"])
def test_violation_is_defined_before_its_figures(name: str) -> None:
    (page,) = pages_of(name)
    text = " ".join(page.text.split()).lower()
    if name == "README.md":
        assert FULL_OR_EXCEEDED in text
        return
    assert VIOLATED in text
    assert text.index(VIOLATED) < re.search(r"\d%|\d %", text).start()  # type: ignore[union-attr]


def test_pictures_are_small() -> None:
    for picture in (ROOT / "docs" / "pictures").iterdir():
        assert picture.stat().st_size < 150_000, picture


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_pages_use_standard_terms(page: Page) -> None:
    assert re.findall(PRIVATE_WORDS, page.text, flags=re.I) == []


def test_no_path_of_a_machine_is_in_the_repository() -> None:
    paths = [
        *ROOT.glob("*.*"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "model").rglob("*.py"),
        *(ROOT / "misc").iterdir(),
    ]
    for path in paths:
        if path.is_file() and path.name != ".git":
            assert not re.search(r"(?<![\w.])/(root|home|work)/\w", path.read_text(errors="ignore")), path


def test_fixed_files_are_where_they_belong() -> None:
    fixed = "scroogevm.py vmaggreg.py vmballooning.py dotenv launchallfromjson.sh scroogevm_analysis.ipynb requirements.txt README.md LICENSE CHANGELOG.md"
    assert all(Path(ROOT / name).is_file() for name in fixed.split())


# --- code that is named -------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_file_that_is_named_exists(page: Page) -> None:
    for name in page.code:
        if re.fullmatch(r"[\w./-]+\.(py|sh|ipynb|txt|toml)", name) or re.fullmatch(
            r"(misc|model|tests|docs)/[\w./]*", name
        ):
            places = (ROOT, ROOT / "model", ROOT / "misc")
            assert any((place / name).exists() for place in places), name


def test_every_module_and_package_is_on_the_map() -> None:
    packages, modules = DOCS["architecture.md"].tables("Packages")
    named = {name for row in packages for name in code_of(row[0]) if name.startswith("model/")}
    folders = {f"model/{path.parent.name}/" for path in (ROOT / "model").glob("*/__init__.py")}
    assert named == folders | {"model/"}
    named = {name for row in modules for name in code_of(row[0])}
    assert named == {path.name for path in (ROOT / "model").glob("*.py")} - {"__init__.py"}


def test_every_strategy_is_in_the_tables() -> None:
    for page, heading in (
        (README, "Strategies"),
        (DOCS["strategies.md"], "The ten strategies"),
        (DOCS["strategies.md"], "Results on real nodes"),
        (DOCS["strategies.md"], "Which one"),
    ):
        named = [name for row in page.tables(heading)[0] for name in code_of(row[0])]
        assert sorted(named) == sorted(STRATEGIES), (str(page), heading)


@pytest.mark.parametrize(
    ("program", "page", "heading"),
    [
        ("scroogevm.py", "replay.md", "Options"),
        ("vmaggreg.py", "aggregator.md", "Start"),
        ("vmballooning.py", "ballooning.md", "Start"),
        ("misc/simulate.py", "simulation.md", "Options"),
    ],
)
def test_every_option_is_documented_and_every_documented_option_exists(program: str, page: str, heading: str) -> None:
    (table,) = DOCS[page].tables(heading)
    named = {word for row in table for code in code_of(row[0]) for word in code.split() if word.startswith("-")}
    assert named == flags_of(PARSERS[program]())


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}:{command[:60]}" for page, command in COMMANDS])
def test_every_command_names_options_that_exist(page: Page, command: str) -> None:
    words = shlex.split(command)
    program = next((word for word in words if word in PARSERS), None)
    if program is not None and "-h" not in words:
        PARSERS[program]().parse_args(words[words.index(program) + 1 :])


def test_every_setting_that_is_named_exists() -> None:
    keys = {key for setting in SETTINGS.values() for key in (setting.key, *setting.aliases)}
    families = {key.partition("_")[0] for key in keys} - {"OS"}
    named = {
        name
        for page in PAGES
        for code in page.code
        for name in re.findall(r"^[A-Z]+_[A-Z_]+(?==|$)", code)
        if name.partition("_")[0] in families
    }
    assert len(named) > 50
    assert named <= keys


def test_settings_of_the_influxdb_script_are_known() -> None:
    read = set(re.findall(r"\$\(setting (\w+)", (ROOT / "misc" / "influxdb.sh").read_text()))
    own = {key for key, setting in SETTINGS.items() if "influxdb.sh" in setting.section}
    assert own <= read <= set(SETTINGS)


def test_every_dependency_has_its_reason_and_every_reason_its_dependency() -> None:
    (table,) = DOCS["architecture.md"].tables("Dependencies")
    named = {token.content for row in table for token in row[0].children or () if token.content}
    required = set()
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            if line and not line.startswith(("#", "-r")):
                required.add(re.split(r"[<>=~;\[ ]", line)[0].removeprefix("types-").removesuffix("-stubs"))
    assert named == required


# --- formats ------------------------------------------------------------------------------------------


def test_example_of_a_trace_is_one() -> None:
    (example,) = DOCS["replay.md"].blocks("json")
    assert [s.vms for s in parse_trace(example.encode()).slices()] == [("vm1",), ()]
    assert json.loads(example)


def test_every_column_of_the_summary_is_named() -> None:
    named = set(re.findall(r"\w+", " ".join(DOCS["replay.md"].code)))
    assert set(SUMMARY_COLUMNS) <= named


def test_every_column_of_an_evaluation_is_explained() -> None:
    table = DOCS["evaluation.md"].tables("Many traces")[1]
    named = {name for row in table for name in code_of(row[0])}
    columns = {column.name for kind in (Row, Pooled, Variant) for column in fields(kind)} - {"variant"}
    assert {name for name in columns if not name.startswith("replay_")} == named - {"replay_*"}


def test_every_column_of_a_simulation_is_explained() -> None:
    (table,) = DOCS["simulation.md"].tables("Columns")
    assert [name for row in table for name in code_of(row[0])] == list(COLUMNS)


# --- metrics ------------------------------------------------------------------------------------------

#: Name, type, labels.
Family = tuple[str, str, tuple[str, ...]]


def documented(heading: str) -> set[Family]:
    """The metrics in the tables below a heading."""
    return {
        (code_of(row[0])[0], row[1].content, tuple(code_of(row[2])))
        for table in DOCS["metrics.md"].tables(heading)
        for row in table
    }


def exported(registry: CollectorRegistry) -> set[Family]:
    """The metrics of a registry that has a value for each."""
    return {family_of(family) for family in registry.collect()}


def family_of(family: Metric) -> Family:
    sample = next(sample for sample in family.samples if not sample.name.endswith("_created"))
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return name, family.type, tuple(sample.labels)


def test_metrics_of_the_aggregator_are_documented() -> None:
    from model.aggregator.metrics import AggregatorMetrics

    registry = CollectorRegistry()
    AggregatorMetrics(registry).watch(cast(Any, None), registry)
    for collector in registry._collector_to_names:
        if labels := getattr(collector, "_labelnames", ()):
            collector.labels(*labels)  # type: ignore[attr-defined]
        elif hasattr(collector, "set_function"):
            collector.set_function(lambda: 0.0)
    assert exported(registry) == documented("Aggregator")


def test_metrics_of_the_estimator_are_documented() -> None:
    from model.publishers.placement.reconciler import PlacementCounts
    from model.publishers.prometheus import EstimatorCounts, EstimatorMetrics, FleetFigures

    fleet = FleetFigures(*({"cpu": 0.5, "mem": 0.0} for _ in range(3)))
    figures = Figures(
        *(8.0, 4.0, 4.0, 2.0, 0.0, 6.0, 6.0, 60.0, 0.05, 0.04),
        forecast_violation_rate=0.03,
        unguarded=6.5,
        limits={"ramp": 6.0},
    )
    status = ResourceStatus("ok", figures, {"borg": 6.0})
    placement = PlacementCounts(1, 1, {"timeout": 1}, "", 1, {"kept": 1})
    registry = CollectorRegistry()
    metrics = EstimatorMetrics(registry, EstimatorCounts(fleet=fleet), lambda: placement)
    metrics.publish([NodeStatus("n", "borg", 60.0, status, status)])
    assert exported(registry) == documented("Estimator")


def test_metrics_of_the_ballooning_daemon_are_documented(tmp_path: Path) -> None:
    from model.ballooning.metrics import BallooningCounts, BallooningMetrics, Journal

    counts = BallooningCounts()
    counts.errors["host"], counts.up["host"] = 1, True
    registry = CollectorRegistry()
    registry.register(BallooningMetrics(counts, Journal(tmp_path / "ballooning.json")))
    assert exported(registry) == documented("Ballooning daemon")
