"""A user's own method: what it may return, and that nothing it gets wrong passes in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import vlmprune
from tests.support.running import shared
from tests.support.tiny_families import make_inputs
from tests.test_bad_input import sentence
from vlmprune.attention.observer import AttentionObserver
from vlmprune.methods.declared import FLAGS
from vlmprune.methods.per_image import ImageContext, PerImage


@dataclass(frozen=True)
class Chooser(vlmprune.Pruner):
    """Returns what it is told to."""

    makes: ClassVar[Callable[[vlmprune.PruningContext], Any]]

    def select(self, prompt: vlmprune.PruningContext) -> Any:
        return type(self).makes(prompt)


@dataclass(frozen=True)
class Scorer(vlmprune.Pruner):
    makes: ClassVar[Callable[[vlmprune.PruningContext], Any]]

    def score(self, prompt: vlmprune.PruningContext) -> Any:
        return type(self).makes(prompt)


def run(kind: type[vlmprune.Pruner], makes: Callable[[vlmprune.PruningContext], Any]) -> list[list[int]]:
    """What two samples of 9 visual tokens keep."""
    model = shared("llava")
    made = type("Mine", (kind,), {"makes": staticmethod(makes)})
    with vlmprune.wrap(model, made(keep=3)), torch.no_grad():
        out = model(**make_inputs(model, text_lengths=(5, 7), images=(1, 1)))
    return [kept.tolist() for kept in out.report.kept]


MASK = torch.arange(9) % 4 == 0


@pytest.mark.parametrize(
    "makes",
    [
        lambda prompt: vlmprune.Selection([torch.tensor([0, 4, 8])] * 2),
        lambda prompt: vlmprune.Selection([torch.tensor([0, 4, 8], dtype=torch.int32)] * 2),
        lambda prompt: vlmprune.Selection([[0, 4, 8], [0, 4, 8]]),
        lambda prompt: vlmprune.Selection((MASK, MASK)),
        lambda prompt: vlmprune.Selection([MASK.tolist(), np.array([0, 4, 8])]),
        lambda prompt: [torch.tensor([0, 4, 8])] * 2,
        lambda prompt: torch.tensor([[0, 4, 8]] * 2),
    ],
    ids=["int64", "int32", "list", "mask", "mixed", "no Selection", "one tensor"],
)
def test_selections_that_are_unambiguous(makes):
    assert run(Chooser, makes) == [[0, 4, 8], [0, 4, 8]]


GOOD = torch.tensor([0, 4])


@pytest.mark.parametrize(
    ("makes", "named"),
    [
        (lambda prompt: None, "None"),
        (lambda prompt: 3, "3"),
        (lambda prompt: vlmprune.Selection(None), "None"),
        (lambda prompt: vlmprune.Selection([GOOD]), "1 entries for a batch of 2"),
        (lambda prompt: vlmprune.Selection([GOOD] * 3), "3 entries for a batch of 2"),
        (lambda prompt: vlmprune.Selection([GOOD, None]), "None"),
        (lambda prompt: vlmprune.Selection([GOOD, "0, 4"]), "'0, 4'"),
        (lambda prompt: vlmprune.Selection([GOOD, torch.tensor([0.0, 4.0])]), "float32 tensor of shape (2,)"),
        (lambda prompt: vlmprune.Selection([GOOD, [0.5, 4.0]]), "[0.5, 4.0]"),
        (lambda prompt: vlmprune.Selection([GOOD, MASK[:8]]), "bool mask of 8"),
        (lambda prompt: vlmprune.Selection([GOOD, torch.zeros(9, dtype=torch.bool)]), "kept []"),
        (lambda prompt: vlmprune.Selection([GOOD, GOOD[None]]), "shape (1, 2)"),
        (lambda prompt: vlmprune.Selection([GOOD, torch.tensor(3)]), "shape ()"),
        (lambda prompt: vlmprune.Selection([GOOD, torch.tensor([4, 0])]), "[4, 0]"),
        (lambda prompt: vlmprune.Selection([GOOD, torch.tensor([4, 4])]), "[4, 4]"),
        (lambda prompt: vlmprune.Selection([GOOD, torch.tensor([4, 9])]), "[4, 9]"),
        (lambda prompt: vlmprune.Selection([GOOD, torch.tensor([-1, 4])]), "[-1, 4]"),
        (lambda prompt: vlmprune.Selection([GOOD, []]), "kept []"),
        (lambda prompt: vlmprune.Selection([GOOD] * 2, [torch.zeros(3, 64)] * 2), "merged"),
        (lambda prompt: vlmprune.Selection([GOOD] * 2, [torch.zeros(2, 64)]), "1 entries for a batch of 2"),
        (lambda prompt: vlmprune.Selection([GOOD] * 2, [torch.zeros(2)] * 2), "merged"),
        (lambda prompt: vlmprune.Selection([GOOD] * 2, [torch.zeros(2, 63)] * 2), "63"),
    ],
)
def test_selections_that_are_none(makes, named):
    sentence(lambda: run(Chooser, makes), "Mine.select()", named)


@pytest.mark.parametrize(
    "makes",
    [
        lambda prompt: [MASK.float()] * 2,
        lambda prompt: [MASK] * 2,
        lambda prompt: [MASK.float().tolist(), MASK.double().numpy()],
        lambda prompt: torch.stack([MASK.half()] * 2),
    ],
    ids=["float", "bool", "list", "one tensor"],
)
def test_scores_that_are_unambiguous(makes):
    assert run(Scorer, makes) == [[0, 4, 8], [0, 4, 8]]


@pytest.mark.parametrize(
    ("makes", "named"),
    [
        (lambda prompt: None, "None"),
        (lambda prompt: torch.tensor(1.0), "shape ()"),
        (lambda prompt: [MASK.float()], "1 entries for a batch of 2"),
        (lambda prompt: [MASK.float(), MASK[:8].float()], "shape (8,)"),
        (lambda prompt: [MASK.float(), MASK.float()[None]], "shape (1, 9)"),
        (lambda prompt: [MASK.float(), torch.full((9,), float("nan"))], "NaN"),
        (lambda prompt: [MASK.float(), None], "None"),
        (lambda prompt: [MASK.float(), "high"], "'high'"),
        (lambda prompt: [MASK.float(), MASK.to(torch.complex64)], "complex64"),
        (lambda prompt: [MASK.float(), [[1.0], [2.0, 3.0]]], "[[1.0], [2.0, 3.0]]"),
    ],
)
def test_scores_that_are_none(makes, named):
    sentence(lambda: run(Scorer, makes), "Mine.score()", named)


def test_no_visual_tokens_in_a_sample():
    """Nothing to keep is fine there, something is not."""
    model = shared("llava")
    inputs = make_inputs(model, text_lengths=(5, 7), images=(1, 0))
    for second, fine in (([], True), ([0], False)):
        chosen = [torch.tensor([0, 4]), second]
        made = type("Mine", (Chooser,), {"makes": staticmethod(lambda prompt, chosen=chosen: chosen)})
        with vlmprune.wrap(model, made()):
            if fine:
                model(**inputs)
            else:
                sentence(lambda: model(**inputs), "Mine.select()", "[0]")


# -- classes ----------------------------------------------------------------------------------------------------------


def body(**names: Any) -> Callable[[], object]:
    return lambda: type("Mine", (vlmprune.Pruner,), names)


@pytest.mark.parametrize(
    ("names", "meant"),
    [
        ({"reads_atention": True}, "reads_attention"),
        ({"read_attention": True}, "reads_attention"),
        ({"reads_key": True}, "reads_keys"),
        ({"read_vision": True}, "reads_vision"),
        ({"reads_texts": True}, "reads_text"),
        ({"read_question": True}, "reads_question"),
        ({"exclude_sink": True}, "exclude_sinks"),
        ({"scores": lambda self, prompt: []}, "score"),
        ({"selects": lambda self, prompt: []}, "select"),
        ({"query_position": lambda self, prompt: []}, "query_positions"),
        ({"stages_layers": lambda self, layers: ()}, "stage_layers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_a_misspelt_declaration(names, meant):
    sentence(body(**names), "Mine", repr(next(iter(names))), repr(meant))


def test_a_misspelt_method_of_an_intervention():
    call = lambda: type("Mine", (vlmprune.Intervention,), {"observers": lambda self, family, model: None})  # noqa: E731
    sentence(call, "Mine", "'observers'", "'observer'")


@pytest.mark.parametrize("flag", ["reads_attention", "reads_keys", "reads_vision", "reads_text", "exclude_sinks"])
@pytest.mark.parametrize("value", ["yes", 1, None], ids=repr)
def test_a_declaration_of_another_type(flag, value):
    sentence(body(**{flag: value}), "Mine", flag, repr(value), "True or False")


@pytest.mark.parametrize("how", ["option", "declaration", "neither"])
def test_sinks_are_handed_to_those_that_exclude_them(how):
    seen = []

    def score(self, prompt):
        seen.append(prompt.sinks)
        return [torch.arange(layout.count).float() for layout in prompt.layouts]

    names: dict[str, Any] = {"reads_attention": True, "layer": 1, "__annotations__": {"layer": "int"}, "score": score}
    if how != "neither":
        names["exclude_sinks"] = how == "declaration"
    if how == "option":
        names["__annotations__"]["exclude_sinks"] = "bool"
    made = dataclass(frozen=True)(type("Mine", (vlmprune.Pruner,), names))
    assert made.exclude_sinks is (how == "declaration") and vlmprune.Pruner.exclude_sinks is False
    model = shared("llava")
    with vlmprune.wrap(model, made(**({"exclude_sinks": True} if how == "option" else {}))), torch.no_grad():
        model(**make_inputs(model))
    assert (seen[0] is None) is (how == "neither")


def test_a_declaration_that_no_method_has():
    sentence(body(reads_pixels=True), "'reads_pixels'", "reads_vision")


def test_helpers_of_ones_own_are_fine():
    """Names near a known one beside that one, names near nothing, private ones, and options."""

    @dataclass(frozen=True)
    class Mine(vlmprune.Pruner):
        sharpness: float = 1.0
        layers: int = 2

        def score(self, prompt: vlmprune.PruningContext) -> list[torch.Tensor]:
            return self.scores(prompt)

        def scores(self, prompt: vlmprune.PruningContext) -> list[torch.Tensor]:
            return [torch.zeros(layout.count) for layout in prompt.layouts]

        def selection_of(self) -> None: ...

        def _select(self) -> None: ...

    model = shared("llava")
    with vlmprune.wrap(model, Mine(keep=2, sharpness=3.0)):
        assert model(**make_inputs(model)).report.method["sharpness"] == 3.0


def test_options_without_a_dataclass():
    class Mine(vlmprune.Pruner):
        sharpness: float = 2.0

        def score(self, prompt: vlmprune.PruningContext) -> list[torch.Tensor]:
            return [torch.zeros(layout.count) for layout in prompt.layouts]

    ways = (
        lambda: Mine(keep=3),
        lambda: vlmprune.wrap(shared("llava"), Mine, keep=3),
        lambda: vlmprune.register_method(name="mine", method=Mine),
    )
    for way in ways:
        sentence(way, "Mine", "'sharpness'", "@dataclass")


def test_a_default_without_a_type():
    """Python's dataclasses would go on using the base's 0.25."""

    @dataclass(frozen=True)
    class Mine(vlmprune.Random):
        keep = 0.75

    sentence(lambda: Mine(), "Mine", "keep = 0.75", "keep: float")
    sentence(lambda: vlmprune.wrap(shared("llava"), Mine), "keep = 0.75")


def test_a_method_that_ranks_nothing():
    @dataclass(frozen=True)
    class Mine(vlmprune.Pruner):
        pass

    sentence(lambda: vlmprune.wrap(shared("llava"), Mine()), "Mine", "score()", "select()")


def test_every_built_in_class_passes():
    """Checked as they were defined; here that nothing made them pass but themselves."""
    for cls in vlmprune.list_methods().values():
        type("Own", (cls,), {})


# -- interventions ----------------------------------------------------------------------------------------------------


class Editing(AttentionObserver):
    def __init__(self, makes: Callable[[torch.Tensor], Any], chosen: Any = (1,)) -> None:
        self.makes, self.chosen = makes, chosen

    def layers(self, seeing: Any) -> Any:
        return self.chosen

    def attention(self, layer: int, call: Any, output: torch.Tensor) -> Any:
        return self.makes(output)


def intervention(observer: Any) -> vlmprune.Intervention:
    return type("Mine", (vlmprune.Intervention,), {"observer": lambda self, family, model: observer})()


@pytest.mark.parametrize("observer", [None, 3, AttentionObserver], ids=str)
def test_no_observer(observer):
    sentence(lambda: vlmprune.wrap(shared("llava"), intervention(observer)), "AttentionObserver", repr(observer)[:20])


def test_an_intervention_without_an_observer():
    class Mine(vlmprune.Intervention):
        pass

    sentence(lambda: vlmprune.wrap(shared("llava"), Mine()), "Mine", "observer()")


def test_a_method_per_image():
    class Mine(PerImage):
        def choose(self, image: ImageContext) -> torch.Tensor:
            return torch.arange(image.span.count - image.count, image.span.count)

    model = shared("llava")
    with vlmprune.wrap(model, Mine(keep=2)):
        kept = model(**make_inputs(model, images=(2, 1, 2))).report.kept
    assert [some.tolist() for some in kept] == [[7, 8, 16, 17], [7, 8], [7, 8, 16, 17]]
    sentence(lambda: type("Mine", (PerImage,), {})(), "Mine", "choose()")


@pytest.mark.parametrize("layers", [(9,), (-1,), (1.0,), 3, None, "all"], ids=repr)
def test_layers_that_the_model_does_not_have(layers):
    observer = Editing(lambda output: None, layers)
    sentence(lambda: vlmprune.wrap(shared("llava"), intervention(observer)), "Editing.layers()", repr(layers))


@pytest.mark.parametrize(
    ("makes", "named"),
    [
        (lambda output: output[:, :1], "(3, 1, 4, 16)"),
        (lambda output: output.double(), "float64"),
        (lambda output: output.tolist()[0][0][0][0] and 3, "3"),
        (lambda output: (output, None), "(tensor("),
    ],
)
def test_an_edit_that_is_none(makes, named):
    model = shared("llava")
    with vlmprune.wrap(model, intervention(Editing(makes))):
        sentence(lambda: model(**make_inputs(model)), "Editing.attention()", "layer 1", named)
    with vlmprune.wrap(model, intervention(Editing(lambda output: output * 0))):
        model(**make_inputs(model))


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5)], ids=repr)
def test_numbers_of_numpy(number):
    model = shared("llava")
    with vlmprune.wrap(model, "fastv", keep=number, layer=np.int64(2)):
        report = model(**make_inputs(model)).report
    assert report.kept_tokens == [5, 5, 5]
    assert json.loads(json.dumps(report.to_dict()))["method"] == {
        "name": "fastv", "keep": 0.5, "layer": 2, "positions": "original", "top_p": None, "floor": 1,
        "exclude_sinks": False,
    }  # fmt: skip
    assert vlmprune.Random(keep=np.int32(3), seed=np.uint8(7)) == vlmprune.Random(keep=3, seed=7)
    assert vlmprune.VAR(p=np.float32(0.5)).describe() == vlmprune.VAR(p=0.5).describe()
    assert vlmprune.SGL(object(), exit_at=np.float32(0.5), guide_steps=np.int64(2)).guide_steps == 2


def test_every_flag_of_a_pruner_is_known_to_the_check():
    assert {name for name in vars(vlmprune.Pruner) if name.startswith("reads_")} == set(FLAGS)
