"""Strategies of installed packages: found by their entry points, imported when asked for, and nothing else is."""

import sys
import textwrap

import pytest

from koinon_core.errors import NotFound, UsageError
from koinon_core.strategy import dump, load, parse, registry

MODULE = """
from dataclasses import dataclass, replace
from typing import ClassVar
import koinon

@koinon.register
@dataclass(frozen=True)
class HalfStep(koinon.Base):
    weight: ClassVar = "examples"
    share: float = 0.5

    def server(self, s, agg, rng):
        return replace(agg, mean=agg.mean * self.share), s

class NotOne:
    pass
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package as pip leaves it: a module, and what its metadata says of it."""
    (tmp_path / "halfway.py").write_text(MODULE)
    (tmp_path / "broken_halfway.py").write_text("raise RuntimeError('cannot')")
    info = tmp_path / "halfway-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: halfway\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        textwrap.dedent(
            """
            [koinon.strategies]
            HalfStep = halfway:HalfStep
            NotOne = halfway:NotOne
            Broken = broken_halfway:Broken
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_KNOWN", dict(registry._KNOWN))
    yield "halfway"
    for name in ("halfway", "broken_halfway"):
        sys.modules.pop(name, None)


def test_an_installed_package_adds_a_strategy_by_name(package):
    assert "halfway.HalfStep" in registry.known()
    assert "halfway" not in sys.modules, "what nobody asked for is not imported"
    strategy = parse("HalfStep(share=0.25)")
    assert type(strategy).__module__ == "halfway"
    assert dump(strategy) == {"name": "halfway.HalfStep", "revision": 1, "fields": {"share": 0.25}}
    assert load(dump(strategy)) == strategy


def test_its_recipe_is_read_where_the_package_is_installed_and_the_module_was_never_named(package):
    recipe = {"name": "halfway.HalfStep", "revision": 1, "fields": {"share": 0.5}}
    assert load(recipe).share == 0.5


def test_where_it_is_not_installed_it_is_not_found_by_name():
    with pytest.raises(
        NotFound, match=r"no strategy 'halfway\.HalfStep' here.*install its package at both ends"
    ):
        load({"name": "halfway.HalfStep", "revision": 1, "fields": {}})


def test_a_package_that_cannot_be_imported_or_gives_no_strategy_is_named(package):
    with pytest.raises(UsageError, match=r"'Broken' of an installed package cannot be imported .*cannot"):
        parse("Broken()")
    with pytest.raises(UsageError, match=r"halfway:NotOne is no registered strategy"):
        parse("NotOne()")


def test_a_name_that_is_nearly_one_is_told(package):
    with pytest.raises(NotFound, match=r"did you mean 'koinon\.FedYogi'"):
        parse("FedYogie()")


def test_a_built_in_cannot_be_replaced_by_a_package(package, tmp_path):
    entry = tmp_path / "halfway-1.0.dist-info" / "entry_points.txt"
    entry.write_text("[koinon.strategies]\nFedAvg = halfway:HalfStep\nkoinon.FedAvg = halfway:HalfStep\n")
    assert type(parse("FedAvg()")).__module__.startswith("koinon_core")


def also(tmp_path, name, module, entry):
    """One more installed package."""
    (tmp_path / f"{name}.py").write_text(module)
    info = tmp_path / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[koinon.strategies]\n{entry}\n")


def test_two_packages_with_one_name_are_told_apart_by_their_full_ones(package, tmp_path):
    also(tmp_path, "otherway", MODULE, "HalfStep = otherway:HalfStep")
    with pytest.raises(UsageError, match=r"write halfway\.HalfStep or otherway\.HalfStep"):
        parse("HalfStep()")
    assert type(parse("otherway.HalfStep()")).__module__ == "otherway"
    sys.modules.pop("otherway")


def test_an_entry_point_that_names_where_a_class_is_imported_again_is_refused(package, tmp_path):
    also(tmp_path, "facade", "from halfway import HalfStep", "Step = facade:HalfStep")
    with pytest.raises(UsageError, match=r"registered as halfway\.HalfStep.*where it is defined"):
        parse("Step()")
    sys.modules.pop("facade")
