"""What a call made is gone with the last name for it, not when Python next looks for circles, which may be never."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import vlmprune
from tests.support.tiny_families import build, make_inputs
from vlmprune.hf.compatibility import CACHE
from vlmprune.runtime.prefill import Prefill

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

METHODS: dict[str, Any] = {
    "uniform": vlmprune.Uniform(keep=0.4, layer=0),
    "fastv": vlmprune.FastV(keep=0.4, layer=2),
    "pyramiddrop": vlmprune.PyramidDrop(keep=0.3, layer=1, stages=2),
    "snapkv": vlmprune.SnapKV(keep=0.5),
    "adakv": vlmprune.AdaKV(keep=0.5),
    "three": [vlmprune.FastV(keep=0.5, layer=2), vlmprune.SnapKV(keep=0.5), vlmprune.VAR(gate=0.0)],
}


@pytest.fixture(autouse=True)
def no_search_for_circles() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_a_cache_goes_with_its_last_name(family: str, method: str) -> None:
    """A loop of `generate` held fifteen caches at a time where the plain model holds one."""
    model = build(family)
    inputs = make_inputs(model)
    with vlmprune.wrap(model, METHODS[method]), torch.no_grad():
        out = model(**inputs, use_cache=True)
        cache = weakref.ref(out[CACHE] if CACHE in out else out["past_key_values"])
        del out
        assert cache() is None
        out = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
        cache = weakref.ref(out.past_key_values)
        del out
        assert cache() is None


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["uniform", "fastv", "pyramiddrop"])
def test_a_training_step_leaves_nothing(method: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks of every step stood in memory for as long as the model was wrapped."""
    alive: weakref.WeakSet[Prefill] = weakref.WeakSet()
    made = Prefill.__init__

    def counted(self: Prefill, *args: Any) -> None:
        made(self, *args)
        alive.add(self)

    monkeypatch.setattr(Prefill, "__init__", counted)
    model = build("llava").train()
    inputs = make_inputs(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with vlmprune.wrap(model, METHODS[method]):
        for _ in range(3):
            model(**inputs, use_cache=False).logits.square().mean().backward()
    assert not alive
