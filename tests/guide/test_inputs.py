"""Some samples of a batch: each takes its own pixels along, and its own outputs of a tower that has run."""

from __future__ import annotations

import pytest
import torch

from tests.support.grid import grid
from tests.support.running import assert_near
from tests.support.tiny_families import FAMILIES, build, make_inputs
from vlmprune.families import family_of
from vlmprune.guide.inputs import take_samples
from vlmprune.guide.runner import Guide
from vlmprune.guide.vision import VisionMemo

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def check_samples(model, inputs):
    """Samples alone, with their pixels or with what the tower made of them, are as they were in the batch."""
    layouts, memo = Guide(model).rank(dict(inputs)).layouts, VisionMemo()
    tower = family_of(model).vision_tower(model)
    with torch.no_grad():
        with memo.recording(tower):
            batch = model(**inputs).logits[:, -1]
        for samples in ([0], [1], [2], [0, 2]):
            taken, rows = take_samples(family_of(model), model.config, dict(inputs), samples, layouts)
            assert_near(model(**taken).logits[:, -1], batch[samples])
            with memo.replaying(tower, rows):
                assert_near(model(**taken).logits[:, -1], batch[samples])


# Of Idefics 3 and SmolVLM row 2 of the pixels is the third sample, and row 2 of what the tower gets the third image.
@grid(family=FAMILIES, images=[(2, 1, 1), (1, 1, 2)])
def test_each_sample_takes_its_own_pixels(family, images):
    model = build(family)
    check_samples(model, make_inputs(model, images=images))


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen3_vl", "internvl", "gemma3"])
def test_samples_without_an_image_go_on_without_pixels(family):
    model = build(family)
    check_samples(model, make_inputs(model, images=(0, 1, 2)))
