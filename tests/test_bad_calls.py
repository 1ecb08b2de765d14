"""Arguments that a call does not take: one sentence instead of Python's `__init__() got an unexpected ...`."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import replace

import pytest
import torch

import vlmprune
from tests.support.running import shared
from tests.support.tiny_families import make_inputs
from tests.test_bad_input import sentence


@pytest.mark.parametrize("method", sorted(set(vlmprune.list_methods()) - {"none"}))
def test_constructors(method):
    cls = vlmprune.list_methods()[method]
    guide = {"guide": shared("llava")} if method == "sgl" else {}
    sentence(lambda: cls(zzz=3, **guide), repr(method), "'zzz'", "choose one of")
    sentence(lambda: cls(*range(20)), repr(method), "without a name", "by name")
    if issubclass(cls, vlmprune.Pruner | vlmprune.CacheCut):
        sentence(lambda: cls(kep=3, **guide), "'kep'", "did you mean 'keep'?")
    made = cls(**guide)
    first = next(iter(inspect.signature(cls).parameters))
    assert first in ("keep", "guide", "p", "beta", "threshold", "pages", "buffer")
    if method != "sgl":
        assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == replace(made) == made


def test_more_constructors():
    sentence(lambda: vlmprune.SGL(), "'sgl'", "guide=")
    sentence(lambda: vlmprune.FastV(0.5, keep=0.5), "'fastv'", "'keep'", "twice")
    assert vlmprune.FastV(0.5, 3) == vlmprune.FastV(keep=0.5, layer=3)


def test_functions():
    model = shared("llava")
    inputs = dict(make_inputs(model))
    large, _, processor = vlmprune.load_tiny()
    sentence(lambda: vlmprune.wrap(model), "wrap()", "method=")
    sentence(lambda: vlmprune.find_sinks(), "find_sinks()", "model=")
    sentence(lambda: vlmprune.find_sinks(model, inputs), "find_sinks()", "model", "by name")
    sentence(lambda: vlmprune.find_sinks(model, taw=3, **inputs), "'taw'", "did you mean 'tau'?")
    sentence(lambda: vlmprune.find_sinks(model, input_ids=inputs["input_ids"].tolist()), "no image")
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    sentence(lambda: vlmprune.find_sinks(model, **text), "no image")
    with vlmprune.wrap(large, "random", processor=processor) as pruned:
        sentence(lambda: pruned.ask(), "ask()", "image=")
        sentence(lambda: pruned.ask("star.png"), "ask()", "question=")
        sentence(lambda: pruned.ask("star.png", "What?", 5), "ask()", "image, question", "5")
        sentence(lambda: pruned.ask("star.png", "What?", image=5), "'image'", "twice")


def test_the_captioner():
    large, _, processor = vlmprune.load_tiny()
    sentence(lambda: vlmprune.PatchCaptioner(), "PatchCaptioner()", "model=")
    sentence(lambda: vlmprune.PatchCaptioner(large, processor, sed=3), "PatchCaptioner()", "did you mean 'seed'?")
    sentence(lambda: vlmprune.PatchCaptioner(large, processor, 3), "PatchCaptioner()", "3", "by name")
    captioner = vlmprune.PatchCaptioner(large, processor)
    sentence(lambda: captioner(), "image=")
    sentence(lambda: captioner.map("folder"), "map()", "out=")


def test_a_class_that_is_abstract_too():
    """Users combine classes: the check of options is no obstacle."""
    from abc import ABC

    class Mine(vlmprune.Pruner, ABC):
        def score(self, prompt: vlmprune.PruningContext) -> list[torch.Tensor]:
            return [torch.zeros(layout.count) for layout in prompt.layouts]

    assert Mine(keep=3).keep == 3
