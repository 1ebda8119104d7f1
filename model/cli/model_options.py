"""What the options of scroogevm.py mean to the models, offline and live alike."""

from __future__ import annotations

import argparse

from ..common.errors import UsageError
from ..conformal import MOST_RISK
from ..nodemodel import ModelSettings
from ..oversubscriptioncomputation import STRATEGIES, StrategySettings
from ..slices import RESOURCES
from ..stability import STABILITY_DETECTORS, StabilityDetector


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
        check_risk(option, risk)
    return risk


def check_risk(option: str, risk: float) -> None:
    """Refuse a target risk that the strategy cannot keep to."""
    if not 0 < risk <= MOST_RISK:
        raise UsageError(
            f"--{option.replace('_', '-')}: conformal keeps to risks above 0 and up to {MOST_RISK:g}, not to {risk:g}"
        )


def chosen_detectors(args: argparse.Namespace) -> dict[str, StabilityDetector]:
    """Who decides that a slice is stable, by resource name."""
    return {resource.name: STABILITY_DETECTORS[args.stability] for resource in RESOURCES}
