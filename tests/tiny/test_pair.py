"""The bundled pair: it loads without a network, fits its size, and packed training equals asking one by one."""

from __future__ import annotations

import pytest
import torch

import vlmprune
from demos.tiny_vlm.labels import patch_cover
from demos.tiny_vlm.language import patch_shares, share_loss
from demos.tiny_vlm.packing import IDS, answer_logits, encode_text, pack
from demos.tiny_vlm.questions import Question, benchmark
from demos.tiny_vlm.scenes import make_scene, render
from demos.tiny_vlm.tower import encode, pixels
from demos.tiny_vlm.vocabulary import GRID
from vlmprune.inputs.chat import prepare
from vlmprune.tiny import WEIGHTS, example


@pytest.fixture(scope="module")
def pair() -> tuple:
    return vlmprune.load_tiny()


def test_weights_are_small_and_safe() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl")]


def test_towers_are_equal_so_that_they_can_share_a_vision_pass(pair: tuple) -> None:
    large, small, _ = pair
    other = small.model.vision_tower.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in large.model.vision_tower.state_dict().items())


def test_the_quick_encoder_reads_as_the_tokenizer(pair: tuple) -> None:
    tokenizer = pair[2].tokenizer
    for family in ("count", "digit", "judge", "caption"):
        for _, question in benchmark(family, 10, "validation"):
            assert tokenizer(question.text, add_special_tokens=False)["input_ids"] == encode_text(question.text)


@pytest.mark.parametrize("which", [0, 1], ids=["large", "small"])
def test_packed_questions_equal_the_stock_model_asked_one_by_one(pair: tuple, which: int) -> None:
    model, processor = pair[which], pair[2]
    (scene, first), (_, second) = list(benchmark("colour", 2, "validation", per_scene=2))[:2]
    questions = [first, Question("count", "How many circles are there?", "3"), second]
    places = torch.arange(GRID * GRID)[None]
    with torch.no_grad():
        features = encode(model.model.vision_tower, pixels([render(scene)]), places)[:, 1:]
        packed = pack([questions], places)
        logits = answer_logits(model, features, packed)
        for question, (_, start, end) in zip(questions, packed.answers, strict=True):
            inputs = prepare(processor, scene.image(), question.text)
            answer = torch.tensor([[*encode_text(question.answer), IDS["<eos>"]]])
            inputs["input_ids"] = torch.cat([inputs["input_ids"], answer[:, :-1]], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            alone = model(**inputs).logits[0, -answer.shape[1] :]
            assert torch.allclose(alone, logits[start:end], atol=2e-4)


def test_both_models_answer_far_above_chance(pair: tuple) -> None:
    large, small, processor = pair
    for model in (large, small):
        with vlmprune.wrap(model, "none", processor=processor) as handle:
            asked = list(benchmark("digit", 12, "validation"))
            right = [handle.ask(scene.image(), q.text, max_new_tokens=3).text == q.answer for scene, q in asked]
        assert sum(right) >= 5  # chance is one in ten


def test_the_bundled_example_is_answered_rightly(pair: tuple) -> None:
    large, _, processor = pair
    image, question = example()
    with vlmprune.wrap(large, "none", processor=processor) as handle:
        assert handle.ask(image, question).text


def test_the_plain_model_answers_within_off(pair: tuple) -> None:
    large, _, processor = pair
    image, question = example()
    with vlmprune.wrap(large, "fastv", keep=0.1, processor=processor) as handle, handle.off():
        answer = handle.ask(image, question)
    assert (answer.text, answer.report) == ("black", None)


def test_unknown_words_warn(pair: tuple) -> None:
    large, _, processor = pair
    handle = vlmprune.wrap(large, "fastv", keep=0.5, processor=processor)
    with handle, pytest.warns(UserWarning, match="'zebra'"):
        handle.ask(example()[0], "Is there a zebra ?")


def test_a_patch_that_knows_its_share_of_a_thing_costs_nothing() -> None:
    cover, owner = patch_cover(make_scene(3, window=(2, 3, 9, 10)))
    shares = torch.from_numpy(patch_shares(cover.reshape(-1), owner.reshape(-1)))[None]
    assert torch.allclose(shares.sum(), shares.sum().round(), atol=1e-5)  # every thing's shares add up to one
    known = torch.where(shares > 0, (shares.clamp_min(1e-9).log().clamp_min(-5) + 2) / 6, 0)[..., None]
    signs, rest = torch.tensor([1.0, 1, -1, -1]).repeat(6), torch.tensor([1.0, -1, 1, -1]).repeat(6)
    visual = known * signs + (1 - known**2).sqrt() * rest  # root mean square 1
    assert share_loss(visual, shares) < 1e-8
    assert share_loss(7 * visual, shares) < 1e-8  # as the next layer's norm sees it
    assert share_loss(visual.roll(1, dims=1), shares) > 0.1
