"""Families whose images are pruned inside the real vLLM: each equals `vlmprune.wrap` before layer 0."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

import vlmprune
from tests.serving.vllm_engine import Engine
from tests.support.engines import save_for_vllm
from tests.support.grid import either
from tests.support.saved_families import save
from vlmprune.inputs.chat import build_messages, tokenize
from vlmprune.inputs.processor import load_processor

pytestmark = pytest.mark.vllm
TEXT = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}  # vLLM's CPU kernels want multiples of 32
# LLaVA-NeXT's newline tokens are all equal: divprune's choice among six of them is one of rounding.
DEFAULT = {"llava_next": "uniform"}
QUESTION = "What colour is the star?"
FAMILIES = ["internvl", "idefics3", "smolvlm", "llava_next", "llava_onevision"]


@pytest.fixture(scope="module", params=either(["internvl"], FAMILIES))
def engine(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = save(request.param, tmp_path_factory.mktemp(request.param), text=TEXT)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    save_for_vllm(model, folder)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        settings = {"vlmprune": {"keep": 0.4, "method": DEFAULT.get(request.param, "divprune")}}
        engine = Engine(folder, model, load_processor(str(folder)), hf_overrides=settings, max_num_batched_tokens=64)
        yield engine
        engine.stop()


def test_pruned_there_is_pruned_here(engine: Engine) -> None:
    # Noise: tokens of equal patches tie, and rounding would choose among them.
    sizes, rng = ((48, 24), (24, 48), (40, 40)), np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (high, wide, 3), dtype=np.uint8)) for wide, high in sizes]
    asked: list[tuple[Any, dict[str, Any]]] = [
        (images[0], {}), (images[1], {"keep": 3}), (images[2], {"keep": 1.0}), (images[1], {"method": "uniform"}),
        (images[0], {"method": "downsample", "keep": 0.5}),
    ]  # fmt: skip
    prompts, expected = [], []
    for image, options in asked:
        talk = build_messages(image, QUESTION)
        text = engine.processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        ids = engine.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        prompt = {"prompt_token_ids": ids, "multi_modal_data": {"image": image}}
        prompts.append({**prompt, **({"mm_processor_kwargs": options} if options else {})})
        expected.append(dict(tokenize(engine.processor, talk)))
    for answer, inputs, (_, options) in zip(engine.answers(prompts), expected, asked, strict=True):
        usual = DEFAULT.get(engine.model.config.model_type, "divprune")
        kind = vlmprune.list_methods()[options.get("method", usual)]
        engine.expect(answer, inputs, kind(keep=options.get("keep", 0.4)))
