"""The second pair's training: it goes on exactly where it was, its captions are true, what it exports is stock."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from demos.tiny_vlm.second import lessons, train
from demos.tiny_vlm.second.lessons import captions_of, draw, image_of
from demos.tiny_vlm.second.model import CONCEPTS, VALUES, Trainee
from demos.tiny_vlm.second.train import Trainer
from demos.tiny_vlm.tower import pixels
from vlmprune.inputs.processor import load_processor

from ..support.grid import only_full


@pytest.fixture(autouse=True)
def tiny_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images a step, none on a photograph of a package that tests do not install."""
    monkeypatch.setattr(lessons, "PHOTOGRAPHS", 0.0)
    monkeypatch.setattr(train, "BATCH", {"captions": 2, "answers": 2})


def everything(trainer: Trainer) -> list[torch.Tensor]:
    """Weights, their average and the optimizer's state."""
    moments = [value for p in trainer.state.params for _, value in sorted(trainer.state.optimizer.state[p].items())]
    return [*trainer.trainee.state_dict().values(), *trainer.state.ema, *moments]


@only_full
@pytest.mark.parametrize("stage", ["captions", "answers"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(stage: str, tmp_path: Path) -> None:
    """All through the second stage: its tower is frozen at first and then is not."""
    whole = Trainer(tmp_path / "whole", "small", stage)
    for _ in range(4):
        whole.step(4)
    for part in range(2):
        trainer = Trainer(tmp_path / "parts", "small", stage)
        assert trainer.resumed == bool(part)
        for _ in range(2):
            trainer.step(4)
        trainer.state.save()
    there, here = everything(whole), everything(trainer)
    assert len(there) == len(here) and all(torch.equal(a, b) for a, b in zip(there, here, strict=True))
    assert trainer.state.meta["step"] == 4 and trainer.state.meta["images"] == whole.state.meta["images"]


def test_the_second_stage_starts_from_the_average_of_the_first(tmp_path: Path) -> None:
    first = Trainer(tmp_path, "small", "captions")
    assert first.train(2)
    first.state.swap()
    second = Trainer(tmp_path, "small", "answers")
    assert torch.equal(second.trainee.coarse, first.trainee.coarse)
    assert not second.resumed


def test_a_sentences_other_words_make_it_false() -> None:
    for photographs in (False, True):
        scenes = [draw(photographs, seed, "validation") for seed in range(12)]
        captions = captions_of(random.Random(0), scenes)
        groups = [[CONCEPTS.index(value) for value in values] for values in VALUES.values()]
        for at, said, other, fits in zip(captions.image, captions.said, captions.other, captions.fits, strict=True):
            words = {CONCEPTS[i] for i in said.nonzero()[:, 0]}

            def true_of(scene: object, claim: set[str]) -> bool:
                things = scene.things  # type: ignore[attr-defined]  # a Scene
                return any(claim <= {t.shape, t.colour, t.size, str(t.digit), t.position} for t in things)

            assert [true_of(scene, words) for scene in scenes] == fits.tolist() and fits[at]
            for group in groups:
                for i in group:
                    here = words & {CONCEPTS[j] for j in group}
                    assert not other[i] or here
                    if here and CONCEPTS[i] not in here:
                        false = not true_of(scenes[at], (words - here) | {CONCEPTS[i]})
                        assert bool(other[i]) == false


@pytest.mark.parametrize(("which", "canvas"), [("large", 112), ("small", 224)])
def test_what_is_exported_is_a_stock_model_for_either_canvas(which: str, canvas: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainee = Trainee(which).eval()
    trainee.export(tmp_path, canvas)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    processor = load_processor(str(tmp_path))
    image = draw(True, 0, "validation", canvas=canvas).image()
    inputs = processor(images=image, text="<image> What colour is the star?<ans>", return_tensors="pt")
    visual = (inputs["input_ids"] == model.config.image_token_id).sum()
    values = pixels([image_of(draw(True, 0, "validation", canvas=canvas))])
    torch.testing.assert_close(inputs["pixel_values"], values, atol=1e-5, rtol=0)
    with torch.no_grad():
        stock = model.model.vision_tower(values).last_hidden_state[:, 1:]
        mine = trainee.features(values)
        model(**inputs)
    assert visual == mine.shape[1] == (canvas // trainee.patch) ** 2
    torch.testing.assert_close(mine, stock, atol=3e-2, rtol=0)  # stored in fp16
