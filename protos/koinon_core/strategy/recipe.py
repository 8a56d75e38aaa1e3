"""Recipes: a strategy as data. `{"name", "revision", "fields"}`, or `{"chain": [...]}`; never code.

`parse` reads the same from a line of text (`koinon.chain(koinon.FedAdam(lr=0.01), koinon.Clip(1.0))`) by
looking at its syntax tree: names, literals and calls of registered strategies, and nothing is evaluated.
"""

import ast
import inspect
import sys
from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from koinon_core.errors import UsageError
from koinon_core.strategy.chain import Chain, chain
from koinon_core.strategy.drift import FedProx
from koinon_core.strategy.protocol import Strategy
from koinon_core.strategy.registry import lookup, name_of

__all__ = ["dump", "load", "parse", "show"]

_SCALARS = (bool, int, float, str, type(None))
_PLAIN: dict[Any, tuple[type, ...]] = {
    bool: (bool,), int: (int,), float: (int, float), str: (str,), tuple: (tuple,),
}  # fmt: skip
_PLAIN |= {kind.__name__: allowed for kind, allowed in _PLAIN.items()}  # where annotations are text


def dump(strategy: Strategy) -> dict[str, Any]:
    """The recipe of `strategy`."""
    if isinstance(strategy, Chain):
        return {"chain": [dump(part) for part in strategy.parts]}
    kind = type(strategy)
    name_of_kind = name_of(kind)
    values = {f.name: getattr(strategy, f.name) for f in fields(strategy)}  # type: ignore[arg-type]  # a strategy is one
    for name, value in values.items():
        items = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(item, _SCALARS) for item in items):
            raise UsageError(
                f"the field {name!r} of {kind.__name__} is a {type(value).__name__}; "
                "a recipe holds numbers, text, booleans and tuples of them"
            )
    # What was added to a strategy later, and says nothing here, is left out: older devices do not know it.
    later = getattr(kind, "later", {})
    values = {name: value for name, value in values.items() if name not in later or value != later[name]}
    return {"name": name_of_kind, "revision": getattr(kind, "revision", 1), "fields": values}


def load(recipe: Any) -> Strategy:
    """The strategy that `recipe` describes. NotFound if this side does not know it, UsageError if it knows
    another revision or other fields."""
    if not isinstance(recipe, dict):
        raise UsageError(f"not a strategy's recipe: {repr(recipe)[:80]}")
    if "chain" in recipe:
        parts = recipe["chain"]
        if not isinstance(parts, list | tuple):
            raise UsageError(f"a chain is a list of recipes, not {repr(parts)[:80]}")
        try:
            return chain(*(load(part) for part in parts))
        except RecursionError as error:
            raise UsageError("the chain is nested too deeply") from error
    kind = lookup(str(recipe.get("name", "")))
    mine, theirs = getattr(kind, "revision", 1), recipe.get("revision", 1)
    if mine != theirs:
        raise UsageError(
            f"{recipe['name']} has revision {theirs} in the run and {mine} here; install the same version"
        )
    values = recipe.get("fields", {})
    if not isinstance(values, dict):
        raise UsageError(f"the fields of {recipe['name']} are {repr(values)[:80]}, which is no table")
    return _build(kind, recipe["name"], [], values)


def _build(
    kind: Callable[..., Strategy], name: str, positional: list[Any], named: dict[str, Any]
) -> Strategy:
    allowed = {p.name: p.annotation for p in inspect.signature(kind).parameters.values()}
    positional = [_frozen(v) for v in positional]
    named = {k: _frozen(v) for k, v in named.items()}
    for key, value in (*zip(allowed, positional, strict=False), *named.items()):
        if key not in allowed:
            near = get_close_matches(str(key), allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(allowed) or 'none'}"
            raise UsageError(f"{name} has no field {key!r}{hint}")
        if not _fits(value, allowed[key]):
            wanted = getattr(allowed[key], "__name__", allowed[key])
            raise UsageError(f"{name}'s {key} must be a {wanted}, not {repr(value)[:80]}")
    try:
        return kind(*positional, **named)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} cannot be made of these fields: {error}") from error


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _fits(value: Any, wanted: Any) -> bool:
    """Whether `value` is of the plain type that a field is annotated with; of other annotations, anything is."""
    if get_origin(wanted) is tuple and get_args(wanted)[1:] == (...,):
        return isinstance(value, tuple) and all(_fits(v, get_args(wanted)[0]) for v in value)
    if isinstance(wanted, UnionType) or get_origin(wanted) is Union:
        return any(value is None if one is NoneType else _fits(value, one) for one in get_args(wanted))
    plain = _PLAIN.get(get_origin(wanted) or wanted)
    if plain is None:
        return True
    if isinstance(value, bool):
        return bool in plain
    finite = float not in plain or (isinstance(value, int | float) and abs(value) <= sys.float_info.max)
    return isinstance(value, plain) and finite


def parse(text: str) -> Strategy:
    """The strategy that a line of text such as `koinon.FedAdam(lr=0.01)` names."""
    try:
        return _parse(ast.parse(text.strip(), mode="eval").body, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        raise UsageError(f"{text[:80]!r} is not a strategy; write for example 'koinon.FedAvg()'") from error


def _value(node: ast.expr, name: str) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise UsageError(
            f"the fields of {name} must be plain values (a finite number, True, a 'text', a list of them), and "
            f"{ast.unparse(node)[:60]} is none"
        ) from None


def _parse(node: ast.expr, text: str) -> Strategy:
    if isinstance(node, ast.Name | ast.Attribute):
        node = ast.Call(func=node, args=[], keywords=[])
    if not isinstance(node, ast.Call):
        raise UsageError(f"{text!r} is not a strategy; write for example 'koinon.FedAvg()'")
    name = ast.unparse(node.func)
    if len({k.arg for k in node.keywords}) < len(node.keywords):
        raise UsageError(f"{text!r} gives a field twice")
    if name in ("chain", "koinon.chain"):
        if node.keywords:
            raise UsageError(f"a chain has parts and no fields; it was given {node.keywords[0].arg!r}")
        return chain(*(_parse(part, text) for part in node.args))
    try:
        positional = [_value(a, name) for a in node.args]
        named = {str(k.arg): _value(k.value, name) for k in node.keywords}
    except TypeError as error:
        raise UsageError(f"the fields of {name} must be plain values: {error}") from error
    kind = FedProx if name in ("FedProx", "koinon.FedProx") else lookup(name)
    return _build(kind, name, positional, named)


def show(recipe: Any) -> str:
    """A recipe on one line, as `parse` reads it."""
    if "chain" in recipe:
        return f"koinon.chain({', '.join(show(part) for part in recipe['chain'])})"
    return f"{recipe['name']}({', '.join(f'{k}={v!r}' for k, v in recipe['fields'].items())})"
