"""Families whose images are pruned inside the real vLLM: each equals `vlmprune.wrap` before layer 0."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForImageTextToText

import vlmprune
from tests.serving.vllm_engine import Engine
from tests.support.engines import save_for_vllm
from tests.support.grid import either
from tests.support.saved_families import save
from vlmprune.inputs.chat import build_messages, tokenize
from vlmprune.inputs.processor import load_processor
from vlmprune.serving.in_engine import VIDEOS, family_of

pytestmark = pytest.mark.vllm
TEXT = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}  # vLLM's CPU kernels want multiples of 32
# vLLM counts a window in the tokens that are left; here it is wider than a prompt.
MORE = {"gemma3": {"sliding_window": 256}}
QUESTION = "What colour is the star?"
FAMILIES = ["internvl", "idefics3", "smolvlm", "llava_next", "llava_onevision", "gemma3"]


@pytest.fixture(scope="module", params=either(["internvl"], FAMILIES))
def engine(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = save(request.param, tmp_path_factory.mktemp(request.param), text={**TEXT, **MORE.get(request.param, {})})
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    save_for_vllm(model, folder)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        settings = {"vlmprune": {"keep": 0.4}}
        engine = Engine(folder, model, load_processor(str(folder)), hf_overrides=settings, max_num_batched_tokens=64)
        yield engine
        engine.stop()


def asked(engine: Engine) -> list[tuple[dict[str, Any], dict[str, Any], Any]]:
    """Prompts for the engine, the model's own inputs of them, and the method."""
    # Noise: tokens of equal patches tie, and rounding would choose among them.
    sizes, rng = ((48, 24), (24, 48), (40, 40)), np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (high, wide, 3), dtype=np.uint8)) for wide, high in sizes]
    wanted: list[tuple[list[Any], dict[str, Any]]] = [
        (images[:1], {}), (images[1:2], {"keep": 3}), (images[2:], {"keep": 1.0}), (images[1:2], {"method": "uniform"}),
        (images[:1], {"method": "downsample", "keep": 0.5}),
    ]  # fmt: skip
    if engine.model.config.model_type != "llava_onevision":  # whose several images only vLLM cuts
        wanted.append((images[::2], {"keep": 0.6}))
    out = []
    for shown, options in wanted:
        talk = build_messages(shown, QUESTION)
        text = engine.processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        ids = engine.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        prompt = {"prompt_token_ids": ids, "multi_modal_data": {"image": shown}}
        prompt |= {"mm_processor_kwargs": options} if options else {}
        kind = vlmprune.list_methods()[options.get("method", "divprune")]
        out.append((prompt, dict(tokenize(engine.processor, talk)), kind(keep=options.get("keep", 0.4))))
    return out


def test_pruned_there_is_pruned_here(engine: Engine) -> None:
    wanted = asked(engine)
    for answer, (_, inputs, method) in zip(engine.answers([one[0] for one in wanted]), wanted, strict=True):
        if "token_type_ids" in inputs:  # the CPU build's attention is causal among an image's tokens too
            inputs["token_type_ids"] = torch.zeros_like(inputs["token_type_ids"])
        engine.expect(answer, inputs, method)


def test_videos(engine: Engine) -> None:
    """Clips of several lengths in one batch, two in one prompt, and one beside an image."""
    if engine.model.config.model_type not in VIDEOS:
        pytest.skip("its videos stay whole")
    rng = np.random.default_rng(1)
    short, long, other = (rng.integers(0, 255, (frames, 24, 32, 3), dtype=np.uint8) for frames in (4, 6, 4))
    image = Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))
    wanted: list[tuple[list[Any], list[Any], dict[str, Any]]] = [
        ([short], [], {}), ([long], [], {"keep": 2, "method": "uniform"}), ([short, other], [], {"keep": 0.6}),
        ([long], [image], {"keep": 0.5}), ([long], [], {"keep": 1.0}), ([long], [], {"keep": 0.3, "method": "vidcom2"}),
        ([long], [], {"keep": 0.35, "method": {"name": "divprune", "frames": "even"}}),
        ([long], [], {"keep": 0.5, "method": "temporal"}),
    ]  # fmt: skip
    prompts, expected = [], []
    for clips, images, options in wanted:
        text = f"USER: {'<video>' * len(clips)} and {'<image>' * len(images)} {QUESTION} ASSISTANT:"
        media = {"video": clips, **({"image": images} if images else {})}
        prompt = {"prompt_token_ids": engine.processor.tokenizer(text)["input_ids"], "multi_modal_data": media}
        prompts.append(prompt | ({"mm_processor_kwargs": options} if options else {}))
        shown = {"images": images} if images else {}
        inputs = engine.processor(text=[text], videos=clips, return_tensors="pt", do_sample_frames=False, **shown)
        expected.append(dict(inputs))
    for answer, inputs, (_, _, options) in zip(engine.answers(prompts), expected, wanted, strict=True):
        method = options.get("method", "divprune")
        given = dict(method) if isinstance(method, dict) else {"name": method}
        kind = vlmprune.list_methods()[given.pop("name")]
        engine.expect(answer, inputs, kind(keep=options.get("keep", 0.4), **given))


def test_tokens_that_see_each_other_both_ways(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Gemma 3, with attention as vLLM's other backends have it: in the ranges that vLLM gives them."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, CPUAttentionMetadataBuilder

    if not family_of(engine.model.config).bidirectional:
        pytest.skip("its attention is causal")
    build, forward, seen = CPUAttentionMetadataBuilder.build, CPUAttentionBackendImpl.forward, []

    def with_ranges(self: Any, prefix: int, common: Any, fast_build: bool = False) -> Any:
        made = build(self, prefix, common, fast_build)
        made.ranges = common.mm_req_doc_ranges
        return made

    def both_ways(self: Any, layer: Any, query: Any, key: Any, value: Any, cache: Any, made: Any, **more: Any) -> Any:
        out = forward(self, layer, query, key, value, cache, made, **more)
        if made is None:
            return out
        for number, (start, end) in enumerate(itertools.pairwise(made.query_start_loc.tolist())):
            if end - start == 1:
                continue  # a step of decoding
            assert end - start == made.seq_lens[number]  # a whole prompt
            mask = torch.ones(end - start, end - start).tril().bool()
            for first, last in made.ranges[number]:
                mask[first : last + 1, first : last + 1] = True
                seen.append(last + 1 - first)
            q, k, v = (one[start:end].transpose(0, 1) for one in (query, key, value))
            got = scaled_dot_product_attention(q, k, v, mask, scale=self.scale, enable_gqa=True)
            out[start:end] = got.transpose(0, 1)
        return out

    monkeypatch.setattr(CPUAttentionMetadataBuilder, "build", with_ranges)
    monkeypatch.setattr(CPUAttentionBackendImpl, "forward", both_ways)
    engine.llm.reset_prefix_cache()
    for prompt, inputs, method in asked(engine):
        (answer,) = engine.answers([prompt])
        engine.expect(answer, inputs, method)
        causal = inputs | {"token_type_ids": torch.zeros_like(inputs["token_type_ids"])}
        with pytest.raises(AssertionError):
            engine.expect(answer, causal, method)
    assert set(seen) == {3, 4, 5, 9}  # tokens that stayed of images
