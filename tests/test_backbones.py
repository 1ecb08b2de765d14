"""Text backbones that a family's adapter does not know: refused by what their layers are, before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING

import vlmprune
from tests.support.planted import Planted
from tests.support.running import plan_of
from tests.support.tiny_families import build, make_inputs
from tests.test_bad_input import sentence
from vlmprune.accounting.flops import model_cost
from vlmprune.families import family_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def known(backbone: str) -> str:
    """Old versions of transformers do not have every backbone."""
    if backbone not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {backbone}")
    return backbone


STRANGERS: dict[str, tuple[dict[str, Any], str]] = {
    # Gated DeltaNet in three of four layers.
    "qwen3_next": ({"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                    "shared_expert_intermediate_size": 32}, "layer 0"),
    # Short convolutions.
    "lfm2": ({"layer_types": ["conv", "full_attention", "conv", "full_attention"]}, "layer 0"),
    # Attention beside a state-space model.
    "falcon_h1": ({"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16},
                  "mamba_attention_mask"),
    # Learned positions, added before the first layer.
    "biogpt": ({}, "position_embeddings"),
}  # fmt: skip


@pytest.mark.parametrize("backbone", STRANGERS)
def test_layers_that_do_not_only_attend(backbone):
    options, named = STRANGERS[backbone]
    model = build("llava", attn="eager", text={"model_type": known(backbone), **options})
    for method in ("fastv", "none", vlmprune.VAR(sink_dims=[3])):
        sentence(lambda m=method: vlmprune.wrap(model, m), repr(backbone), named, kind=vlmprune.UnsupportedModelError)
    assert not model.__dict__.get("_forward_pre_hooks")


def test_llama_4_scales_queries_by_their_row():
    """In layers without rotary embeddings, by the number of the row in the sequence as it is: off by 2 % of the logits
    here, where the scale changes every four tokens instead of every 8,192."""
    text = {
        "model_type": "llama4_text",
        "head_dim": 16,
        "num_local_experts": 2,
        "intermediate_size_mlp": 96,
        "no_rope_layers": [1, 1, 0, 1],
        "attn_scale": 0.5,
        "attention_chunk_size": 64,
    }
    for change in ({"floor_scale": 4}, {"floor_scale": 4, "attn_temperature_tuning": False}, {"floor_scale": 64}):
        model = build("llava", text=text | change)
        inputs = make_inputs(model)
        with vlmprune.wrap(model, Planted(plan=plan_of(model, inputs, "ragged"), layer=1)), torch.no_grad():
            if len(change) == 1 and change["floor_scale"] == 4:
                sentence(lambda m=model, i=inputs: m(**i), "18", "4", "attn_temperature_tuning")
            else:
                model(**inputs)
        with vlmprune.wrap(model, Planted(plan=plan_of(model, inputs, "ragged"), layer=3)), torch.no_grad():
            model(**inputs)


LATENT: dict[str, Any] = {
    **{"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16},
    **{"n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 32, "num_experts_per_tok": 2},
    **{"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4},
}


@pytest.mark.parametrize(
    "text",
    [
        {"model_type": "deepseek_v3", **LATENT},
        {
            **{"model_type": "mimo_v2_flash", "head_dim": 16, "v_head_dim": 16, "sliding_window": 8, "n_group": 1},
            **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "topk_group": 1},
        },
        {"model_type": "llama"},
    ],
    ids=lambda text: text["model_type"],
)
def test_costs_are_those_that_are_counted_beside_the_model(text):
    """A prompt of one token, all multiplications counted by PyTorch; and the bytes of the cache that is really there.

    Latent attention counted 2.7 times its cache, layers with more heads than the config says 0.65 of theirs.
    """
    known(text["model_type"])
    model = build("llava", text=text, attn="eager")
    lm = model.model.language_model
    if hasattr(lm, "set_experts_implementation"):
        lm.set_experts_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        lm(torch.tensor([[20]]), use_cache=False)
    counted = counter.get_flop_counts()
    cost = model_cost(family_of(model), model)
    for i, layer in enumerate(cost.layers):
        real = sum(counted[f"{type(lm).__name__}.layers.{i}"].values())
        assert 2 * (layer.linear + 2 * layer.query_width) == real
    with vlmprune.wrap(model, "random", keep=0.4, layer=2) as pruned, torch.no_grad():
        cache = model(**make_inputs(model), use_cache=True).past_key_values
    assert pruned.report.kv_bytes == sum(part.keys.nbytes + part.values.nbytes for part in cache.layers)
