"""What the options of scroogevm.py mean to the models, offline and live alike."""

from __future__ import annotations

import argparse

from model.adapters.commandline import UsageError
from model.nodemodel import ModelSettings
from model.oversubscriptioncomputation import STRATEGIES, StrategySettings
from model.series import RESOURCES
from model.stability import STABILITIES, Stability


def chosen_strategies(text: str) -> tuple[str, ...]:
    """The names that ``--strategy`` asks for, each once, in its order."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in STRATEGIES and name != "all"]
    if unknown:
        raise UsageError(f"--strategy: {unknown[0]!r} is none of {', '.join(STRATEGIES)}, all")
    return tuple(STRATEGIES) if "all" in names else tuple(names)


def model_settings(args: argparse.Namespace, strategies: tuple[str, ...], historical: int) -> ModelSettings:
    """How the command line wants nodes to be modelled."""
    return ModelSettings(
        historical=historical,
        strategies=strategies,
        cpu=StrategySettings(percentile=args.cpu, aggregation=args.aggreg),
        mem=StrategySettings(percentile=args.mem, aggregation=args.aggreg),
    )


def chosen_judges(args: argparse.Namespace) -> dict[str, Stability]:
    """Who decides that a slice is stable, by resource name."""
    return {resource.name: STABILITIES[args.stability] for resource in RESOURCES}
