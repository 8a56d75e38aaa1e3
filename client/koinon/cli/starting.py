"""What `koinon run create` says of a run's first model: a file, another run's model, or one that takes its weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from koinon.best import best_of
from koinon.operator import Operator
from koinon.starting import Initial
from koinon_core.errors import UsageError
from koinon_core.spec import RunSpec

__all__ = ["first_model"]


def first_model(
    model: Path | None, other: str | None, start: Path | None, *, allow_missing: bool, ignore: Sequence[str],
    rename: Sequence[str], address: str | None, credentials: Path | None, insecure: bool | None,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Arguments of `koinon.Run`, and where its weights come from, in a word ("" for its own)."""
    if other is not None and start is not None:
        raise UsageError("--from and --start both name the first weights; keep one of them")
    how = {"allow_missing": allow_missing, "ignore": tuple(ignore), "rename": dict(map(_pair, rename))}
    where = str(start or "")
    weights: Path | Initial | None = start
    if other is not None:
        with Operator(address, credentials, insecure=insecure) as operator:
            where, weights = _of_run(operator, other)
    if model is None:
        if not isinstance(weights, Initial):
            raise UsageError(
                "say what model the run has: --model FILE, or --from RUN for that of another run"
            )
        if any(how.values()):
            raise UsageError(
                "--allow-missing, --ignore and --rename are about what a --model takes; name one"
            )
        return {"model": weights}, where
    return {"model": model, **({"start": weights} if weights is not None else {}), **how}, where


def _of_run(operator: Operator, text: str) -> tuple[str, Initial]:
    """RUN, RUN@ROUND or RUN@best."""
    name, at, which = text.partition("@")
    if at and which != "best" and not (which.isdecimal() and len(which) < 19):
        raise UsageError(f"--from {text!r} names no model of a run; write RUN, RUN@ROUND or RUN@best")
    got = operator.get(name)
    wanted = best_of(got).round if which == "best" else int(which) if which else None
    number, model = operator.model(name, wanted)
    return f"round {number} of run {got.run.name}", Initial(model, RunSpec.decode(got.spec).model)


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals):
        raise UsageError(f"--rename {text!r} must be OLD=NEW: how names begin there, and here")
    return old, new
