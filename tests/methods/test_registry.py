"""The one table of methods, and what options are refused."""

from __future__ import annotations

import ast
import inspect
import json
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch

import vlmprune
from vlmprune import VlmpruneError
from vlmprune.methods import registry
from vlmprune.methods.catalogue import catalogue
from vlmprune.methods.guided import Guided
from vlmprune.methods.registry import CLASSES, make_method


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))


def test_every_built_in_method_is_registered_and_exported() -> None:
    assert set(vlmprune.list_methods().values()) >= set(CLASSES)
    assert all(getattr(vlmprune, cls.__name__) is cls for cls in CLASSES)
    assert all(name == cls.name for name, cls in vlmprune.list_methods().items())


def test_the_catalogue_read_from_the_sources_is_that_of_the_classes() -> None:
    records = []
    for cls in CLASSES:
        parameters = inspect.signature(cls).parameters.values()
        options = {p.name: None if p.default is p.empty else p.default for p in parameters}
        required = [p.name for p in parameters if p.default is p.empty]
        summary = (inspect.getdoc(cls) or "").partition("\n")[0]
        records.append({"name": cls.name, "options": options, "required": required, "summary": summary})
    assert json.dumps(catalogue()) == json.dumps(records)  # the order of the options too


def test_the_table_handed_out_is_a_copy() -> None:
    vlmprune.list_methods().clear()
    assert vlmprune.list_methods()


@pytest.mark.parametrize("how", ["decorator", "call"])
def test_a_users_own_method(how: str) -> None:
    @dataclass(frozen=True)
    class Last(vlmprune.Pruner):
        def score(self, prompt: vlmprune.PruningContext) -> list[torch.Tensor]:
            return [torch.arange(layout.count).float() for layout in prompt.layouts]

    if how == "decorator":
        assert vlmprune.register_method(name="last")(Last) is Last
    else:
        assert vlmprune.register_method(name="last", method=Last) is Last
    large, _, processor = vlmprune.load_tiny()
    with vlmprune.wrap(large, "last", keep=3, processor=processor) as pruned:
        pruned.ask(vlmprune.tiny.example()[0], "How many circles are there?", max_new_tokens=1)
    assert pruned.report.kept[0].tolist() == [193, 194, 195]
    with pytest.raises(VlmpruneError, match="registered already"):
        vlmprune.register_method(name="last", method=Last)


@pytest.mark.parametrize("name", ["", "Fast", "1st", "a b", "a/b", None])
def test_bad_names(name: object) -> None:
    with pytest.raises(VlmpruneError, match="name must be"):
        vlmprune.register_method(name=name, method=vlmprune.Uniform)  # type: ignore[arg-type]  # bad on purpose


def test_no_method_class() -> None:
    with pytest.raises(VlmpruneError, match="method must be a class"):
        vlmprune.register_method(name="mine", method=int)  # type: ignore[type-var]  # bad on purpose


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(VlmpruneError, match=r"no method 'fastvv'; did you mean 'fastv'\?"):
        make_method("fastvv")
    with pytest.raises(VlmpruneError, match=r"choose one of act, adakv, cdpruner.*\.$"):
        make_method("qqqqqqqq")


@pytest.mark.parametrize("options", [{"layer": -1}, {"layer": 1.0}, {"layer": "x"}, {"layer": float("nan")}])
def test_bad_layers(options: dict) -> None:
    with pytest.raises(VlmpruneError, match=r"^layer must be"):
        make_method("random", **options)


def test_bad_options() -> None:
    with pytest.raises(VlmpruneError, match="'none' has no option 'keep'"):
        make_method("none", keep=0.5)
    with pytest.raises(VlmpruneError, match="set them on the FastV object"):
        make_method(vlmprune.FastV(), keep=0.5)
    with pytest.raises(VlmpruneError, match="seed must be an int >= 0, got -1"):
        vlmprune.Random(seed=-1)
    with pytest.raises(VlmpruneError, match="positions='new'"):
        vlmprune.Uniform(positions="new")


def test_descriptions_are_json() -> None:
    for cls in CLASSES:
        needs = {"guide": object()} if cls.name == "sgl" else {}
        record = json.loads(json.dumps(cls(**needs).describe()))
        assert record["name"] == cls.name


def test_a_class_has_one_name() -> None:
    """Its name is an attribute: a second one would rename it in every report."""
    with pytest.raises(VlmpruneError, match="FastV is registered already as 'fastv'"):
        vlmprune.register_method(name="mine", method=vlmprune.FastV)
    with pytest.raises(VlmpruneError, match="a class derived from"):
        vlmprune.register_method(name="mine", method=vlmprune.Pruner)
    assert vlmprune.FastV.name == "fastv" and vlmprune.Pruner.name == ""


def test_what_a_method_declares_is_never_looked_for_with_a_default() -> None:
    """`getattr(method, "exclude_sinks", False)` would pass over a misspelt declaration in silence."""
    names = {option.name for cls in CLASSES for option in fields(cls)}
    names |= {name for base in (vlmprune.Pruner, vlmprune.Intervention, Guided) for name in dir(base)} - {"name"}
    root = Path(vlmprune.__file__).parents[1]
    for path in (path for folder in ("vlmprune", "eval", "demos") for path in (root / folder).rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            optional = {"getattr": 3, "hasattr": 2}.get(ast.unparse(call.func)) == len(call.args)
            if optional and isinstance(call.args[1], ast.Constant) and not call.args[1].value.startswith("__"):
                assert call.args[1].value not in names, f"{path}:{call.lineno}"
