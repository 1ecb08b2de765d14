"""The last token of a prompt stays, also where it is visual: the next token is read from its row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import vlmprune
from tests.support.planted import Planted
from tests.support.reference import staged_logits, visual_slots
from tests.support.running import assert_near, generate, reference, shared
from tests.support.tiny_families import FAMILIES, IMAGE, Inputs, build, make_inputs, of_ids, padded, row
from vlmprune.flow.locate import ImageGrid, ImageSpan, SampleLayout, no_place
from vlmprune.flow.select import Selection, count_for, top_k_per_image, with_last
from vlmprune.methods.base import Pruner, PruningContext
from vlmprune.methods.registry import CLASSES

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ROWS = [f for f in FAMILIES if f != "mllama"]
KEEP = 0.4


def ending_in_its_image(model: Any, side: str = "left") -> Inputs:
    """The first and the last prompt end with their last visual token, the second with text."""
    inputs = make_inputs(model)
    texts = iter([False, True, False])

    def cut(ids: Tensor) -> Tensor:
        return ids if next(texts) else ids[: int((ids == IMAGE).nonzero()[-1]) + 1]

    return padded(of_ids(inputs, cut), side)


@dataclass(frozen=True)
class First(Pruner):
    """A user's method that selects by itself: the first tokens of every image."""

    def select(self, prompt: PruningContext) -> Selection:
        return Selection(
            [
                torch.cat([span.positions[: count_for(self.keep, span.count)] for span in layout.images])
                for layout in prompt.layouts
            ]
        )


@dataclass(frozen=True)
class Early(Pruner):
    """A user's method that scores: the earlier the better, in whole numbers."""

    name: ClassVar[str] = ""

    def score(self, prompt: PruningContext) -> list[Tensor]:
        return [-torch.arange(layout.count) for layout in prompt.layouts]


METHODS = {
    "first": First(KEEP, layer=2),
    "early": Early(KEEP, layer=0),
    "random": vlmprune.Random(KEEP),
    "uniform": vlmprune.Uniform(KEEP, layer=1),
    "downsample": vlmprune.Downsample(KEEP, layer=1),
    "fastv": vlmprune.FastV(KEEP),
    "knorm": vlmprune.KNorm(KEEP),
    "dart": vlmprune.Dart(KEEP),
    "divprune": vlmprune.DivPrune(KEEP),
    "cdpruner": vlmprune.CDPruner(KEEP),
    "scope": vlmprune.Scope(KEEP),
    "mmtok": vlmprune.MMTok(KEEP),
    "pyramiddrop": vlmprune.PyramidDrop(KEEP, layer=1),
    "sparsevlm": vlmprune.SparseVLM(KEEP),
    "visionzip": vlmprune.VisionZip(KEEP),
    "prumerge": vlmprune.PruMerge(KEEP),
    "fastv-oracle": vlmprune.FastVOracle(KEEP),
    "temporal": vlmprune.Temporal(KEEP),
    "framefusion": vlmprune.FrameFusion(KEEP),
    "vidcom2": vlmprune.VidCom2(KEEP),
    "fastvid": vlmprune.FastVID(KEEP),
    "holitom": vlmprune.HoliTom(KEEP),
    "semantic": vlmprune.Semantic(KEEP),
}


def test_every_registered_pruner_is_here():
    assert {method.name for method in CLASSES if issubclass(method, Pruner)} - {"sgl"} <= set(METHODS)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_it(name, side):
    model = shared("llava")
    inputs = ending_in_its_image(model, side)
    visual = [len(slots) for slots in visual_slots(model, inputs)]
    most = max(1, int(KEEP * 9 + 0.5))
    with vlmprune.wrap(model, METHODS[name]) as pruned, torch.no_grad():
        model(**inputs)
        report = pruned.report
    for i, kept in enumerate(report.kept):
        assert torch.equal(kept, kept.unique())
        assert len(kept) == most or (name in ("downsample", "prumerge") and 0 < len(kept) <= most)
        assert i == 1 or int(kept[-1]) == visual[i] - 1
    if name in ("first", "early"):
        assert [kept.tolist() for kept in report.kept] == [[0, 1, 2, 8], [0, 1, 2, 3], [0, 1, 2, 8]]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ROWS)
def test_the_next_token_is_read_from_it(family, side):
    """A plan that drops it: the logits are those of the masked model that keeps it in the place of the last one."""
    model = shared(family)
    inputs = ending_in_its_image(model, side)
    visual = [len(slots) for slots in visual_slots(model, inputs)]
    plan = tuple((0, 2, 3) for _ in visual)
    kept = [[0, 2, v - 1] if i != 1 else [0, 2, 3] for i, v in enumerate(visual)]
    with vlmprune.wrap(model, Planted(plan=plan, layer=1)) as pruned:
        if side == "left":
            # Steps after a prompt that ends in an image stand elsewhere in transformers' Qwen than its own
            # get_rope_index puts them, pruned or not.
            steps = 1 if family.startswith("qwen") else 4
            logits, out = generate(model, inputs, steps=steps)
        else:
            with torch.no_grad():
                logits = model(**inputs, logits_to_keep=1).logits
        assert [some.tolist() for some in pruned.report.kept] == kept
    if side == "left":
        assert_near(logits, reference(model, inputs, kept, 1, steps, out.sequences[:, -steps:]))
        return
    full = staged_logits(model, inputs, [(1, kept, None)])
    assert_near(logits[:, 0], full[torch.arange(3), inputs["attention_mask"].sum(1) - 1])


def test_without_a_cache_the_prompt_ends_where_it_did():
    """What was generated stands behind it then, and changes nothing."""
    model = shared("llava")
    inputs = ending_in_its_image(model)
    for method in (First(KEEP, layer=1), vlmprune.FastV(KEEP), vlmprune.Random(KEEP), vlmprune.CDPruner(KEEP)):
        with vlmprune.wrap(model, method):
            cached, _ = generate(model, inputs, steps=4, suppress_tokens=[IMAGE])
            again, _ = generate(model, inputs, steps=4, suppress_tokens=[IMAGE], use_cache=False)
        assert_near(again, cached)


@pytest.mark.parametrize("method", ["first", "downsample", "visionzip"])
def test_it_keeps_its_own_state_where_others_merge(method):
    model = shared("llava")
    inputs = row(ending_in_its_image(model), 0)
    entering: list[Tensor] = []
    with vlmprune.wrap(model, type(METHODS[method])(keep=2, layer=1)):
        layer = model.model.language_model.layers
        hooks = [
            layer[i].register_forward_pre_hook(lambda m, args, kwargs: entering.append(args[0]), with_kwargs=True)
            for i in (0, 1)
        ]
        with torch.no_grad():
            out = model.model.language_model.layers[0].register_forward_hook(
                lambda m, args, output: entering.append(output[0] if isinstance(output, tuple) else output)
            )
            model(**inputs)
        for hook in [*hooks, out]:
            hook.remove()
    assert entering[2].shape[1] < entering[1].shape[1]
    assert torch.equal(entering[2][:, -1], entering[1][:, -1])


def test_with_several_images_only_the_last_gives_up_a_place():
    model = shared("llava")
    inputs = make_inputs(model, images=(2, 1, 2))
    inputs = of_ids(inputs, lambda ids: ids[: int((ids == IMAGE).nonzero()[-1]) + 1])
    with vlmprune.wrap(model, Early(keep=3)) as pruned, torch.no_grad():
        model(**inputs)
        assert [kept.tolist() for kept in pruned.report.kept] == [
            [0, 1, 2, 9, 10, 17],
            [0, 1, 8],
            [0, 1, 2, 9, 10, 17],
        ]


def test_a_guide_ranks_by_the_last_token_where_no_text_stands_behind_the_image():
    """Without any row of text all importance would be 0, and the first tokens would stay."""
    model, guide = shared("llava"), build("llava", seed=3)
    inputs = row(ending_in_its_image(model), 0)
    eager = build("llava", seed=3, attn="eager")
    with torch.no_grad():
        maps = eager(**inputs, output_attentions=True).attentions
    slots = visual_slots(model, inputs)[0]
    received = sum(layer[0, :, -1].sum(0) for layer in maps)[slots]
    received[-1] = float("inf")
    with vlmprune.wrap(model, vlmprune.SGL(guide=guide, keep=3, layer=0)) as pruned, torch.no_grad():
        model(**inputs)
        assert pruned.report.kept[0].tolist() == received.topk(3).indices.sort().values.tolist()


def test_a_prompt_of_an_image_alone():
    """Methods that ask for the question get the last token, as there is nothing else."""
    model = shared("llava")
    inputs = of_ids(make_inputs(model), lambda ids: ids[ids == IMAGE])
    for name in ("cdpruner", "dart", "sparsevlm", "fastv"):
        with vlmprune.wrap(model, METHODS[name]) as pruned, torch.no_grad():
            assert torch.isfinite(model(**inputs).logits).all()
            assert all(int(kept[-1]) == 8 for kept in pruned.report.kept)


# --- the mechanism, without a model ---------------------------------------------------------------------------------


def layout(*counts: int, ends: bool) -> SampleLayout:
    spans, start = [], 0
    for number, count in enumerate(counts):
        last = ends and number == len(counts) - 1
        spans.append(
            ImageSpan(number, torch.arange(start, start + count), count, (1, 1, count), no_place(count), ends=last)
        )
        start += count
    return SampleLayout(torch.arange(start) + 3, tuple(spans))


def test_top_k_ranks_it_first():
    images = layout(4, 4, ends=True).images
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0, 4.0, 3.0, 2.0, 1.0])
    assert top_k_per_image(scores, images, [2, 2]).tolist() == [0, 1, 4, 7]
    assert top_k_per_image(scores, layout(4, 4, ends=False).images, [2, 2]).tolist() == [0, 1, 4, 5]
    assert scores.tolist() == [4.0, 3.0, 2.0, 1.0] * 2  # a method's own scores are left as they are
    assert ImageGrid((1, 1, 4), no_place(4)).count == 4


def test_a_selection_gives_up_its_last_place():
    hidden = torch.arange(24.0).view(2, 12, 1)
    both = [layout(4, 4, ends=True), layout(4, 4, ends=False)]
    chosen = Selection([torch.tensor([0, 5, 6]), torch.tensor([0, 5, 6])], [torch.full((3, 1), -1.0)] * 2)
    made = with_last(chosen, both, hidden)
    assert [kept.tolist() for kept in made.kept] == [[0, 5, 7], [0, 5, 6]]
    assert made.merged is not None
    assert [states[:, 0].tolist() for states in made.merged] == [[-1.0, -1.0, 10.0], [-1.0] * 3]
