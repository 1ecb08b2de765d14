"""The generic adapter on models that see pixels: tower and projector run, nothing is handed over."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.utils._pytree import tree_map_only

import vlmprune
from tests.guide.test_inputs import check_samples
from tests.support.exactness import assert_exact
from tests.support.generic.common import IMAGE
from tests.support.generic.towers import TOWERS, build_tower_model, make_pixel_inputs
from tests.support.grid import either, grid
from vlmprune import SGL, VlmpruneError
from vlmprune.families import Media, family_of, generic
from vlmprune.families.generic import grids
from vlmprune.flow.locate import dealt, plain_grid
from vlmprune.guide.inputs import take_samples

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
STEPS = 7
AWAITED: set[str] = set()
TYPES = sorted(TOWERS.keys() - AWAITED)
EXITING = [name for name in TYPES if name != "janus"]  # whose generate drops logits processors


def units(inputs, name):
    """What the tower encodes for itself, per sample: `counts` of visual tokens, or `grids`."""
    return [[one for image in own for one in getattr(image, name)] for own in inputs.samples]


def reported(report):
    """(t, h, w) of every image in a report, None where no token's place is known."""
    return [[None if bool(span.xy.isnan().all()) else span.grid for span in spans] for spans in report.images]


@grid(model_type=TYPES, attn=["sdpa", "eager"], layer=[0, 2])
def test_pruned_equals_masked(model_type, attn, layer):
    model = build_tower_model(model_type, attn=attn)
    inputs = make_pixel_inputs(model)
    report = assert_exact(model, inputs, vlmprune.Uniform(keep=0.4, layer=layer), layer)
    assert report.adapter == "generic"
    assert [[span.count for span in spans] for spans in report.images] == units(inputs, "counts")
    assert reported(report) == units(inputs, "grids")
    assert report.seconds["vision"] > 0


@pytest.mark.parametrize("model_type", TYPES)
def test_the_towers_own_features_handed_over_change_nothing(model_type):
    model = build_tower_model(model_type)
    inputs = make_pixel_inputs(model)
    names = inspect.signature(model.base_model.get_image_features).parameters.keys() & inputs.keys()
    with torch.no_grad():
        features = model.base_model.get_image_features(**{name: inputs[name] for name in names})
        rest = {name: value for name, value in inputs.items() if not name.startswith(("pixel", "high_res_pixel"))}
        with vlmprune.wrap(model, vlmprune.Uniform(keep=0.4, layer=1)) as pruned:
            seen = model(**inputs).logits[:, -1]
            report = pruned.report
            handed = model(**rest, mm_encoder_outputs={"image": features}).logits[:, -1]
            again = pruned.report
    assert torch.equal(seen, handed)
    assert all(torch.equal(a, b) for a, b in zip(report.kept, again.kept, strict=True))
    assert reported(report) == reported(again)


@pytest.mark.parametrize("model_type", TYPES)
def test_what_needs_places_has_them_or_says_so(model_type):
    model = build_tower_model(model_type)
    inputs = make_pixel_inputs(model)
    known = all(one is not None for own in units(inputs, "grids") for one in own)
    with vlmprune.wrap(model, vlmprune.Downsample(keep=0.4)) as pruned:
        if known:
            model(**inputs)
            assert all(
                0 < len(kept) < sum(own) for kept, own in zip(pruned.report.kept, units(inputs, "counts"), strict=True)
            )
        else:
            with pytest.raises(VlmpruneError, match="needs to know where visual tokens lie in the image"):
                model(**inputs)


@pytest.mark.parametrize("model_type", ["deepseek_vl", "lighton_ocr", "mistral3", "qianfan_ocr"])
def test_images_that_touch_are_told_apart(model_type):
    model = build_tower_model(model_type)
    inputs = make_pixel_inputs(model, touching=True)
    with vlmprune.wrap(model, vlmprune.Uniform(keep=0.4)) as pruned:
        model(**inputs)
        assert [[span.count for span in spans] for spans in pruned.report.images] == units(inputs, "counts")
        assert reported(pruned.report) == units(inputs, "grids")


def test_sizes_that_are_not_given_are_not_guessed():
    """Mistral 3's tower takes images of any size: 4 tokens may be 2 x 2 or 1 x 4."""
    model = build_tower_model("mistral3")
    visual = torch.ones(1, 4, dtype=torch.bool)
    unknown, flat = (
        grids(model.config, Media({"feature_rows": [4], **sizes}, visual=visual))
        for sizes in ({}, {"image_sizes": torch.tensor([[8, 32]])})
    )
    assert bool(unknown[0].xy.isnan().all())
    assert flat[0].grid == (1, 1, 4)


# --- a guide, and samples that exit ----------------------------------------------------------------------------------


@grid(model_type=either(TYPES[::4], TYPES), images=[(0, 1, 2), (2, 1, 0)])
def test_each_sample_takes_its_own_pixels(model_type, images):
    model = build_tower_model(model_type)
    check_samples(model, make_pixel_inputs(model, images, (5, 8, 6)))


def guide_of(model_type: str):
    """A small model of the type that never writes an image token."""
    small = build_tower_model(model_type, seed=1)
    with torch.no_grad():
        small.get_output_embeddings().weight[IMAGE:] = 0
    return small


@grid(
    model_type=either(EXITING[::5], EXITING),
    leaving=[1, 2],
    images=[(1, 2, 1), (2, 1, 1), (0, 1, 2)],
    shared=[False, True],
)
def test_samples_that_exit_take_their_pixels_with_them(model_type, leaving, images, shared):
    """The others' answers are those without exits, also where the tower's outputs are the guide's."""
    model, small = build_tower_model(model_type), guide_of(model_type)
    if shared:
        tower = family_of(small).vision_tower
        tower(model).load_state_dict(tower(small).state_dict())
    inputs = make_pixel_inputs(model, images, (5, 8, 6))
    options = {"max_new_tokens": 3, "do_sample": False}
    theirs = small.generate(**inputs, **options)[:, -3:]
    with vlmprune.wrap(model, SGL(small, keep=0.4)) as pruned:
        ours = model.generate(**inputs, **options)[:, -3:]
        never = pruned.report
    sure = [(a + b) / 2 for a, b in zip(never.confidence, never.consistency, strict=True)]
    with vlmprune.wrap(model, SGL(small, keep=0.4, exit_at=sorted(sure)[-leaving])) as pruned:
        out = model.generate(**inputs, **options)[:, -3:]
        some = pruned.report
    assert sum(some.exited) == leaving
    for i, gone in enumerate(some.exited):
        assert torch.equal(out[i], (theirs if gone else ours)[i])
        assert some.kept_tokens[i] == (0 if gone else never.kept_tokens[i])


def test_without_a_tower_to_be_found_nothing_is_timed_or_shared(monkeypatch):
    monkeypatch.setattr(generic, "_TOWERS", ())
    model, small = build_tower_model("lighton_ocr"), guide_of("lighton_ocr")
    inputs = make_pixel_inputs(model)
    options = {"max_new_tokens": 3, "do_sample": False}
    theirs = small.generate(**inputs, **options)
    with vlmprune.wrap(model, SGL(small, keep=0.4)) as pruned:
        model.generate(**inputs, **options)
        never = pruned.report
    sure = [(a + b) / 2 for a, b in zip(never.confidence, never.consistency, strict=True)]
    with vlmprune.wrap(model, SGL(small, keep=0.4, exit_at=max(sure))) as pruned:
        out = model.generate(**inputs, **options)
        some = pruned.report
    assert "vision" not in {**never.seconds, **some.seconds}
    assert sum(some.exited) == 1
    assert torch.equal(out[some.exited], theirs[some.exited])


def test_a_guides_grid_is_that_of_the_sizes_before_any_tower_ran():
    """Mistral 3 ends each row of tokens with another id: a foreign guide's two images must not meet rows."""
    model = build_tower_model("mistral3")
    inputs = make_pixel_inputs(model)
    found = grids(model.config, Media({"image_sizes": inputs["image_sizes"]}, visual=inputs["input_ids"] == IMAGE))
    assert [one.grid for one in found] == [(1, 2, 3), (1, 3, 2), (1, 2, 2)]


def test_pixels_that_cannot_be_dealt_out_are_refused():
    model = build_tower_model("aya_vision")
    layouts = [dealt(torch.arange(9), [plain_grid(3, 3)]) for _ in range(2)]
    inputs = {"input_ids": torch.zeros(2, 12, dtype=torch.long), "pixel_values": torch.zeros(5, 3, 24, 24)}
    with pytest.raises(VlmpruneError, match="pixel_values has 5 rows"):
        take_samples(family_of(model), model.config, inputs, [1], layouts)


def features_of(model, inputs):
    """[N, D]: what the tower makes of all images, in the order of their tokens."""
    names = inspect.signature(model.base_model.get_image_features).parameters.keys() & inputs.keys()
    with torch.no_grad():
        out = model.base_model.get_image_features(**{name: inputs[name] for name in names}).pooler_output
    return torch.cat(list(out)) if isinstance(out, list | tuple) else out.flatten(0, -2)


# Not GOT-OCR 2, whose tokens overlap: convolutions of 3 x 3 with stride 2 make them.
SQUARE = ["aya_vision", "cohere2_vision", "deepseek_vl", "janus", "lighton_ocr", "mistral3", "ovis2",
          "qianfan_ocr", "video_llava", "vipllava"]  # fmt: skip


@pytest.mark.parametrize("model_type", SQUARE)
def test_a_token_lies_where_its_pixels_are(model_type):
    """Of all tokens the one said to lie there changes when the pixels of its cell do; the tower's attention, which
    would carry that on to others, gives nothing here."""
    model = build_tower_model(model_type)
    for module in family_of(model).vision_tower(model).modules():
        if type(module).__name__.endswith("Attention"):
            module.register_forward_hook(
                lambda module, args, output: tree_map_only(torch.Tensor, torch.zeros_like, output)
            )
    inputs = make_pixel_inputs(model, (1,), (5,))
    [[(_, rows, cols)]] = units(inputs, "grids")
    before = features_of(model, inputs)
    name = next(name for name in inputs if name.startswith("pixel_values"))
    high, wide = (size // cells for size, cells in zip(inputs[name].shape[-2:], (rows, cols), strict=True))
    for token in range(rows * cols):
        y, x = divmod(token, cols)
        changed = inputs[name].clone()
        changed[..., y * high : (y + 1) * high, x * wide : (x + 1) * wide] += 1.0
        moved = (features_of(model, {**inputs, name: changed}) - before).norm(dim=1)
        assert moved.nonzero().flatten().tolist() == [token]
