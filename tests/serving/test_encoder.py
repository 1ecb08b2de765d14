"""The encoder keeps what the wrapped model keeps, and never reads the language model."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import vlmprune
import vlmprune.serving
from eval.serving.fleet import table
from tests.support.engines import picture
from tests.support.tiny_families import build, make_inputs, row
from vlmprune.serving import Encoder, engine_arguments, engine_options
from vlmprune.serving.batch_worker import BatchWorker
from vlmprune.serving.tower import SERVED, load_vision

QUESTION = "What colour is the star?"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=sorted(SERVED))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    model = build(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, str(folder)


def test_only_the_tower_is_read(saved: tuple[Any, str]) -> None:
    model, folder = saved
    vision = load_vision(folder)
    names = {name for name, _ in vision.named_parameters()}
    assert names
    assert not [name for name in names if "language_model" in name or "lm_head" in name]
    theirs = dict(model.base_model.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in vision.named_parameters())
    assert not any(value.is_meta for value in vision.parameters())


@pytest.mark.parametrize("method", ["uniform", "random", "divprune", "downsample"])
def test_a_batch_keeps_what_the_wrapped_model_keeps(saved: tuple[Any, str], method: str) -> None:
    model, folder = saved
    inputs = make_inputs(model, images=(1, 2, 1))
    encoder = Encoder(folder, method, processor=object(), keep=0.4)
    with vlmprune.wrap(model, vlmprune.list_methods()[method](keep=0.4)) as pruned:
        model(**inputs)
        kept = pruned.report.kept
    for number, (encoded, theirs) in enumerate(zip(encoder.encode_inputs(inputs), kept, strict=True)):
        starts = torch.tensor([0, *[image.visual for image in encoded.images]]).cumsum(0)
        ours = torch.cat([image.kept + start for image, start in zip(encoded.images, starts, strict=False)])
        assert torch.equal(ours, theirs.cpu())
        alone = encoder.encode_inputs(row(inputs, number))[0]
        assert alone.token_ids == encoded.token_ids
        for one, other in zip(alone.images, encoded.images, strict=True):
            assert torch.equal(one.kept, other.kept)
            torch.testing.assert_close(one.rows, other.rows, rtol=0, atol=1e-5)
        assert sum(token == model.config.image_token_id for token in encoded.token_ids) == len(encoded.images)


def test_methods_that_read_the_tower(pair: Any) -> None:
    large, _, processor = pair
    for method in ("visionzip", "prumerge"):
        encoder = Encoder(large, method, processor=processor, keep=0.2)
        (encoded,) = encoder.encode_many([(picture(0), QUESTION)])
        with vlmprune.wrap(large, vlmprune.list_methods()[method](keep=0.2), processor=processor) as pruned:
            report = pruned.ask(picture(0), QUESTION, max_new_tokens=1).report
        assert torch.equal(encoded.images[0].kept, report.kept[0])


def test_a_guide_of_another_processor(pair: Any) -> None:
    large, small, processor = pair
    own = Encoder(large, "sgl", guide=small, processor=processor, guide_processor=processor, keep=0.2)
    assert own.encode(picture(0), QUESTION)["prompt_token_ids"].count(large.config.image_token_id) == 1


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("fastv", {}, "inside the language model"),
        ("fastv-oracle", {}, "inside the language model"),
        ("var", {}, "inside the language model"),
        ("none", {}, "inside the language model"),
        ("uniform", {"layer": 2}, "layer=2"),
        ("uniform", {"keep": 0}, "keep=0"),
        ("sgl", {}, "needs guide;"),
        ("uniform", {"positions": "other"}, "unknown"),
    ],
)
def test_what_cannot_be_is_said_at_once(pair: Any, method: str, options: dict[str, Any], said: str) -> None:
    large, _, processor = pair
    with pytest.raises(vlmprune.VlmpruneError, match=said):
        Encoder(large, method, processor=processor, **options)


def test_families_and_positions_that_cannot_be_served() -> None:
    with pytest.raises(vlmprune.UnsupportedModelError, match="llava_next"):
        Encoder(build("llava_next"), "uniform")
    with pytest.raises(vlmprune.VlmpruneError, match="'original'"):
        Encoder(build("qwen2_5_vl"), "uniform", positions="compact")


def test_bad_questions(pair: Any) -> None:
    large, _, processor = pair
    encoder = Encoder(large, "uniform", processor=processor)
    for image, question in ((None, QUESTION), ([], QUESTION), (picture(0), " ")):
        with pytest.raises(vlmprune.VlmpruneError):
            encoder.encode(image, question)
    with pytest.raises(vlmprune.VlmpruneError, match="encode_many"):
        encoder.chat_part([picture(0)] * 2, QUESTION)
    with pytest.raises(vlmprune.VlmpruneError, match="processor"):
        Encoder(large, "uniform").encode(picture(0), QUESTION)
    with pytest.raises(vlmprune.VlmpruneError, match="positions end at 2048"):
        encoder.encode([picture(0)] * 11, QUESTION)


def test_how_an_engine_is_started(pair: Any) -> None:
    config = pair[0].config
    assert engine_options(config, "compact", raw_images=0) == {
        "enable_mm_embeds": True, "allowed_media_domains": ["none.invalid"], "limit_mm_per_prompt": {"image": 0}
    }  # fmt: skip
    arguments = ["--enable-mm-embeds", "--allowed-media-domains", "none.invalid", "--hf-overrides"]
    assert engine_arguments(config)[:4] == arguments
    with pytest.raises(vlmprune.VlmpruneError, match="raw_images must be an int >= 0 or None, got -1"):
        engine_options(config, raw_images=-1)


def test_stages_work_on_different_requests_at_once() -> None:
    """Both wait for each other: one stage holds the first request while the other holds the second."""
    meeting = threading.Barrier(2, timeout=300)

    def guide(items: list[int]) -> list[int]:
        if items == [2]:
            meeting.wait()
        return items

    def vision(items: list[int]) -> list[int]:
        if items == [1]:
            meeting.wait()
        return [item * 10 for item in items]

    async def run() -> list[int]:
        first: BatchWorker[int, int] = BatchWorker("first", guide, most=1)
        second: BatchWorker[int, int] = BatchWorker("second", vision, most=1)

        async def both(item: int) -> int:
            return await second.result(await first.result(item))

        return await asyncio.gather(both(1), both(2))

    assert asyncio.run(run()) == [10, 20]


def test_a_stage_takes_what_waits_as_a_batch_and_leaves_out_the_cancelled() -> None:
    started, go, batches = threading.Event(), threading.Event(), []

    def work(items: list[int]) -> list[int]:
        batches.append(items)
        started.set()
        go.wait(300)
        if 13 in items:
            raise RuntimeError("unlucky")
        return items

    async def run() -> list[Any]:
        stage: BatchWorker[int, int] = BatchWorker("test", work, most=4, alike=lambda item: item % 2)
        tasks = [asyncio.create_task(stage.result(0))]
        await asyncio.to_thread(started.wait, 300)
        tasks += [asyncio.create_task(stage.result(item)) for item in (1, 2, 3, 13, 4, 5)]
        await asyncio.sleep(0)  # all wait
        tasks[3].cancel()
        go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(run())
    assert batches == [[0], [1, 13, 5], [1], [13], [5], [2, 4]]
    assert [one for one in found if isinstance(one, int)] == [0, 1, 2, 4, 5]
    assert [type(one) for one in found if not isinstance(one, int)] == [asyncio.CancelledError, RuntimeError]


def test_the_table_of_the_page_is_the_scripts() -> None:
    page = (ROOT / "eval/serving/README.md").read_text()
    assert table() in page
