"""A user's own family: it works as a built-in one, and a wrong declaration is one sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vlmprune
from tests.support.tiny_families import build, make_inputs
from vlmprune import VlmpruneError, families
from vlmprune.flow.locate import plain_grid


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))


def grids(config: Any, media: Any) -> list[Any]:
    side = config.vision_config.image_size // config.vision_config.patch_size
    return [plain_grid(side, side)] * (int(media.visual.sum()) // side**2)


@pytest.mark.parametrize("how", ["decorator", "call"])
def test_it_prunes_as_the_built_in_family_of_the_same_model(how: str) -> None:
    model = build("llava")
    inputs = make_inputs(model, images=(2, 1, 2))
    with vlmprune.wrap(model, vlmprune.FastV(keep=0.4, layer=1)) as pruned:
        logits, kept = model(**inputs).logits, pruned.report.kept
    model.config.model_type = "mine-25"
    with vlmprune.wrap(model, vlmprune.FastV(keep=0.4, layer=1)) as pruned:
        assert torch.equal(model(**inputs).logits, logits)
        assert pruned.report.adapter == "generic"
    if how == "decorator":
        assert vlmprune.register_family(model_type="mine-25")(grids) is grids
    else:
        assert vlmprune.register_family(model_type="mine-25", grids=grids).model_type == "mine-25"
    assert vlmprune.list_families()["mine-25"] == "declared"
    with vlmprune.wrap(model, vlmprune.FastV(keep=0.4, layer=1)) as pruned:
        assert torch.equal(model(**inputs).logits, logits)
        assert all(map(torch.equal, pruned.report.kept, kept))
        assert pruned.report.adapter == "declared"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "llava"}, "'llava' is registered already"),
        ({"model_type": ""}, "config.model_type, got ''"),
        ({"model_type": "two words"}, "config.model_type, got 'two words'"),
        ({"model_type": None}, "config.model_type, got None"),
        ({"vison": "visual"}, "no option 'vison'; did you mean 'vision'"),
        ({"text_model": 3}, "text_model must be a str .*, got 3"),
        ({"deepstack": "yes"}, "deepstack must be a bool .*, got 'yes'"),
        ({"pixels": 3}, "pixels must be a function or left out, got 3"),
        ({"pixel_axis": "tile"}, "pixel_axis='tile' is unknown"),
        ({"grids": [1]}, r"grids must be a function of \(config, media\), got \[1\]"),
    ],
)
def test_a_wrong_declaration_is_one_sentence(options: dict[str, Any], message: str) -> None:
    before = vlmprune.list_families()
    with pytest.raises(VlmpruneError, match=message) as said:
        vlmprune.register_family(**{"model_type": "mine", "grids": grids, **options})
    assert str(said.value).endswith((".", "?"))
    assert vlmprune.list_families() == before


def test_the_table_handed_out_is_a_copy() -> None:
    vlmprune.list_families().clear()
    assert vlmprune.list_families()


@pytest.mark.parametrize("found", [None, 4, [(2, 2)]])
def test_grids_that_returned_something_else(found: Any) -> None:
    model = build("llava")
    inputs = make_inputs(model)
    model.config.model_type = "mine"
    vlmprune.register_family(model_type="mine", grids=lambda config, media: found)
    with vlmprune.wrap(model, "uniform", keep=0.5), pytest.raises(VlmpruneError, match="grids of the family 'mine'"):
        model(**inputs)


def test_an_attribute_that_the_model_lacks() -> None:
    model = build("llava")
    model.config.model_type = "mine"
    vlmprune.register_family(model_type="mine", grids=grids, vision="eyes")
    with pytest.raises(vlmprune.UnsupportedModelError, match="vision='eyes', which a LlavaModel does not have"):
        vlmprune.wrap(model, "uniform")
