"""The probe's rows against a naive softmax, and that probing changes nothing and leaves nothing."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.support.tiny_families import build, make_inputs
from vlmprune.attention.probe import DISPATCHER, ProbedLayer, clear_observers, observe
from vlmprune.ops.attention_rows import Visibility, attention_rows

B, H, G, S, D = 2, 4, 2, 7, 8


def naive(query: Tensor, key: Tensor, visible: Tensor, softcap: float | None = None) -> Tensor:
    """[B, H, S, T] from loops; `visible` [B, S, T]."""
    out = torch.zeros(B, H, query.shape[2], key.shape[2])
    for b in range(B):
        for h in range(H):
            for q in range(query.shape[2]):
                scores = []
                for k in range(key.shape[2]):
                    score = float(query[b, h, q] @ key[b, h // (H // G), k]) / math.sqrt(D)
                    score = math.tanh(score / softcap) * softcap if softcap else score
                    scores.append(score if visible[b, q, k] else -math.inf)
                top = max(scores)
                powers = [math.exp(s - top) for s in scores]
                out[b, h, q] = torch.tensor([p / sum(powers) for p in powers])
    return out


@pytest.fixture
def states() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    rows = torch.tensor([[6, 2, 4], [5, 6, 3]])
    return torch.randn(B, H, S, D), torch.randn(B, G, S, D), rows


def pick(full: Tensor, rows: Tensor) -> Tensor:
    return torch.stack([full[b][:, rows[b]] for b in range(B)])


@pytest.mark.parametrize("form", ["none", "padding", "bool", "additive", "window"])
def test_rows_equal_a_naive_softmax(states: tuple[Tensor, Tensor, Tensor], form: str) -> None:
    query, key, rows = states
    visible = torch.ones(S, S, dtype=torch.bool).tril().expand(B, -1, -1).clone()
    mask: Tensor | None = None
    window = None
    if form == "padding":
        mask = torch.ones(B, S, dtype=torch.long)
        mask[1, :2] = 0
        visible &= mask.bool()[:, None]
    elif form in ("bool", "additive"):
        visible[0, :, 3] = False  # a hole, and a key after the query, as image blocks have
        visible[1, 5, 6] = True
        mask = visible[:, None]
        if form == "additive":
            mask = torch.zeros(B, 1, S, S).masked_fill(~mask, torch.finfo(torch.float32).min)
    elif form == "window":
        window = 3
        visible &= torch.ones(S, S, dtype=torch.bool).triu(-2)
    got = attention_rows(query, key, rows, Visibility(D**-0.5, mask, window=window))
    assert torch.allclose(got, pick(naive(query, key, visible), rows), atol=1e-6)
    assert torch.allclose(got.sum(-1), torch.ones(B, H, 3), atol=1e-6)


def test_soft_capping(states: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, rows = states
    visible = torch.ones(S, S, dtype=torch.bool).tril().expand(B, -1, -1)
    got = attention_rows(query, key, rows, Visibility(D**-0.5, softcap=2.0))
    assert torch.allclose(got, pick(naive(query, key, visible, 2.0), rows), atol=1e-6)


def test_half_precision_is_accumulated_in_single(states: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, rows = (states[0].bfloat16(), states[1].bfloat16(), states[2])
    got = attention_rows(query, key, rows, Visibility(D**-0.5))
    same = attention_rows(query.float(), key.float(), rows, Visibility(D**-0.5))
    assert got.dtype == torch.float32
    assert torch.equal(got, same)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "paligemma"])
def test_the_model_computes_the_same_bits_and_the_columns_equal_eager(family: str) -> None:
    model, eager = build(family), build(family, attn="eager")
    inputs = make_inputs(model)
    layer = model.base_model.language_model.layers[1].self_attn
    rows = torch.tensor([[inputs["input_ids"].shape[1] - 1]]).expand(3, -1)
    seen: list[Tensor] = []
    with torch.no_grad():
        plain = model(**inputs).logits
        config = layer.config
        probe = ProbedLayer(layer)
        observe(layer, lambda call, out: seen.append(call.weights(rows)))
        probed = model(**inputs).logits
        clear_observers([layer])
        unobserved = model(**inputs).logits
        probe.remove()
        maps = eager(**inputs, output_attentions=True).attentions[1]
    assert torch.equal(plain, probed)
    assert torch.equal(plain, unobserved)
    assert layer.config is config
    assert DISPATCHER not in ALL_ATTENTION_FUNCTIONS
    assert len(seen) == 1
    assert torch.allclose(seen[0].mean(dim=1).sum(dim=1), maps[:, :, -1].mean(1), atol=1e-5)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_probed_module_still_knows_the_models_own_kernel(attn):
    """Indexed attention hides what it has not selected only under kernels that it names: probed, Mistral Large 4 saw
    everything, and FastV kept tokens with 0.15 less attention than others."""
    model = build("llava", attn=attn)
    attention, names, calls = model.model.language_model.layers[1].self_attn, [], []

    class Indexed(type(attention)):
        def forward(self, *given, **options):
            if self.config._attn_implementation in ("eager", "sdpa"):
                names.append(self.config._attn_implementation)
            return super().forward(*given, **options)

    attention.__class__ = Indexed
    inputs = make_inputs(model)
    expected = model(**inputs).logits
    probe = ProbedLayer(attention)
    observe(attention, lambda call, output: calls.append(call))
    assert torch.equal(model(**inputs).logits, expected)
    clear_observers([attention])
    assert len(names) == 2
    assert len(calls) == 1
    name = names[1]
    assert name == attn
    assert name not in ("flash_attention_2", "flex_attention")
    assert name != "eager"  # as modules ask that look a kernel up only then
    assert ALL_ATTENTION_FUNCTIONS.get_interface(name, None) is ALL_ATTENTION_FUNCTIONS[DISPATCHER]
    assert copy.deepcopy(attention.config)._attn_implementation == attn
    probe.remove()
    assert type(attention.config._attn_implementation) is str
