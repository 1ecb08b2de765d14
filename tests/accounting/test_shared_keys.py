"""What a report says of Gemma 3n and 4: counted beside the model, and in loops over the pairs that its layers see."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vlmprune
from tests.families.test_shared_keys import CONFIGS, build
from tests.support.generic import IMAGE, gemma, make_generic_inputs
from tests.support.multiplications import of_one_token
from vlmprune.accounting.flops import model_cost
from vlmprune.accounting.model_sizes import model_size
from vlmprune.families import family_of

KINDS, WINDOW, SOURCES = gemma.KINDS, 8, (0, 1, 2, 3, 3, 2)


@pytest.mark.parametrize("name", [*CONFIGS])
def test_costs_are_those_that_are_counted_beside_the_model(name):
    """A prompt of one token, all multiplications counted by PyTorch; and the bytes of the cache that is really there.

    Experts that are one tensor, values that are the keys, and layers that keep none were counted wrong or not at all.
    """
    model = build(name, "eager")
    text = model.base_model.language_model
    counted = of_one_token(text)
    cost, kind = model_cost(family_of(model), model), type(text).__name__
    # Gemma 3n mixes four streams by four, each of the width, which is no linear map, and asks one map of 64 by 4 twice.
    mixing = 2 * 4 * 4 * 64 + 2 * 4 * 64 if name == "gemma3n" else 0
    for i, layer in enumerate(cost.layers):
        real = sum(counted[f"{kind}.layers.{i}"].values())
        assert 2 * (layer.linear + 2 * layer.query_width) == real - mixing
    beside = sum(counted[kind].values()) - sum(sum(counted[f"{kind}.layers.{i}"].values()) for i in range(6))
    assert 2 * cost.beside == beside
    for k in (0, 2, 3, 5):
        with vlmprune.wrap(model, "random", keep=0.4, layer=k) as pruned, torch.no_grad():
            cache = model(**make_generic_inputs(model), use_cache=True).cache
        real = [part.keys.nbytes + part.values.nbytes for part in cache.layers if part.keys is not None]
        assert pruned.report.kv_bytes == sum(real)


def pairs(rows, keys, kind):
    """How many keys at these positions the rows see, a window counted in positions."""
    return sum(key <= row and (kind == "full_attention" or row - key < WINDOW) for row in rows for key in keys)


@pytest.mark.parametrize("layer", range(6))
def test_the_work_of_a_prompt(layer):
    """Every linear map's rows as they run, and every pair: the last layers run one row, over all keys of their source.

    A drop at layer 4 or later makes them run all rows up to it.
    """
    model = build("gemma4")
    whole = make_generic_inputs(model)
    inputs = {"input_ids": whole["input_ids"][1:], "pixel_values": whole["pixel_values"][1:]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    work = []

    def count(module, args, out):
        work.append(2 * args[0].numel() // module.in_features * module.in_features * module.out_features)

    ids = inputs["input_ids"][0].tolist()
    every = list(range(len(ids)))
    width = [4 * (16 if kind == "sliding_attention" else 32) for kind in KINDS]
    maps = [part for part in (*model.model.language_model.modules(), model.lm_head) if isinstance(part, nn.Linear)]

    def attention(held, run):
        """`held` and `run`: per layer, positions of the keys that it writes, and of the rows that run."""
        seen = [pairs(run[i], held[SOURCES[i]], kind) for i, kind in enumerate(KINDS)]
        return sum(4 * wide * n for wide, n in zip(width, seen, strict=True))

    for method in (None, vlmprune.Uniform(keep=0.4, layer=layer)):
        hooks = [part.register_forward_hook(count) for part in maps]
        work.clear()
        pruned = vlmprune.wrap(model, method) if method else None
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
        for hook in hooks:
            hook.remove()
        if pruned is None:
            plain = sum(work) + attention([every] * 6, [every] * 4 + [every[-1:]] * 2)
            continue
        report = pruned.report
        pruned.unwrap()
    slots = [at for at, token in enumerate(ids) if token == IMAGE]
    left = [at for at in every if at not in slots or slots.index(at) in report.kept[0].tolist()]
    held = [left if i >= layer else every for i in range(6)]
    run = held if layer > 3 else held[:4] + [every[-1:]] * 2
    assert report.prefill_flops == sum(work) + attention(held, run)
    assert report.prefill_flops_full == plain
    assert (report.prefill_flops < plain) == (layer < 4)


@pytest.mark.parametrize("name", ["gemma3n", "gemma4", "gemma4_unified"])
def test_sizes_come_from_a_config_without_a_tower(name):
    """`vlmprune plan` for models whose layers share keys; a step reads what the cache keeps."""
    size = model_size(CONFIGS[name](), dtype="bf16", visual=9, name=name)
    kept = [layer.kv_width for layer in size.cost.layers]
    assert [width == 0 for width in kept] == [False] * 4 + [True] * 2
    assert size.text_bytes > 0
    assert (size.vision_bytes == 0) == (name != "gemma3n")
