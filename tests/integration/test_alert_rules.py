"""The alert rules: promtool accepts them, each fires when it should and only then, and what they name exists."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import DATA, ROOT
from tests.support.exported_metrics import exported_metrics
from tests.support.markdown import DOCS, Page, code_of

PATH = ROOT / "misc" / "alerts.yml"
TESTS = (DATA / "alerts_test.yml", DATA / "alerts_long_test.yml")

#: Prometheus' own.
OWN_METRICS = {"up": {"job", "instance"}}
EXPORTED = {**exported_metrics(), **OWN_METRICS}
#: Labels that Prometheus adds.
TARGET_LABELS = {"job", "instance"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not on PATH (Debian package prometheus)"
)


@dataclass(frozen=True)
class Rule:
    """An alert rule."""

    alert: str
    expr: str
    for_: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]

    def __str__(self) -> str:
        return "-".join([self.alert, *(value for name, value in self.labels.items() if name != "severity")])

    @property
    def metrics(self) -> set[str]:
        return set(re.findall(r"\bscroogevm_\w+|\bup\b", self.expr))

    def is_behind(self, labels: Mapping[str, str]) -> bool:
        """Whether an alert with these labels is one of this rule."""
        return labels["alertname"] == self.alert and self.labels.items() <= labels.items()

    def as_yaml(self, **changed: str) -> dict[str, Any]:
        """The rule as a file of rules has it."""
        rule = {"alert": self.alert, "expr": self.expr, "for": self.for_, "labels": dict(self.labels)}
        return {**rule, **changed}


@dataclass(frozen=True)
class Evaluation:
    """A time in a group of tests, and the labels of the alerts that fire then."""

    time: str
    firing: tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Case:
    """A group of tests."""

    name: str
    evaluation_interval: str
    interval: str
    series: tuple[Mapping[str, str], ...]
    evaluations: tuple[Evaluation, ...]

    def firing(self, rule: Rule) -> list[Mapping[str, str]]:
        return [labels for one in self.evaluations for labels in one.firing if rule.is_behind(labels)]


def labels_of(text: str) -> dict[str, str]:
    """The labels of a series."""
    return dict(re.findall(r'(\w+)="([^"]*)"', text))


def read_rules() -> Iterator[Rule]:
    for group in yaml.safe_load(PATH.read_text())["groups"]:
        for one in group["rules"]:
            yield Rule(one["alert"], one["expr"].strip(), one["for"], one["labels"], one["annotations"])


def read_cases() -> Iterator[Case]:
    for path in TESTS:
        file = yaml.safe_load(path.read_text())
        for group in file["tests"]:
            evaluations = tuple(
                Evaluation(one["eval_time"], tuple(labels_of(sample["labels"]) for sample in one["exp_samples"]))
                for one in group["promql_expr_test"]
            )
            intervals = file["evaluation_interval"], group["interval"]
            yield Case(group["name"], *intervals, tuple(group["input_series"]), evaluations)


RULES = list(read_rules())
CASES = list(read_cases())
every_rule = pytest.mark.parametrize("rule", RULES, ids=str)


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


# --- promtool -----------------------------------------------------------------------------------------


@needs_promtool
def test_promtool_accepts_the_rules() -> None:
    done = promtool("check", "rules", PATH)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{len(RULES)} rules found" in done.stdout


@needs_promtool
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_resolve(path: Path) -> None:
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


# --- the tests of promtool find a changed rule --------------------------------------------------------


def seconds(duration: str) -> int:
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([dhms])", duration))


def changed_numbers(expression: str) -> Iterator[str]:
    """The expression with each of its numbers changed, once up and once down."""
    masked = re.sub(r'"[^"]*"|\[[^]]*\]', lambda found: "_" * len(found[0]), expression)
    for found in re.finditer(r"(?:(>=|==|>|<) )?(?<![\w.])(\d+(?:\.\d+)?)(?![\w.])", masked):
        operator, number = found[1], float(found[2])
        if operator in {">=", "=="}:
            replacements = [f"{operator} {number - 1:g}", f"{operator} {number + 1:g}"]
        elif not number:
            replacements = [f"{operator}= 0", f"{operator} 1e9"]
        else:
            start = f"{operator} " if operator else ""
            replacements = [f"{start}{number / 2:g}", f"{start}{number * 1.5:g}"]
        for replacement in replacements:
            yield expression[: found.start()] + replacement + expression[found.end() :]


def passes(rule: Rule, folder: Path, **changed: str) -> bool:
    """Whether the tests of a rule pass when it is changed, and is the only one."""
    selector = {"alertstate": "firing", "alertname": rule.alert, **rule.labels}
    matchers = ", ".join(f'{name}="{value}"' for name, value in selector.items())
    cases = [case for case in CASES if case.firing(rule)]
    groups = [
        {
            "name": case.name,
            "interval": case.interval,
            "input_series": [dict(series) for series in case.series],
            "promql_expr_test": [
                {
                    "expr": f"sum without (alertstate) (ALERTS{{{matchers}}})",
                    "eval_time": one.time,
                    "exp_samples": [
                        {"labels": "{" + ", ".join(f'{k}="{v}"' for k, v in labels.items()) + "}", "value": 1}
                        for labels in one.firing
                        if rule.is_behind(labels)
                    ],
                }
                for one in case.evaluations
            ],
        }
        for case in cases
    ]
    rules = {"groups": [{"name": "changed", "rules": [rule.as_yaml(**changed)]}]}
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    tests = {"rule_files": ["rules.yml"], "evaluation_interval": cases[0].evaluation_interval, "tests": groups}
    (folder / "tests.yml").write_text(yaml.safe_dump(tests))
    done = promtool("test", "rules", folder / "tests.yml")
    # A rule that cannot be read fails, too.
    assert done.returncode == 0 or "got:" in done.stdout + done.stderr, done.stdout + done.stderr
    return done.returncode == 0


@needs_promtool
@every_rule
def test_changed_threshold_or_duration_is_noticed(rule: Rule, tmp_path: Path) -> None:
    assert passes(rule, tmp_path)
    for expression in changed_numbers(rule.expr):
        assert not passes(rule, tmp_path, expr=expression), expression
    for duration in ("0s", f"{2 * seconds(rule.for_)}s"):
        assert not passes(rule, tmp_path, **{"for": duration}), duration


def test_every_rule_has_a_number_that_is_changed() -> None:
    for rule in RULES:
        assert len(set(changed_numbers(rule.expr))) >= 2, rule


# --- what rules and tests name ------------------------------------------------------------------------


def identities(labels: list[Mapping[str, str]]) -> set[tuple[str, ...]]:
    names = ("instance", "node", "host", "reason")
    return {tuple(one.get(name, "") for name in names) for one in labels}


@every_rule
def test_every_alert_has_series_that_fire_and_series_that_do_not(rule: Rule) -> None:
    cases = [case for case in CASES if case.firing(rule)]
    assert cases
    for case in cases:
        firing = {value for identity in identities(case.firing(rule)) for value in identity}
        series = [labels_of(one["series"]) for one in case.series if rule.metrics & {one["series"].partition("{")[0]}]
        assert any(not set(identity) - {""} <= firing for identity in identities(series)), case.name


@every_rule
def test_every_metric_and_label_of_an_expression_is_exported(rule: Rule) -> None:
    assert rule.metrics
    assert rule.metrics <= EXPORTED.keys()
    for metric, matchers in re.findall(r"(scroogevm_\w+)\{([^}]*)\}", rule.expr):
        assert set(re.findall(r"(\w+)=", matchers)) <= EXPORTED[metric]
    labels = set().union(*(EXPORTED[metric] for metric in rule.metrics)) | TARGET_LABELS
    grouped = re.findall(r"\b(?:on|by|without|ignoring) \(([^)]*)\)", rule.expr)
    assert {name.strip() for names in grouped for name in names.split(",")} <= labels


def test_every_series_of_the_tests_is_exported() -> None:
    for case in CASES:
        for one in case.series:
            assert labels_of(one["series"]).keys() <= EXPORTED[one["series"].partition("{")[0]] | TARGET_LABELS, case


def test_no_rule_names_a_job_or_an_instance() -> None:
    for rule in RULES:
        assert not re.search(r"\b(job|instance) ?[=!]", rule.expr), rule


@every_rule
def test_every_alert_says_how_bad_it_is_and_what_to_do(rule: Rule) -> None:
    assert re.fullmatch(r"ScroogeVM([A-Z][a-z]+)+", rule.alert)
    assert rule.labels["severity"] in {"warning", "critical"}
    assert rule.annotations.keys() == {"summary", "description", "runbook"}
    assert re.fullmatch(r"(\d+[dhm])+", rule.for_)
    # A label that an alert lacks would be an empty word.
    named = set(re.findall(r"\$labels\.(\w+)", " ".join(rule.annotations.values())))
    for case in CASES:
        for labels in case.firing(rule):
            assert named <= labels.keys()


@every_rule
def test_every_runbook_is_a_section(rule: Rule) -> None:
    name, _, anchor = rule.annotations["runbook"].partition("#")
    assert anchor in Page(ROOT / name).anchors


def test_every_alert_is_in_the_table_with_its_severity_and_duration() -> None:
    (table,) = DOCS["operations.md"].tables("Alerts")
    documented = [(code_of(row[0])[0], row[1].content, row[2].content) for row in table]
    expected = list(dict.fromkeys((rule.alert, rule.labels["severity"], rule.for_) for rule in RULES))
    assert documented == expected


def test_every_number_to_edit_is_in_its_rules() -> None:
    (table,) = DOCS["operations.md"].tables("Numbers to edit")
    for row in table:
        alerts = code_of(row[1])
        for number in code_of(row[0]):
            assert any(
                number in {rule.for_, *re.split(r"[\s()\[\]]+", rule.expr)} for rule in RULES if rule.alert in alerts
            ), number
        assert set(alerts) <= {rule.alert for rule in RULES}


def test_every_setting_that_is_named_exists() -> None:
    from model.commands.configuration import SETTINGS

    text = " ".join(text for rule in RULES for text in rule.annotations.values())
    named = set(re.findall(r"\b[A-Z]{3,}_[A-Z_]+\b", text))
    assert len(named) > 5
    assert named <= SETTINGS.keys()
