"""Every method on clips where rows repeat, no cache is kept and turns follow each other: its own decision, replayed.

What a method decides is compared with its reference elsewhere. Here an unwrapped eager model, from which nothing is
removed, gets what was decided: merged states are put in their places and what was dropped is hidden, stage by stage.
Methods come from the registry; those that read the tower are refused on families that take videos.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import vlmprune
from tests.methods.test_over_time import Stages
from tests.support.grid import either, grid
from tests.support.masked_generate import forced_logits
from tests.support.running import assert_near
from tests.support.videos import make_video_inputs, video_model, visual
from vlmprune.flow.stage import Stage
from vlmprune.methods.base import Pruner
from vlmprune.methods.registry import CLASSES
from vlmprune.methods.sgl import GuideFirst
from vlmprune.runtime.decide import Decider

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
METHODS = [cls for cls in CLASSES if issubclass(cls, Pruner) and not cls.reads_vision]
FAMILIES = ["qwen2_5_vl", "qwen3_vl", "llava_onevision"]
MIXED = ("viv", "iv")
STEPS = 4


def made(cls: Any, family: str) -> Pruner:
    pruner: Pruner = cls(*([video_model(family, "sdpa", 1)] if issubclass(cls, GuideFirst) else []), keep=0.4)
    return pruner


@contextmanager
def decisions(cls: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Stage]]:
    """What methods of a class decide within the block, at each stage; a guide prunes by another one."""
    seen: list[Stage] = []

    def spy(self: Decider, layer: int, hidden: Tensor) -> Stage:
        stage = decide(self, layer, hidden)
        if isinstance(self.pruner, cls):
            seen.append(stage)
        return stage

    decide = Decider.decide
    with monkeypatch.context() as patched:
        patched.setattr(Decider, "decide", spy)
        yield seen


def replayed(model: Any, inputs: Any, stages: list[Stage], tokens: Tensor, each: int = 1) -> Tensor:
    """The logits of forced tokens [B, steps]; where the prompt's rows were repeated, `each` follow each other."""
    run = Stages(SimpleNamespace(model=model, inputs=inputs, mask=visual(model, inputs)))  # type: ignore[arg-type]
    for stage in stages:
        kept = [own.tolist() for own in stage.kept]
        assert kept == [own for own in kept[::each] for _ in range(each)]
        states = [{} for _ in kept] if stage.merged is None else [
            dict(zip(own, rows, strict=True)) for own, rows in zip(kept, stage.merged, strict=True)
        ]  # fmt: skip
        run.stages.append((stage.layer, states[::each], kept[::each]))
    with run:
        return forced_logits(model, dict(inputs), tokens)


@grid(cls=METHODS, family=either(FAMILIES[:1], FAMILIES))
def test_every_method_where_rows_repeat_and_without_a_cache(cls, family, monkeypatch):
    model = video_model(family, "eager")
    inputs = make_video_inputs(model, MIXED)
    tokens = torch.randint(10, 99, (2, STEPS), generator=torch.Generator().manual_seed(1))
    settings = {"max_new_tokens": STEPS, "return_dict_in_generate": True, "output_logits": True, "output_scores": True}
    with vlmprune.wrap(model, made(cls, family)) as pruned:
        with decisions(cls, monkeypatch) as drawn:
            torch.manual_seed(0)
            out = model.generate(**inputs, do_sample=True, num_return_sequences=2, **settings)
        assert len(pruned.report.kept) == 2
        assert pruned.report.kept_tokens != pruned.report.visual_tokens
        with decisions(cls, monkeypatch) as searched:
            beams = model.generate(**inputs, num_beams=2, do_sample=False, **settings)
        with decisions(cls, monkeypatch) as every:
            alone = forced_logits(model, dict(inputs) | {"use_cache": False}, tokens)  # type: ignore[dict-item]
    for i in range(2):
        wanted = replayed(model, inputs, drawn, out.sequences.view(2, 2, -1)[:, i, -STEPS:], 2)
        assert_near(torch.stack(out.logits, dim=1)[i::2], wanted)
    best = beams.sequences[:, -STEPS:]
    chance = replayed(model, inputs, searched, best, 2).log_softmax(-1)
    score = chance.gather(2, best[:, :, None]).squeeze(-1).mean(dim=1)
    torch.testing.assert_close(beams.sequences_scores, score, rtol=0, atol=1e-4)
    stages = len(every) // STEPS  # every step prunes the whole prompt again
    for step in range(STEPS):
        wanted = replayed(model, inputs, every[step * stages :][:stages], tokens)
        assert_near(alone[:, step], wanted[:, step])


@grid(cls=METHODS, family=either(FAMILIES[:1], FAMILIES))
def test_every_method_on_text_images_and_videos_in_turns(cls, family, monkeypatch):
    model, tokens = video_model(family, "eager"), torch.randint(10, 99, (2, 3))
    seen = []
    with vlmprune.wrap(model, made(cls, family)):
        for samples in (("", ""), ("i", "ii"), MIXED, ("ii", "i"), ("", "")):
            inputs = make_video_inputs(model, samples)
            with decisions(cls, monkeypatch) as stages:
                seen.append((inputs, forced_logits(model, dict(inputs), tokens), stages))
    for inputs, found, stages in seen:
        assert_near(found, replayed(model, inputs, stages, tokens))
