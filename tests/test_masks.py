"""What a layer sees, where neither a 2-D mask nor one word of a config says it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as flex

import vlmprune
from tests.support.planted import Planted
from tests.support.reference import visual_slots
from tests.support.running import assert_near, generate, plan_of
from tests.support.tiny_families import build, make_inputs, padded

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

METHODS = {
    "planted": None,
    "random": vlmprune.Random(keep=4, layer=1),
    "fastv": vlmprune.FastV(keep=4),
    "cdpruner": vlmprune.CDPruner(keep=4, layer=1),
}


@pytest.fixture
def eager_flex(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """FlexAttention without its compiler, which takes a minute a shape on a CPU."""
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    with torch.compiler.set_stance("force_eager"):
        yield


def same_prompt(report: Any, other: Any) -> None:
    for name in ("kept", "rows"):
        assert [part.tolist() for part in getattr(report, name)] == [part.tolist() for part in getattr(other, name)]
    assert (report.prefill_flops, report.kv_bytes) == (other.prefill_flops, other.kv_bytes)


@pytest.mark.parametrize("name", METHODS)
def test_padding_in_functions_of_positions(eager_flex, name):
    """A function that the user gives, and the one that `generate` makes for a static cache: padding was a part of the
    prompt, drew other random tokens, was ranked by, and counted."""
    model, plain = build("llava", attn="flex_attention"), build("llava")
    inputs = make_inputs(model)
    method = METHODS[name] or Planted(plan=plan_of(plain, inputs, "ragged"), layer=1)
    with vlmprune.wrap(plain, method):
        wanted, out = generate(plain, inputs, steps=3)
    with vlmprune.wrap(model, method):
        logits, static = generate(model, inputs, steps=3, cache_implementation="static", disable_compile=True)
    assert_near(logits, wanted)
    same_prompt(static.report, out.report)
    for side in ("left", "right"):
        inputs = padded(inputs, side)
        valid = inputs["attention_mask"].bool()
        size = valid.shape[1]

        def visible(b: Any, h: Any, q: Any, k: Any, valid: Any = valid) -> Any:
            return (q >= k) & valid[b, k]

        given = {
            **inputs,
            "attention_mask": flex.create_block_mask(visible, 3, None, size, size, device="cpu"),
            "position_ids": (valid.long().cumsum(-1) - 1).clamp(min=0),
        }
        with vlmprune.wrap(model, method), torch.no_grad():
            mine, usual = model(**given), model(**inputs)
        same_prompt(mine.report, usual.report)
        for i, rows in enumerate(usual.rows):
            assert_near(mine.logits[i, -len(rows) :], usual.logits[i, -len(rows) :])


# EXAONE 4's attention modules all have the window, its layers are told apart by the list alone.
EXAONE: dict[str, Any] = {
    "model_type": "exaone4",
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
}


def test_full_layers_whose_modules_have_a_window():
    model = build("llava", text=EXAONE)
    inputs = make_inputs(model)
    with vlmprune.wrap(model, "random", keep=0.4, layer=2) as pruned, torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    assert pruned.report.kv_bytes == sum(part.keys.nbytes + part.values.nbytes for part in cache.layers)


def test_re_indexed_tokens_in_full_layers():
    """`positions="compact"` makes masks anew: those of full layers had the window."""
    model = build("llava", text=EXAONE)
    inputs = make_inputs(model, text_lengths=(9,), images=(1,))
    plan = ((0, 2, 3, 5, 7, 8),)
    keep = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    keep[0, visual_slots(model, inputs)[0][[1, 4, 6]]] = False
    recorded: dict[str, Any] = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: recorded.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
        hook.remove()
        alone = model.model.language_model(inputs_embeds=recorded["inputs_embeds"][keep][None], use_cache=False)
        wanted = model.lm_head(alone.last_hidden_state)
    with vlmprune.wrap(model, Planted(plan=plan, layer=0, positions="compact")), torch.no_grad():
        assert_near(model(**inputs).logits, wanted)
