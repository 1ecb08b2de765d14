"""Quest against a naive one: every row, head and page in loops over the eager model's keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import vlmprune
from tests.methods.kv.test_exact import batch, outside
from tests.support.cache_twin import cut_logits
from tests.support.grid import either, full, grid, only_full
from tests.support.running import assert_near, generate
from tests.support.sinks import Twin
from tests.support.tiny_families import build, row
from vlmprune import VlmpruneError
from vlmprune.attention.probe import AttentionCall
from vlmprune.methods.kv.quest import bounds

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "paligemma")
LAYERS, STEPS = 4, 24 if full() else 3
METHOD = vlmprune.Quest(pages=3, page=1, full=1)


class Naive(Twin):
    """Rows after the prompt read, per key head, the pages with the highest bound; the last page always."""

    def __init__(self, model: Any, method: vlmprune.Quest, length: int) -> None:
        super().__init__(model, lambda layer, maps, hidden: None)
        self.method, self.length = method, length

    def _attention(self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **kwargs: Any) -> Any:
        if module.layer_idx >= self.method.full and not self.preparing:
            mask = mask.expand(len(query), query.shape[1], -1, -1).clone()
            for b in range(len(query)):
                for g in range(key.shape[1]):
                    for q in range(self.length, query.shape[2]):
                        self.hide(mask, query, key, b, g, q)
        return super()._attention(module, query, key, value, mask, **kwargs)

    def hide(self, mask: Tensor, query: Tensor, key: Tensor, b: int, g: int, q: int) -> None:
        group, page = query.shape[1] // key.shape[1], self.method.page
        heads = range(g * group, g * group + group)
        if q + 1 < 6 * self.method.pages * page:
            return
        found = {}
        for start in range(0, q + 1, page):
            inside = [at for at in range(start, min(q + 1, start + page)) if float(mask[b, heads[0], q, at]) > -1]
            keys = key[b, g, inside]
            most = [
                sum(max(float(x * low), float(x * high)) for x, low, high in zip(query[b, h, q], *ends, strict=True))
                for h in heads
                for ends in ([(keys.amin(0), keys.amax(0))] if inside else [])
            ]
            found[start] = max(most, default=float("-inf"))
        last = max(found)
        best = sorted(set(found) - {last}, key=lambda start: (-found[start], start))[: self.method.pages - 1]
        for start in set(found) - {last, *best}:
            mask[b, list(heads), q, start : start + page] = torch.finfo(mask.dtype).min


@grid(family=either(("llava",), FAMILIES), attn=either(("sdpa",), ("sdpa", "eager")), page=either((1,), (1, 2)))
def test_quest_equals_the_naive_one(family, attn, page):
    model, eager = build(family, layers=LAYERS, attn=attn), build(family, layers=LAYERS, attn="eager")
    inputs = batch(model)
    plain, _ = generate(model, inputs, 2)
    before, method = outside(model), vlmprune.Quest(pages=3, page=page, full=1)
    with vlmprune.wrap(model, method) as pruned:
        logits, out = generate(model, inputs, STEPS)
        attended = pruned.report.cache.attended
    length = inputs["input_ids"].shape[1]
    total = length + STEPS - 1
    part = 3 * page - (-total % page) if total >= 18 * page else total
    assert attended == [total, part, part, part]
    with Naive(eager, method, length).on():
        assert_near(logits, cut_logits(eager, inputs, [None] * LAYERS, out.sequences[:, -STEPS:]))
    if part < total:
        assert float((logits[:, -1] - cut_logits(model, inputs, [None] * LAYERS, out.sequences[:, -STEPS:])[:, -1])
                     .abs().max()) > 1e-3  # fmt: skip
    assert outside(model) == before
    assert torch.equal(generate(model, inputs, 2)[0], plain)


def test_a_bound_is_the_most_that_a_key_could_give():
    """Of queries that share a key head the highest; what is hidden sets no bound."""
    key = torch.tensor([[[[1.0, -2.0], [3.0, 5.0], [9.0, 9.0], [0.0, 1.0], [-1.0, 0.5]]]])
    query = torch.tensor([[[[1.0, -1.0]], [[0.0, 2.0]]]])
    hidden = torch.tensor([[False, False, True, False, False]])
    call = AttentionCall(query, key, key, None, {})
    # Page 0: max(3 - -2, 2 * 5); page 1 of one key: max(0 - 1, 2); page 2: max(-1 - .5, 1).
    assert bounds(call, hidden, 2).tolist() == [[[10.0, 2.0, 1.0]]]
    hidden[0, 3] = True
    assert bounds(call, hidden, 2)[0, 0, 1] == float("-inf")
    assert torch.equal(bounds(call, None, 2), bounds(call, torch.zeros_like(hidden), 2))
    assert bounds(call, None, 2).tolist() == [[[10.0, 18.0, 1.0]]]


class Largest(TorchDispatchMode):
    """The most bytes that any operation allocates for a result."""

    made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {one.untyped_storage().data_ptr() for one in args if isinstance(one, Tensor)}
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in given:
                self.made = max(self.made, one.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_copies_no_keys_for_its_bounds(dtype):
    """Copied three times, they took longer than attending to everything; 100 pages of 16 and a shorter one."""
    torch.manual_seed(0)
    room = torch.randn(1, 2, 2000, 64).to(dtype)
    key, query = room[:, :, :1607], torch.randn(1, 4, 1, 64).to(dtype)
    call = AttentionCall(query, key, key, None, {"scaling": 1.0})
    with Largest() as largest:
        exchanged = vlmprune.Quest(pages=6, full=0).selector([0], 1).exchange(0, call)
    assert exchanged.key.shape == (1, 2, 5 * 16 + 7, 64)
    assert largest.made <= key.numel() * key.element_size() / 4


def test_a_step_that_would_not_pay_reads_everything():
    """Keys are read once more for the bounds, so it begins at six times the pages where DELTA begins at three."""
    model = build("llava", layers=LAYERS)
    inputs = row(batch(model), 1)
    length = inputs["input_ids"].shape[1]
    for pages, part in ((length // 6, True), (length // 6 + 1, False)):
        with vlmprune.wrap(model, vlmprune.Quest(pages=pages, page=1)) as pruned:
            generate(model, inputs, 2)
        assert (pruned.report.cache.attended[2] < length) is part


@only_full
def test_beams_read_what_they_choose():
    model = build("llava", layers=LAYERS)
    inputs = batch(model)
    with vlmprune.wrap(model, METHOD):
        out = model.generate(**inputs, num_beams=2, max_new_tokens=4, do_sample=False)
        assert out.shape[1] == inputs["input_ids"].shape[1] + 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pages": 2}, "pages must be an int >= 3"),
        ({"full": 9}, "full=9 layers are all 4 that have a cache that grows"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(VlmpruneError, match=said):
        vlmprune.wrap(build("llava", layers=LAYERS), vlmprune.Quest(**options))
