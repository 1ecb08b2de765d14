"""Tiny models keep what published checkpoints are: windows, patterns of layers, rotary kinds and axes, experts."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from tests.support import tiny_families
from tests.support.generic import tiny_config
from tests.support.published import MISTRAL, PUBLISHED, Published
from vlmprune.families.generic import TESTED, decoder_of

SHORTEST = 15  # tokens of the shortest prompt with an image: a window must be smaller, or it hides nothing
KINDS = {"full_attention": "F", "sliding_attention": "S", "chunked_attention": "C", "indexed_attention": "I",
         "linear_attention": "R", "conv": "R", "mamba": "R", "minimax_m3_sparse": "I", "attention": "F",
         "moe": "E", "mlp": "M"}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 1e4}


def first(text: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(text, name, None)) is not None), None)


def kinds_of(text: Any) -> str:
    """A letter a layer, by transformers' conventions."""
    depth = text.num_hidden_layers
    if crossed := getattr(text, "cross_attention_layers", None):
        return "".join("X" if i in crossed else "F" for i in range(depth))
    if kinds := getattr(text, "layer_types", None):
        return "".join(KINDS[kind] for kind in kinds)
    if first(text, "sliding_window"):
        return "S" * depth
    return ("C" if first(text, "attention_chunk_size") else "F") * depth


def in_turn(kinds: str) -> str:
    """The kinds that follow one another, each once."""
    return "".join(kind for kind, _ in groupby(kinds))


def ropes_of(text: Any) -> list[dict[str, Any]]:
    """The rotary embeddings of all kinds of layers."""
    given = getattr(text, "rope_parameters", None) or {}
    return [given] if "rope_type" in given else [one for one in given.values() if isinstance(one, dict)]


def differences(config: Any, published: Published) -> list[str]:
    """The facts of a checkpoint that a tiny config does not keep."""
    text = config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    layers = decoder_of(model).layers
    found = kinds_of(text)
    wanted = published.layers or found
    repeated = wanted * len(found)
    pattern = repeated.startswith(found)
    if len(wanted) > 4:  # a long period: the same kinds in the same order, each a shorter while
        pattern = set(found) == set(wanted) and in_turn(repeated).startswith(in_turn(found))
    window = first(text, "sliding_window", "attention_chunk_size", "index_topk")
    ropes = ropes_of(text)
    # What the model reads: its own sections where the config has none.
    sections = [part.mrope_section for part in model.modules() if getattr(part, "mrope_section", None)]
    sections = [one for part in sections for one in (part.values() if isinstance(part, dict) else [part])]
    axes = max(map(len, sections), default=1)
    rotated = [one.get("partial_rotary_factor", 1.0) for one in ropes]
    experts = [first(text, "n_routed_experts", "moe_num_experts", "num_local_experts", "num_experts"),
               first(text, "num_experts_per_tok", "moe_k", "moe_topk")]  # fmt: skip
    sparse = [any("expert" in type(part).__name__.lower() for part in layer.modules()) for layer in layers]
    queries = [part for layer in layers for name, part in layer.named_modules()
               if isinstance(part, nn.Linear) and name.endswith(("q_proj", "query_key_value", "q_b_proj"))]  # fmt: skip
    shared = [getattr(part, "num_key_value_groups", 1) for layer in layers for part in layer.modules()]
    facts = {
        "layers": pattern,
        "window": published.layers is None or not set(wanted) & set("SCI") or bool(window and window < SHORTEST),
        "rope": published.rope in (None, "+".join(sorted({one["rope_type"] for one in ropes}))),
        "axes": axes == published.axes,
        "partial": published.partial in (None, min(rotated, default=1.0) < 1.0),
        "grouped": not published.grouped or any(groups > 1 for groups in shared),
        "experts": published.experts is None or (any(sparse) and experts[0] > experts[1] >= 1),
        "no experts": published.experts is not None or not any(sparse),
        "dense": published.dense is None or (any(sparse) and not all(sparse)) == published.dense,
        "bias": published.bias is None or any(part.bias is not None for part in queries) == published.bias,
        "capped": published.capped in (None, bool(first(text, "final_logit_softcapping", "attn_logit_softcapping"))),
        "shared_kv": bool(first(text, "num_kv_shared_layers")) or not published.shared_kv,
    }
    return [name for name, kept in facts.items() if not kept]


def test_every_tested_family_has_its_facts():
    assert not {*TESTED, *tiny_families.FAMILIES} - set(PUBLISHED)


@pytest.mark.parametrize("model_type", [*TESTED, *tiny_families.FAMILIES])
def test_a_tiny_config_keeps_what_is_published(model_type):
    declared = model_type in tiny_families.FAMILIES
    config = tiny_families.build(model_type).config if declared else tiny_config(model_type)
    assert differences(config, PUBLISHED[model_type]) == []


def test_a_window_that_a_tiny_family_leaves_out_is_found():
    """LLaVA-NeXT is built on a Mistral without a window, as v0.2 is; v0.1 has one in every layer."""
    assert differences(tiny_families.build("llava_next").config, MISTRAL) == ["layers", "window"]
    assert differences(tiny_families.build("llava_next", text={"sliding_window": 8}).config, MISTRAL) == []
    assert differences(tiny_families.build("llava_next", text={"sliding_window": 64}).config, MISTRAL) == ["window"]


@pytest.mark.parametrize(
    ("model_type", "changed", "missing"),
    [
        ("aya_vision", {"layer_types": ["full_attention"] * 4}, "layers"),
        ("aya_vision", {"layer_types": ["full_attention", *["sliding_attention"] * 3]}, "layers"),
        ("hunyuan_vl", {"rope_parameters": {**PLAIN, "mrope_section": [2, 3, 3]}}, "axes"),
        ("apertus1p5", {"rope_parameters": PLAIN}, "rope"),
        ("fuyu", {"rope_parameters": {**PLAIN, "partial_rotary_factor": 1.0}}, "partial"),
        ("emu3", {"num_key_value_heads": 4}, "grouped"),
        ("ernie4_5_vl_moe", {"moe_k": 4}, "experts"),
        ("kimi_k25", {"first_k_dense_replace": 0}, "dense"),
        ("glm4v_moe", {"attention_bias": False}, "bias"),
        ("muse_glimmer", {"final_logit_softcapping": 0.0}, "capped"),
    ],
)
def test_any_other_fact_too(model_type, changed, missing):
    config = tiny_config(model_type)
    for name, value in changed.items():
        setattr(config.get_text_config(), name, value)
    assert missing in differences(config, PUBLISHED[model_type])
