"""Which strategies an asynchronous run may have: asked where a run is submitted."""

from koinon_core.errors import UsageError
from koinon_core.strategy.chain import Chain, follows_what_was_sent
from koinon_core.strategy.lora import projects
from koinon_core.strategy.protocol import Base, Strategy
from koinon_core.strategy.robust_sum import robust_parts

__all__ = ["check_buffered"]


def check_buffered(strategy: Strategy, buffer: int) -> None:
    """UsageError where a strategy and a run's `buffer` do not go together."""
    parts = strategy.parts if isinstance(strategy, Chain) else (strategy,)
    discounting = [type(p).__name__ for p in parts if type(p).discount is not Base.discount]
    if not buffer:
        if discounting:
            raise UsageError(
                f"{discounting[0]} weighs updates by their age, and in rounds that wait for their devices they have "
                "none; set buffer in the run's config"
            )
        return
    for part in parts:
        _check_part(part)
    if projects(strategy):
        raise UsageError(
            "LoraProjection multiplies factors that all began with the same model; drop it, or drop buffer"
        )
    others = [type(p).__name__ for p in robust_parts(strategy)]
    if discounting and others:
        raise UsageError(
            f"{others[0]} looks at single updates and knows no age, and {discounting[0]} weighs them by it; keep one "
            "of them"
        )


def _check_part(part: Strategy) -> None:
    name = type(part).__name__
    if follows_what_was_sent(part):
        raise UsageError(
            f"{name} keeps a state on devices that must move with the coordinator's, and in an asynchronous run they "
            "are models behind; drop buffer, or choose another strategy (FedProx keeps no state)"
        )
    if part.totals():
        raise UsageError(
            f"{name} divides by sums over one round's devices, which all have the same model; drop buffer, or use "
            "FedBuff"
        )
