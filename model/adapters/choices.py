"""What the options of scroogevm.py mean to the models, offline and live alike."""

from __future__ import annotations

import argparse

from model.adapters.commandline import UsageError
from model.conformal import MOST_RISK
from model.evaluation import PARAMETERS, Variant, variants
from model.nodemodel import ModelSettings
from model.oversubscriptioncomputation import STRATEGIES, StrategySettings
from model.series import RESOURCES
from model.stability import STABILITIES, Stability

#: Where the values of each of ``PARAMETERS`` stand.
_OPTIONS = ("percentile", "aggreg", "risk", "stability")


def chosen_strategies(text: str) -> tuple[str, ...]:
    """The names that ``--strategy`` asks for, each once, in its order."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in STRATEGIES and name != "all"]
    if unknown:
        raise UsageError(f"--strategy: {unknown[0]!r} is none of {', '.join(STRATEGIES)}, all")
    return tuple(STRATEGIES) if "all" in names else tuple(names)


def model_settings(args: argparse.Namespace, strategies: tuple[str, ...], historical: int) -> ModelSettings:
    """How the command line wants nodes to be modelled.

    Raises
    ------
    UsageError
        When a strategy can't keep to the risk that is asked for.
    """
    return ModelSettings(
        historical=historical,
        strategies=strategies,
        cpu=StrategySettings(args.cpu, args.aggreg, _risk(args, "risk_cpu", strategies)),
        mem=StrategySettings(args.mem, args.aggreg, _risk(args, "risk_mem", strategies)),
    )


def _risk(args: argparse.Namespace, option: str, strategies: tuple[str, ...]) -> float:
    """What the operator risks of one resource: what was said of it alone, or of both."""
    option = "risk" if getattr(args, option) is None else option
    risk: float = getattr(args, option)
    if "conformal" in strategies:
        _check_risk(option, risk)
    return risk


def _check_risk(option: str, risk: float) -> None:
    if not 0 < risk <= MOST_RISK:
        raise UsageError(
            f"--{option.replace('_', '-')}: conformal keeps to risks above 0 and up to {MOST_RISK:g}, not to {risk:g}"
        )


def chosen_variants(args: argparse.Namespace) -> list[Variant]:
    """What ``misc/evaluate.py`` is to evaluate: its options hold lists of values.

    Raises
    ------
    UsageError
    """
    strategies = chosen_strategies(args.strategy)
    for risk in args.risk if "conformal" in strategies else ():
        _check_risk("risk", risk)
    for name in args.stability:
        if name not in STABILITIES:
            raise UsageError(f"--stability: {name!r} is none of {', '.join(STABILITIES)}")
    values = {name: getattr(args, option) for name, option in zip(PARAMETERS, _OPTIONS, strict=True)}
    return variants(strategies, values)


def chosen_judges(args: argparse.Namespace) -> dict[str, Stability]:
    """Who decides that a slice is stable, by resource name."""
    return {resource.name: STABILITIES[args.stability] for resource in RESOURCES}
