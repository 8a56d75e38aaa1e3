"""Recipes: a strategy as data. `{"name", "revision", "fields"}`, or `{"chain": [...]}`; never code.

`parse` reads the same from a line of text (`koinon.chain(koinon.FedAdam(lr=0.01), koinon.Clip(1.0))`) by
looking at its syntax tree: names, literals and calls of registered strategies, and nothing is evaluated.
"""

import ast
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from koinon_core.errors import UsageError
from koinon_core.strategy.chain import Chain, chain
from koinon_core.strategy.drift import FedProx
from koinon_core.strategy.protocol import Strategy
from koinon_core.strategy.registry import lookup, name_of

__all__ = ["dump", "load", "parse", "show"]

_SCALARS = (bool, int, float, str, type(None))


def dump(strategy: Strategy) -> dict[str, Any]:
    """The recipe of `strategy`."""
    if isinstance(strategy, Chain):
        return {"chain": [dump(part) for part in strategy.parts]}
    kind = type(strategy)
    values = {f.name: getattr(strategy, f.name) for f in fields(strategy)}  # type: ignore[arg-type]
    for name, value in values.items():
        items = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(item, _SCALARS) for item in items):
            raise UsageError(
                f"the field {name!r} of {kind.__name__} is a {type(value).__name__}; "
                "a recipe holds numbers, text, booleans and tuples of them"
            )
    return {"name": name_of(kind), "revision": getattr(kind, "revision", 1), "fields": values}


def load(recipe: Any) -> Strategy:
    """The strategy that `recipe` describes. NotFound if this side does not know it, UsageError if it knows
    another revision or other fields."""
    if not isinstance(recipe, dict):
        raise UsageError(f"not a strategy's recipe: {recipe!r}")
    if "chain" in recipe:
        return chain(*(load(part) for part in recipe["chain"]))
    kind = lookup(str(recipe.get("name", "")))
    mine, theirs = getattr(kind, "revision", 1), recipe.get("revision", 1)
    if mine != theirs:
        raise UsageError(
            f"{recipe['name']} has revision {theirs} in the run and {mine} here; install the same version"
        )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in recipe.get("fields", {}).items()}
    return _build(kind, recipe["name"], [], values)


def _build(kind: type[Any], name: str, positional: list[Any], named: dict[str, Any]) -> Strategy:
    allowed = [f.name for f in fields(kind)]
    for key in named:
        if key not in allowed:
            near = get_close_matches(key, allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(allowed) or 'none'}"
            raise UsageError(f"{name} has no field {key!r}{hint}")
    try:
        strategy: Strategy = kind(*positional, **named)
    except TypeError as error:
        raise UsageError(f"{name} cannot be made of these fields: {error}") from error
    return strategy


def parse(text: str) -> Strategy:
    """The strategy that a line of text such as `koinon.FedAdam(lr=0.01)` names."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise UsageError(f"{text!r} is not a strategy; write for example 'koinon.FedAvg()'") from error
    return _parse(node, text)


def _parse(node: ast.expr, text: str) -> Strategy:
    if isinstance(node, ast.Name | ast.Attribute):
        node = ast.Call(func=node, args=[], keywords=[])
    if not isinstance(node, ast.Call):
        raise UsageError(f"{text!r} is not a strategy; write for example 'koinon.FedAvg()'")
    name = ast.unparse(node.func)
    if name in ("chain", "koinon.chain"):
        return chain(*(_parse(part, text) for part in node.args))
    try:
        positional = [ast.literal_eval(a) for a in node.args]
        named = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except ValueError as error:
        raise UsageError(f"the fields of {name} must be plain values: {error}") from error
    if name in ("FedProx", "koinon.FedProx"):
        return FedProx(*positional, **named)
    return _build(lookup(name), name, positional, named)


def show(recipe: Any) -> str:
    """A recipe on one line, as `parse` reads it."""
    if "chain" in recipe:
        return f"koinon.chain({', '.join(show(part) for part in recipe['chain'])})"
    return f"{recipe['name']}({', '.join(f'{k}={v!r}' for k, v in recipe['fields'].items())})"
