"""Real vLLM on the CPU: pruned there equals pruned here. `.ci/vllm` installs it; skipped where it is not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

import vlmprune
from tests.serving.payloads import odd_grid, odd_kept, odd_rows, odd_visual
from tests.serving.support import QUESTIONS
from tests.serving.vllm_engine import STEPS, Engine
from tests.support.engines import picture, qwen_for_engine, save_for_vllm
from tests.support.grid import either
from tests.support.tiny_families import make_inputs, row
from vlmprune.inputs.chat import batched, build_messages, prepare
from vlmprune.serving.payload import GRID, KEPT, ROWS, VISUAL

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module", params=["original", "compact"])
def llava(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    large, _, processor = vlmprune.load_tiny()
    folder = save_for_vllm(large, tmp_path_factory.mktemp("llava"), processor)
    engine = Engine(folder, large, processor, request.param)
    yield engine
    engine.stop()


@pytest.fixture(scope="module", params=either(["qwen3_vl"], ["qwen2_5_vl", "qwen3_vl"]))
def qwen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp(request.param)
    model = qwen_for_engine(request.param, folder)
    engine = Engine(folder, model, None, "original")
    yield engine
    engine.stop()


def test_batches_of_different_budgets(llava: Engine) -> None:
    encoder = llava.encoder()
    asked = [(picture(i), QUESTIONS[i % 3]) for i in range(5)]
    # Stock vLLM's LLaVA ends its process where the images of a step have different numbers of rows.
    keeps = [6, 0.25, 3, 1.0, 0.5] if llava.positions == "original" else [0.25] * 5
    encoded = encoder.encode_inputs(encoder.inputs([build_messages(*one) for one in asked]), None, keeps)
    got = llava.answers([one.prompt() for one in encoded])
    for answer, (image, question), keep in zip(got, asked, keeps, strict=True):
        method = vlmprune.DivPrune(keep=keep, positions=llava.positions)
        llava.expect(answer, prepare(llava.processor, image, question), method)


def test_the_two_modes_differ(llava: Engine) -> None:
    """Compared with the other mode's positions the same check fails, so it can."""
    other = {"original": "compact", "compact": "original"}[llava.positions]
    image, question = picture(1), QUESTIONS[0]
    (got,) = llava.answers([llava.encoder().encode(image, question)])
    with pytest.raises(AssertionError):
        llava.expect(got, prepare(llava.processor, image, question), vlmprune.DivPrune(keep=0.25, positions=other))


def test_guided(llava: Engine) -> None:
    _, small, _ = vlmprune.load_tiny()
    encoder = llava.encoder("sgl", guide=small, keep=0.18)
    method = vlmprune.SGL(small, keep=0.18, layer=0, positions=llava.positions)
    for number in range(3):
        image, question = picture(number), QUESTIONS[number]
        (got,) = llava.answers([encoder.encode(image, question)], ends=True)
        llava.expect(got, prepare(llava.processor, image, question), method, max_new_tokens=64)


def test_two_images_in_a_prompt(llava: Engine) -> None:
    images, question = [picture(1), picture(2)], QUESTIONS[0]
    (got,) = llava.answers([llava.encoder(keep=5).encode(images, question)])
    method = vlmprune.DivPrune(keep=5, positions=llava.positions)
    llava.expect(got, prepare(llava.processor, images, question), method)


def test_raw_and_pruned_in_one_batch(llava: Engine) -> None:
    image, question = picture(3), QUESTIONS[1]
    pruned = llava.encoder().encode(image, question)
    inputs = prepare(llava.processor, image, question)
    raw = {"prompt_token_ids": pruned["prompt_token_ids"], "multi_modal_data": {"image": image}}
    text = {"prompt_token_ids": llava.processor.tokenizer(QUESTIONS[2])["input_ids"]}
    got = llava.answers([raw, pruned, text, raw, pruned])
    for at in (0, 3):
        llava.expect(got[at], inputs, vlmprune.Uniform(keep=1.0))
    for at in (1, 4):
        llava.expect(got[at], inputs, vlmprune.DivPrune(keep=0.25, positions=llava.positions))


def test_prefix_caching_tells_pruned_images_apart(llava: Engine) -> None:
    """The same ids each time: the cache may only be used where rows and places are the same."""
    image, question = picture(4), QUESTIONS[0]
    inputs = prepare(llava.processor, image, question)
    for method in ("divprune", "uniform", "random", "divprune", "uniform"):
        prompt = llava.encoder(method, keep=70).encode(image, question)
        (got,) = llava.answers([prompt])
        made = vlmprune.list_methods()[method](keep=70, positions=llava.positions)
        llava.expect(got, inputs, made)


def test_equal_rows_at_other_places_are_not_the_same_image(llava: Engine) -> None:
    if llava.positions == "compact":
        pytest.skip("compact positions have no places")
    encoder, image, question = llava.encoder("uniform", keep=70), picture(5), QUESTIONS[0]
    prompt, moved = encoder.encode(image, question), encoder.encode(image, question)
    data = moved["multi_modal_data"]["image"]
    data["kept"] = [torch.arange(70)]
    first, second, again = (llava.answers([one])[0] for one in (prompt, moved, prompt))
    assert first[1][0] != second[1][0]
    assert first == again


def test_bad_embeddings_are_refused_and_the_engine_lives(llava: Engine) -> None:
    encoder, image, question = llava.encoder(), picture(6), QUESTIONS[0]
    good = encoder.encode(image, question)
    before = llava.answers([good])

    def broken(change: Any) -> dict[str, Any]:
        prompt = encoder.encode(image, question)
        data = prompt["multi_modal_data"]["image"]
        rows = data["image_embeds"] if isinstance(data, dict) else data
        rows[0] = change(rows[0].clone())
        return prompt

    changes = [lambda rows: rows[:, :-1]]
    if llava.positions == "original":  # stock vLLM looks at the width alone; the proxy and the encoder look before it
        changes += [lambda rows: rows.fill_(float("nan")), lambda rows: rows[:-1]]
    for change in changes:
        with pytest.raises(ValueError, match=r"embedding|kept|hidden"):
            llava.answers([broken(change)])
    assert llava.answers([good]) == before


def test_qwen_with_several_axes(qwen: Engine) -> None:
    inputs = make_inputs(qwen.model, images=(1, 2, 1))
    encoder = qwen.encoder("divprune", keep=0.4)
    got = qwen.answers([one.prompt() for one in encoder.encode_inputs(inputs)])
    for number, answer in enumerate(got):
        qwen.expect(answer, row(inputs, number), vlmprune.DivPrune(keep=0.4))


def test_qwen_raw_and_pruned_in_one_batch(qwen: Engine) -> None:
    processor = AutoProcessor.from_pretrained(qwen.folder)
    text = "w11 <|vision_start|><|image_pad|><|vision_end|> w12 w13"
    image = picture(2).crop((0, 0, 48, 32))
    inputs = dict(processor(text=[text], images=[image], return_tensors="pt"))
    pruned = qwen.encoder("divprune", keep=0.4).encode_inputs(inputs)[0].prompt()
    raw = {**pruned, "multi_modal_data": {"image": image}}
    got = qwen.answers([raw, pruned, raw, pruned])
    for at, method in enumerate((vlmprune.Uniform(keep=1.0), vlmprune.DivPrune(keep=0.4)) * 2):
        qwen.expect(got[at], inputs, method)
    assert got[0] != got[1]


def test_qwen_rows_of_another_width_are_refused(qwen: Engine) -> None:
    """For Qwen3-VL that is also the embedding alone, without the levels that DeepStack adds."""
    encoder, inputs = qwen.encoder("uniform", keep=0.4), make_inputs(qwen.model, images=(1,), text_lengths=(6,))
    before = qwen.answers([encoder.encode_inputs(inputs)[0].prompt()])
    width, rows = encoder.tower.width, encoder.tower.row_width
    assert rows == width * (3 if qwen.model.config.model_type == "qwen3_vl" else 1)
    for wrong in {rows - 1, width} - {rows}:
        prompt = encoder.encode_inputs(inputs)[0].prompt()
        data = prompt["multi_modal_data"]["image"]
        data["image_embeds"] = [one[:, :wrong] for one in data["image_embeds"]]
        with pytest.raises(ValueError, match="embedding"):
            qwen.answers([prompt])
    assert qwen.answers([encoder.encode_inputs(inputs)[0].prompt()]) == before


def test_qwen_mutated_fields_are_refused(qwen: Engine) -> None:
    """Grids above all: vLLM makes as many placeholders of one as it says."""
    encoder, inputs = qwen.encoder("uniform", keep=0.4), make_inputs(qwen.model, images=(1,), text_lengths=(6,))

    def prompt() -> dict[str, Any]:
        return encoder.encode_inputs(inputs)[0].prompt()

    before, rng = qwen.answers([prompt()]), random.Random(0)
    for _ in range(100):
        made = prompt()
        data = {name: list(column) for name, column in made["multi_modal_data"]["image"].items()}
        rows, kept, visual, grid = (data[name][0] for name in (ROWS, KEPT, VISUAL, GRID))
        name = rng.choice([ROWS, KEPT, VISUAL, GRID, GRID])
        if name == GRID:
            odd = odd_grid(rng, grid)
        elif name == ROWS:
            odd = odd_rows(rng, rows)
        else:
            odd = odd_kept(rng, kept, int(visual)) if name == KEPT else odd_visual(rng, int(visual), len(kept))
        made["multi_modal_data"]["image"] = {**data, name: [odd]}
        with pytest.raises(ValueError, match=r"image|visual|kept|grid"):
            qwen.answers([made])
    huge = torch.tensor([[1000, 1000, 1000]])
    whole = {ROWS: [torch.zeros(6, encoder.tower.row_width)], GRID: huge}  # as stock vLLM takes them
    video = {"video_embeds": torch.zeros(6, encoder.tower.row_width), "video_grid_thw": huge}
    for data in ({"image": whole}, {"video": video}):
        with pytest.raises(ValueError, match=r"grid|video"):
            qwen.answers([{**prompt(), "multi_modal_data": data}])
    assert qwen.answers([prompt()]) == before


def test_a_batch_here_is_a_batch_there(llava: Engine) -> None:
    asked = [(picture(i), QUESTIONS[i % 3]) for i in range(4)]
    encoder = llava.encoder("uniform")
    prompts = [one.prompt() for one in encoder.encode_many(asked)]
    alone = [llava.answers([prompt])[0][0] for prompt in prompts]
    assert [tokens for tokens, _ in llava.answers(prompts)] == alone
    inputs = batched(llava.processor, [build_messages(*one) for one in asked])
    with vlmprune.wrap(llava.model, vlmprune.Uniform(keep=0.25, positions=llava.positions)):
        out = llava.model.generate(**inputs, max_new_tokens=STEPS, eos_token_id=None, do_sample=False)
    assert out[:, inputs["input_ids"].shape[1] :].tolist() == alone
