"""Settings, rows, the best fixed ratio, means over seeds, and the sentence for the operator."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.oversubscriptioncomputation import STRATEGIES
from model.simulation.grid import (
    BEST_RATIO,
    COLUMNS,
    FIXED_RATIO,
    ORACLE,
    RatioSearch,
    Row,
    Setting,
    settings_of,
    table_csv,
)
from model.simulation.harm import Figures
from model.simulation.summary import Comparison, summaries_of

ROW = Row(
    "conformal", 0.05, None, False, 1,
    sold=7.5, hosted=100.0, accepted=0.5, accepted_vcpu=0.25, accepted_large=math.nan, used=0.6, over=0.004,
    worst_node=0.02, unserved=0.0, p999=1.1, mem_over=0.0, mem_sold=0.2, reported=0.05, wait_5=0.25, wait_10=0.125,
)  # fmt: skip
RATIO = replace(ROW, strategy=BEST_RATIO, risk=None, guards=None, ratio=5.2, sold=5.0, over=0.009, reported=math.nan)


def test_columns_are_those_of_the_contract() -> None:
    contract = "strategy,risk,ratio,guards,seed,sold,hosted,accepted,accepted_vcpu,accepted_large,used,over,worst_node,unserved,p999,mem_over,mem_sold,reported,hosts_needed,wait_5,wait_10,wait_20,waits"
    assert ",".join(COLUMNS) == contract
    assert table_csv([]) == f"{contract}\n"


def test_cells_that_do_not_apply_are_empty() -> None:
    lines = table_csv([ROW, replace(RATIO, seed=None, hosts_needed=12), replace(ROW, guards=True)]).splitlines()
    assert lines[1] == "conformal,0.05,,off,1,7.5,100.0,0.5,0.25,,0.6,0.004,0.02,0.0,1.1,0.0,0.2,0.05,,0.25,0.125,0.0,"
    assert lines[2] == "best-ratio,,5.2,,,5.0,100.0,0.5,0.25,,0.6,0.009,0.02,0.0,1.1,0.0,0.2,,12,0.25,0.125,0.0,"
    assert lines[3].startswith("conformal,0.05,,on,1,")


def test_settings_are_ratios_oracle_and_strategies_with_their_own_parameters() -> None:
    chosen = settings_of(["conformal", "borg"], [0.01, 0.05], [1.0, 4.0], [True, False], oracle=True)
    assert [(one.strategy, one.risk, one.ratio, one.guards) for one in chosen] == [
        (FIXED_RATIO, None, 1.0, None),
        (FIXED_RATIO, None, 4.0, None),
        (ORACLE, None, None, None),
        ("conformal", 0.01, None, True),
        ("conformal", 0.01, None, False),
        ("conformal", 0.05, None, True),
        ("conformal", 0.05, None, False),
        ("borg", None, None, True),
        ("borg", None, None, False),
    ]


def test_no_strategy_has_the_name_of_a_ratio_or_of_the_oracle() -> None:
    assert not {FIXED_RATIO, BEST_RATIO, ORACLE} & set(STRATEGIES)


# --- the best fixed ratio -----------------------------------------------------------------------------


@given(st.integers(9, 200), st.lists(st.floats(1, 16), max_size=5))
def test_search_finds_the_largest_safe_ratio_in_few_rounds(limit: int, known: list[float]) -> None:
    search = RatioSearch(0.01, 16.0)

    def over(ratio: float) -> float:
        return 0.0 if ratio * 10 <= limit + 1e-9 else 0.5

    for ratio in known:
        search.note(ratio, over(ratio))
    rounds = 0
    while (ratio := search.next()) is not None:
        assert 1.0 <= ratio <= 16.0
        search.note(ratio, over(ratio))
        rounds += 1
    assert rounds <= 8
    assert search.best == (min(limit, 160) / 10 if limit >= 10 else None)


def test_harm_that_is_just_accepted_is_safe() -> None:
    search = RatioSearch(0.01, 16.0)
    search.note(4.0, 0.01)
    search.note(4.1, 0.0101)
    assert search.next() is None
    assert search.best == 4.0


# --- means and the sentence ---------------------------------------------------------------------------


def test_summary_has_mean_least_and_most_over_the_seeds() -> None:
    rows = [ROW, replace(ROW, seed=2, sold=8.5, accepted_large=0.5), RATIO]
    summary, ratio = summaries_of(rows)
    assert (summary.setting, summary.runs, ratio.runs) == (Setting("conformal", 0.05, guards=False), 2, 1)
    sold = summary.figures["sold"]
    assert (sold.mean, sold.least, sold.most) == (8.0, 7.5, 8.5)
    assert summary.figures["accepted_large"].mean == 0.5
    assert math.isnan(summary.figures["hosts_needed"].mean)
    assert set(summary.figures) <= {*Figures.__dataclass_fields__, "hosts_needed"}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([ROW, RATIO], "conformal 5% bare sells 7.50 vCPUs per core, 50 % more than the best fixed ratio that is as safe (5.2 sells 5.00)"),
        ([replace(ROW, sold=4.0), RATIO], "conformal 5% bare sells 4.00 vCPUs per core, 20 % less than the best fixed ratio that is as safe (5.2 sells 5.00)"),
        ([replace(ROW, sold=5.0), RATIO], "conformal 5% bare sells 5.00 vCPUs per core, as much as the best fixed ratio that is as safe (5.2 sells 5.00)"),
        ([replace(ROW, over=0.02), RATIO], "no strategy is that safe; the best fixed ratio is 5.2 and sells 5.00"),
        ([ROW], "conformal 5% bare sells 7.50 vCPUs per core; no fixed ratio is that safe"),
        ([replace(ROW, over=0.02)], "no strategy is that safe; no fixed ratio is that safe"),
        ([RATIO], "the best fixed ratio is 5.2 and sells 5.00"),
        ([replace(ROW, hosts_needed=9), replace(RATIO, hosts_needed=12)], "conformal 5% bare sells 7.50 vCPUs per core, 50 % more than the best fixed ratio that is as safe (5.2 sells 5.00); it needs 9 nodes for 99 % of the vCPUs, that ratio needs 12"),
        ([replace(ROW, mem_over=0.0008), RATIO], "conformal 5% bare sells 7.50 vCPUs per core, 50 % more than the best fixed ratio that is as safe (5.2 sells 5.00); memory is over in 0.08% of its slices"),
        ([replace(ROW, mem_over=0.0012), RATIO], "no strategy is that safe; the best fixed ratio is 5.2 and sells 5.00"),
    ],
)  # fmt: skip
def test_sentence_names_the_safe_setting_that_sells_most(rows: list[Row], sentence: str) -> None:
    assert Comparison("flood", summaries_of(rows), 0.01).sentence == f"at most 1 % over: {sentence}"


def test_safe_settings_come_first_by_what_they_sell_then_the_others_by_harm() -> None:
    rows = [
        replace(ROW, strategy="borg", over=0.5),
        replace(ROW, strategy="doa", over=0.2, sold=12.0),
        replace(ROW, strategy="nsigma", over=0.0, sold=3.0),
        ROW,
    ]
    ranked = Comparison("flood", summaries_of(rows), 0.01).ranked()
    assert [one.setting.strategy for one in ranked] == ["conformal", "nsigma", "doa", "borg"]


def test_json_has_null_where_a_figure_does_not_apply() -> None:
    found = Comparison("flood", summaries_of([ROW, RATIO]), 0.01).as_json()
    assert found["best_ratio"] == 5.2
    first, second = found["settings"]
    assert first["sold"] == {"mean": 7.5, "min": 7.5, "max": 7.5}
    assert (first["strategy"], first["risk"], first["guards"], first["safe"]) == ("conformal", 0.05, False, True)
    assert second["reported"] is None
