"""The options that choose strategies and their parameters, for replay and estimator alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..common.errors import UsageError
from ..nodemodel import ModelSettings
from ..oversubscriptioncomputation import STRATEGIES, StrategySettings
from ..slices import RESOURCES
from ..stability import STABILITY_DETECTORS, StabilityDetector


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Strategies and their parameters, by the names of the options.

    Attributes
    ----------
    strategy : str or None
        Names with commas between them, or ``all``; None takes the default of the command.
    cpu, mem : float
        Percentiles.
    aggreg : int
        How many successive samples are averaged.
    risk, risk_cpu, risk_mem : float
        Target risk; of one resource alone, where that is not None.
    stability : str
        Name of a stability detector.
    guards : bool
        Whether guards lower what is published.
    """

    strategy: str | None = None
    cpu: float = 90.0
    mem: float = 90.0
    aggreg: int = 1
    risk: float = 0.05
    risk_cpu: float | None = None
    risk_mem: float | None = None
    stability: str = "mean"
    guards: bool = False

    def risk_source(self, resource: str) -> str:
        """The field that sets the target risk of a resource: ``risk_cpu``, ``risk_mem`` or ``risk``."""
        return "risk" if getattr(self, f"risk_{resource}") is None else f"risk_{resource}"

    def risk_of(self, resource: str) -> float:
        """The target risk of a resource."""
        risk: float = getattr(self, self.risk_source(resource))
        return risk


def given_model_options(args: Any) -> dict[str, Any]:
    """The model options that a command line sets, by name."""
    values = {option.name: getattr(args, option.name) for option in fields(ModelOptions)}
    return {name: value for name, value in values.items() if value is not None}


def chosen_strategies(text: str) -> tuple[str, ...]:
    """The strategies that a list with commas names, each once, in its order.

    Raises
    ------
    ValueError
        When one is unknown.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in STRATEGIES and name != "all":
            raise ValueError(f"{name!r} is none of {', '.join(STRATEGIES)}, all")
    return tuple(STRATEGIES) if "all" in names else tuple(names)


def strategies_of(options: ModelOptions, default: str) -> tuple[str, ...]:
    """The strategies that the options name, or the default of the command.

    Raises
    ------
    UsageError
    """
    try:
        return chosen_strategies(default if options.strategy is None else options.strategy)
    except ValueError as error:
        raise UsageError(f"--strategy: {error}") from None


def model_settings(options: ModelOptions, strategies: tuple[str, ...], historical: int) -> ModelSettings:
    """The settings of the node models.

    Raises
    ------
    UsageError
        When a strategy does not support the target risk.
    """
    for resource in RESOURCES:
        if fault := risk_fault(options.risk_of(resource.name), strategies):
            option = options.risk_source(resource.name).replace("_", "-")
            raise UsageError(f"--{option}: {fault}")
    return ModelSettings(
        historical=historical,
        strategies=strategies,
        cpu=StrategySettings(options.cpu, options.aggreg, options.risk_of("cpu")),
        mem=StrategySettings(options.mem, options.aggreg, options.risk_of("mem")),
        guarded=options.guards,
    )


def risk_fault(risk: float, strategies: tuple[str, ...]) -> str:
    """Why the strategies do not support a target risk; empty when they do."""
    for name in strategies:
        strategy = STRATEGIES[name]
        if "risk" in strategy.parameters and not 0 < risk <= strategy.most_risk:
            return f"{name} supports target risks above 0 and up to {strategy.most_risk:g}, not {risk:g}"
    return ""


def chosen_detectors(options: ModelOptions) -> Mapping[str, StabilityDetector]:
    """The stability detector of each resource, by its name.

    Raises
    ------
    UsageError
        When it is unknown.
    """
    if options.stability not in STABILITY_DETECTORS:
        raise UsageError(f"--stability: {options.stability!r} is none of {', '.join(STABILITY_DETECTORS)}")
    return {resource.name: STABILITY_DETECTORS[options.stability] for resource in RESOURCES}
