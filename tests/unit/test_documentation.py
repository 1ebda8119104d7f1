"""The README is a contract: what it names exists, and what exists is named in it."""

from __future__ import annotations

import io
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from misc import evaluate, traceconvert, tracegen
from misc.fakeworkers import command as fakeworkers
from model.commands import scroogevm, vmaggreg, vmballooning
from model.evaluation.grid import Pooled, Row, Variant
from model.oversubscriptioncomputation import STRATEGIES
from model.publishers.placement.reconciler import PlacementCounts
from model.publishers.prometheus import EstimatorCounts, EstimatorMetrics
from model.replay.scoring import SUMMARY_COLUMNS
from model.replay.trace import parse_trace
from model.status import Figures, NodeStatus, ResourceStatus
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.S)
COMMANDS = [
    line for kind, text in BLOCKS if kind == "sh" for line in text.replace("\\\n", " ").splitlines() if line.strip()
]


def test_every_strategy_is_in_both_tables() -> None:
    for name in STRATEGIES:
        assert len(re.findall(rf"^\| `{name}` \|", README, flags=re.M)) == 2


def test_every_option_is_documented_and_every_documented_option_exists() -> None:
    options = {flag for action in scroogevm.build_parser()._actions for flag in action.option_strings}
    options -= {"-h", "--help", "--version"}
    table = README[README.index("| option | meaning |") : README.index("A mistake, in the command")]
    named = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", " ".join(re.findall(r"^\| (`.*?) \|", table, flags=re.M))))
    assert named == options


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_a_program_and_options_that_exist(command: str) -> None:
    words = shlex.split(command)
    program = next(word for word in words if (ROOT / word).is_file() and not word.startswith(".venv/bin/python"))
    parsers = {
        "scroogevm.py": scroogevm.build_parser,
        "misc/evaluate.py": evaluate.build_parser,
        "misc/tracegen.py": tracegen.build_parser,
        "misc/traceconvert.py": traceconvert.build_parser,
        "misc/fakeworkers": fakeworkers.build_parser,
        "vmaggreg.py": vmaggreg.build_parser,
        "vmballooning.py": vmballooning.build_parser,
    }
    if program in parsers and "-h" not in words:
        parsers[program]().parse_args(words[words.index(program) + 1 :])


def test_every_file_that_is_named_exists() -> None:
    for name in re.findall(r"`([\w/]+\.(?:py|sh|ipynb|txt))`", README):
        places = (ROOT, ROOT / "model", ROOT / "model" / "adapters", ROOT / "misc")
        assert any((place / name).exists() for place in places), name


def test_every_picture_that_is_shown_exists() -> None:
    pictures = re.findall(r"!\[.*?\]\((\S+)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)


def test_every_column_of_an_evaluation_is_explained() -> None:
    table = README[README.index("| `trace`, `strategy`,") : README.index("`--dask=")]
    columns = {column.name for kind in (Row, Pooled, Variant) for column in fields(kind)} - {"variant"}
    assert {name for name in columns if f"`{name}`" not in table and not name.startswith("replay_")} == set()


def test_every_module_is_on_the_map() -> None:
    for path in (ROOT / "model").glob("*.py"):
        assert path.stem == "__init__" or f"`{path.name}`" in README, path.name


def keys_of_dotenv() -> set[str]:
    return set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", (ROOT / "dotenv").read_text(), flags=re.M))


def test_every_key_of_dotenv_is_read_and_every_key_that_is_read_is_in_it() -> None:
    code = (ROOT / "model" / "adapters" / "settings.py").read_text()
    script = (ROOT / "misc" / "influxdb.sh").read_text()
    read = set(re.findall(r'env\.(?:text|required|number|whole|json|url)\("([A-Z0-9_]+)"', code))
    read |= set(re.findall(r"setting ([A-Z0-9_]+)", script))
    assert keys_of_dotenv() == read


def test_keys_that_are_known_are_those_of_dotenv() -> None:
    from model.common.environment import KEYS

    assert {key for key in keys_of_dotenv() if not key.startswith("OS_")} == KEYS


def test_every_key_is_in_the_table_of_settings() -> None:
    table = README[README.index("## Settings") : README.index("## Running it")]
    assert not {key for key in keys_of_dotenv() if f"`{key}`" not in table}


def test_dotenv_shows_the_defaults() -> None:
    from dotenv import dotenv_values

    from model.aggregator.settings import aggregator_settings
    from model.ballooning.settings import ballooning_settings
    from model.common.environment import Environment
    from model.estimator.settings import estimator_settings

    text = (ROOT / "dotenv").read_text()
    written = dotenv_values(stream=io.StringIO(re.sub(r"^#(?=[A-Z0-9_]+=)", "", text, flags=re.M)))
    influx = {key for key in written if key.startswith("INFLUXDB")}
    as_shown = aggregator_settings(Environment({key: value for key, value in written.items() if key not in influx}))
    by_default = aggregator_settings(Environment({"AGGREG_STUB_LIST": written["AGGREG_STUB_LIST"]}))
    assert as_shown == by_default
    shown = Environment({key: value for key, value in written.items() if key not in influx})
    hosts = {"LIBVIRT_NODES": written["LIBVIRT_NODES"]}
    assert ballooning_settings(shown) == ballooning_settings(Environment(hosts))
    assert estimator_settings(shown) == estimator_settings(
        Environment({"AGGREG_STUB_LIST": written["AGGREG_STUB_LIST"]})
    )


def test_every_metric_of_the_aggregator_is_documented() -> None:
    code = (ROOT / "model" / "adapters" / "aggregator.py").read_text()
    for name in re.findall(r'"(scroogevm_[a-z_]+)"', code):
        assert name in README, name


def test_every_metric_of_the_estimator_is_documented() -> None:
    figures = Figures(8.0, 4.0, 2.0, 0.0, 6.0, 6.0, 60.0, 0.05, 0.04)
    said = ResourceStatus("ok", figures, {"borg": 6.0})
    registry = CollectorRegistry()
    metrics = EstimatorMetrics(registry, EstimatorCounts(), lambda: PlacementCounts(1, 1, {"timeout": 1}, ""))
    metrics.publish([NodeStatus("n", "borg", 60.0, said, said)])
    names = set(re.findall(r"^(scroogevm_\w+)", generate_latest(registry).decode(), flags=re.M))
    assert len(names) > 15
    assert not {name for name in names if f"`{name}" not in README}


def test_every_metric_of_ballooning_is_documented() -> None:
    code = (ROOT / "model" / "adapters" / "ballooning.py").read_text()
    names = {
        f"scroogevm_{name.removeprefix('scroogevm_')}"
        for name in re.findall(r'"((?:scroogevm_)?balloon_[a-z_]+)"', code)
    }
    assert len(names) >= 7
    assert not {name for name in names if name not in README}


def test_example_of_a_trace_is_one() -> None:
    (example,) = [text for kind, text in BLOCKS if kind == "json"]
    assert [s.vms for s in parse_trace(example.encode()).slices()] == [("vm1",), ()]
    assert json.loads(example)


def test_every_column_of_the_summary_is_named() -> None:
    for column in SUMMARY_COLUMNS[:7]:
        assert column in README


def test_every_dependency_has_its_reason() -> None:
    reasons = README[README.index("Why each dependency") :]
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            if line and not line.startswith(("#", "-r")):
                package = re.split(r"[<>=~]", line)[0].removeprefix("types-").removesuffix("-stubs")
                assert f"**{package}**" in reasons, package


def test_no_path_of_a_machine_is_in_the_repository() -> None:
    for path in [*ROOT.glob("*.*"), *(ROOT / "model").rglob("*.py"), *(ROOT / "misc").iterdir()]:
        if path.is_file():
            assert not re.search(r"(?<![\w.])/(root|home|work)/\w", path.read_text(errors="ignore")), path


def test_fixed_files_are_where_they_belong() -> None:
    fixed = "scroogevm.py vmaggreg.py vmballooning.py dotenv launchallfromjson.sh scroogevm_analysis.ipynb requirements.txt README.md LICENSE CHANGELOG.md"
    assert all(Path(ROOT / name).is_file() for name in fixed.split())
