"""Text backbones that a family's adapter does not know: exact, or refused by what their layers are before any runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING

import vlmprune
from tests.support.grid import grid
from tests.support.masked_generate import dropped_of, forced_logits, masked_forced_logits
from tests.support.multiplications import of_one_token
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


_MAMBA: dict[str, Any] = {
    **{"mamba_d_state": 16, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_expand": 2},
    **{"mamba_chunk_size": 16},
}
_EXPERTS: dict[str, Any] = {
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1},
    **{"topk_group": 1, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
}
_TURNS = ["linear_attention", "full_attention"] * 2
# Layers that are recurrences, in turn with attention; their first attention layer is 1, or 3.
RECURRENT: dict[str, dict[str, Any]] = {
    # Gated DeltaNet in three of four layers.
    "qwen3_next": {"head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
                   "linear_value_head_dim": 8, **_EXPERTS},
    "olmo_hybrid": {},
    # Kimi's delta attention, named self_attn as the latent attention of the other layers.
    "kimi_linear": {"layer_types": _TURNS, "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": None,
                    "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, **_EXPERTS},
    # Short convolutions.
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1, **_EXPERTS},
    "lfm3": {"layer_types": ["conv", "full_attention", "conv", "sliding_attention"], "sliding_window": 8},
    # State spaces, with layers of experts or an MLP alone (Nemotron-H) or layers that return tuples (Bamba).
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "jamba": {"mamba_d_state": 16, "mamba_expand": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
              "num_experts_per_tok": 1, "use_mamba_kernels": False},
    "granitemoehybrid": {**_MAMBA, **_EXPERTS, "layer_types": ["mamba", "attention"] * 2,
                         "shared_intermediate_size": 32},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "mlp", "full_attention"], "ssm_state_size": 8,
                   "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "chunk_size": 16,
                   "moe_shared_expert_intermediate_size": 32, **_EXPERTS},
    # Not recurrent: learned positions, added before the first layer.
    "biogpt": {},
}  # fmt: skip


@grid(backbone=RECURRENT, attn=["sdpa", "eager"], layer=[0, 1, 2])
def test_recurrent_layers_run_over_the_kept_rows(backbone, attn, layer):
    """Refused until they did, or, in Kimi Linear, taken for attention."""
    model = build("llava", attn=attn, text={"model_type": known(backbone), **RECURRENT[backbone]})
    inputs = make_inputs(model)
    tokens = torch.randint(10, 60, (len(inputs["input_ids"]), 4), generator=torch.Generator().manual_seed(1))
    with vlmprune.wrap(model, Planted(plan=plan_of(model, inputs, "ragged"), layer=layer)) as pruned:
        found = forced_logits(model, dict(inputs), tokens)
        kept = pruned.report.kept
    dropped = dropped_of(inputs["input_ids"] == model.config.image_token_index, kept)
    masked = masked_forced_logits(model, model.model.language_model.layers, dict(inputs), dropped, layer, tokens)
    assert float((found - masked).abs().max()) <= 1e-5 * max(1.0, float(masked.std()))


STRANGERS: dict[str, tuple[dict[str, Any], str]] = {
    # Attention beside a state-space model in one layer, each with a mask of its own.
    "falcon_h1": ({"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16},
                  "mamba_attention_mask"),
}  # fmt: skip


@pytest.mark.parametrize("backbone", STRANGERS)
def test_layers_with_arguments_that_are_not_known(backbone):
    options, named = STRANGERS[backbone]
    model = build("llava", attn="eager", text={"model_type": known(backbone), **options})
    for method in ("fastv", "none", vlmprune.VAR(sink_dims=[3])):
        sentence(lambda m=method: vlmprune.wrap(model, m), repr(backbone), named, kind=vlmprune.UnsupportedModelError)
    assert not model.__dict__.get("_forward_pre_hooks")


class Mixing(nn.Module):
    """Rows mixed by nobody knows what."""

    def forward(self, hidden_states: Any, cache: Any = None) -> Any:
        return hidden_states.cumsum(dim=1)


def test_layers_that_mix_rows_in_an_unknown_way():
    model = build("llava")
    layer = model.model.language_model.layers[2]
    del layer.self_attn
    layer.mixer = Mixing()
    sentence(lambda: vlmprune.wrap(model, "none"), "layer 2", "self_attn", kind=vlmprune.UnsupportedModelError)


@pytest.mark.parametrize("part", ["layer", "attention"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_that_stands_in_two_places(part, compiled):
    """As people make models deeper: its hooks could not tell which place runs."""
    model = build("llava")
    layers = model.model.language_model.layers
    if part == "layer":
        layers[3] = layers[1]
    else:
        layers[3].self_attn = layers[1].self_attn
    if compiled:
        layers[3] = torch.compile(layers[3], backend="eager")
    before = dict(vars(layers[1]))
    sentence(lambda: vlmprune.wrap(model, "uniform"), "layers 1 and 3 are one module", "copy.deepcopy",
             kind=vlmprune.UnsupportedModelError)  # fmt: skip
    assert vars(layers[1]) == before
    layers[3] = copy.deepcopy(getattr(layers[3], "_orig_mod", layers[3]))
    vlmprune.wrap(model, "uniform").unwrap()


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
    counted = of_one_token(lm)
    cost = model_cost(family_of(model), model)
    for i, layer in enumerate(cost.layers):
        real = sum(counted[f"{type(lm).__name__}.layers.{i}"].values())
        assert 2 * (layer.linear + 2 * layer.query_width) == real
    with vlmprune.wrap(model, "random", keep=0.4, layer=2) as pruned, torch.no_grad():
        cache = model(**make_inputs(model), use_cache=True).past_key_values
    assert pruned.report.kv_bytes == sum(part.keys.nbytes + part.values.nbytes for part in cache.layers)
