"""How often a wrapped model makes the host wait for its accelerator, beside what the model does by itself."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import vlmprune
from tests.support.counting import Far, Waits, far
from tests.support.sinks import PLANTED, planted
from tests.support.tiny_families import build, make_inputs
from vlmprune.hf.arguments import host_copies

IDS, KEPT = 1, 1  # copies to the host: a prompt's ids and padding, and what a stage has kept


def counted(model: Any, inputs: dict[str, Any], *methods: Any) -> tuple[Tensor, Counter[str], Counter[str]]:
    """Logits of a step after the prompt, and what the host waited for in the prompt and in the step."""
    with torch.no_grad(), Waits() as prompt, vlmprune.wrap(model, list(methods)) if methods else nullcontext():
        out = model(**inputs, use_cache=True)
        waited = prompt.counted.copy()
        mask = torch.cat([inputs["attention_mask"], inputs["attention_mask"][:, -1:]], dim=1)
        ids = inputs["input_ids"][:, -1:]
        out = model(input_ids=ids, attention_mask=mask, past_key_values=out.past_key_values)
    return getattr(out.logits, "near", out.logits), waited, prompt.counted - waited


@pytest.mark.parametrize(
    ("method", "more"),
    [
        (vlmprune.Unpruned(), IDS),
        (vlmprune.Uniform(0.5), IDS),
        (vlmprune.Random(0.5), IDS),
        (vlmprune.FastV(0.5, 2), IDS + KEPT),
        (vlmprune.KNorm(0.5, 2), IDS + KEPT),
        (vlmprune.PyramidDrop(0.5, 1), IDS + 3 * KEPT),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_prompt_waits_for_its_ids_and_once_a_stage(method: Any, more: int, batch: int) -> None:
    """However many samples there are. A step after it waits where transformers looks for padding: once a mask."""
    near = build("llava")
    inputs = make_inputs(near, text_lengths=(6, 4, 5)[:batch], images=(1,) * batch)
    model = far(near)
    _, plain, step = counted(model, far(dict(inputs)))
    logits, waited, then = counted(model, far(dict(inputs)), method)
    assert (waited - plain).total() == more, waited - plain
    assert set(waited - plain) <= {"aten._to_copy.default"}
    stages = 0 if isinstance(method, vlmprune.Unpruned) else len(method.stage_layers(4))
    masks = stages if batch > 1 else 0  # one row has no padding left
    assert (then - step).total() <= masks, then - step
    with torch.no_grad(), vlmprune.wrap(near, method):
        cache = near(**inputs, use_cache=True).past_key_values
        mask = torch.cat([inputs["attention_mask"], inputs["attention_mask"][:, -1:]], dim=1)
        wanted = near(input_ids=inputs["input_ids"][:, -1:], attention_mask=mask, past_key_values=cache).logits
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "method",
    [vlmprune.VAR(sink_dims=PLANTED), vlmprune.ACT(heads=[(layer, head) for layer in (2, 3, 4) for head in (0, 3)])],
    ids=lambda method: method.name,
)
def test_sinks_are_asked_for_notes_alone(method: Any) -> None:
    """A few numbers of all layers together, for the report; none a layer or a chosen head, none in a step."""
    near = planted("llava")
    nearby = dict(make_inputs(near, text_lengths=(12, 17, 14)))
    model, inputs = far(near), far(nearby)
    _, plain, step = counted(model, inputs, vlmprune.Unpruned())
    logits, waited, then = counted(model, inputs, method)
    torch.testing.assert_close(logits, counted(near, nearby, method)[0], rtol=0, atol=1e-5)
    assert (waited - plain).total() <= 4, waited - plain
    assert (then - step).total() == 0, then - step
    assert not torch.allclose(logits, counted(model, inputs)[0], atol=1e-3)


def test_the_pretended_device_counts() -> None:
    with Waits() as waits:
        values = Far(torch.tensor([0.5, -1.0, 2.0]))
        assert values.device.type != "cpu"
        assert (values + 1).exp().device == values.device
        assert waits.counted.total() == 0
        for wait in (lambda: bool((values > 0).any()), lambda: values[values > 0], lambda: values.nonzero(),
                     values.cpu, values.tolist, lambda: int(values[2])):  # fmt: skip
            before = waits.counted.total()
            wait()
            assert waits.counted.total() == before + 1
        ids, mask = Far(torch.arange(6).view(2, 3)), Far(torch.tensor([True, False]))
        before = waits.counted.total()
        copies = host_copies([ids, mask])
        assert waits.counted.total() == before + 1
    assert torch.equal(copies[0], ids.near)
    assert torch.equal(copies[1], mask.near)
    assert copies[1].dtype == torch.bool
