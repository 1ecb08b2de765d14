"""What the bundled pair does not know: how often the check is right, measured on scenes and on crops of photographs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from demos.tiny_vlm.scenes import make_scene
from tests.support.grid import only_full
from vlmprune.inputs.images import read_image
from vlmprune.tiny import example
from vlmprune.tiny import questions as bundled

from .conftest import need
from .support import questions, result

# Without colour or with, near and far, light and dark; scikit-image and matplotlib bring them along.
PHOTOGRAPHS = ("astronaut", "camera", "cat", "coffee", "hubble_deep_field", "moon", "retina", "rocket")


@pytest.fixture(autouse=True)
def _gradio() -> None:
    need("gradio")


def photographs() -> Iterator[Image.Image]:
    from skimage import data

    for name in PHOTOGRAPHS:
        yield Image.fromarray(np.asarray(getattr(data, name)())).convert("RGB")
    cbook = pytest.importorskip("matplotlib.cbook")
    with cbook.get_sample_data("grace_hopper.jpg") as file, Image.open(file) as image:
        yield image.convert("RGB")


def crops(each: int, seed: int = 0) -> list[Image.Image]:
    """Of every photograph, crops from the size of a scene to all of it."""
    rng = random.Random(seed)
    made = []
    for image in photographs():
        for _ in range(each):
            side = rng.randint(112, min(image.size))
            x, y = rng.randint(0, image.width - side), rng.randint(0, image.height - side)
            made.append(image.crop((x, y, x + side, y + side)))
    return made


def fraction(images: list[Image.Image]) -> float:
    from vlmprune.apps.demo.world import is_photograph

    return sum(map(is_photograph, images)) / len(images)


def test_scenes_and_photographs_are_told_apart() -> None:
    assert fraction([make_scene(seed, "test").image() for seed in range(60)]) <= 0.05
    assert fraction(crops(4)) >= 0.9


@only_full
def test_at_most_2_percent_false_alarms_and_at_least_95_percent_hits() -> None:
    for split in ("test", "validation"):
        assert fraction([make_scene(seed, split).image() for seed in range(500)]) <= 0.02
    for seed in range(3):
        assert fraction(crops(40, seed)) >= 0.95


def test_no_bundled_image_is_called_a_photograph() -> None:
    assert fraction([example()[0], *(read_image(one["image"]) for one in bundled())]) == 0


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (16, 16)])
def test_odd_sizes_are_judged_too(size: tuple[int, int]) -> None:
    from vlmprune.apps.demo.world import is_photograph

    assert not is_photograph(Image.new("RGB", size, (200, 40, 40)))
    assert is_photograph(Image.new("L", size, 90)), "without colour"


def test_the_banner_names_the_words_and_the_command(engine: Any) -> None:
    from vlmprune.apps.demo.ask import shown

    picture, question = questions()[0]
    assert result(engine, picture, question, "fastv", 0.25).outside == ""
    news = list(engine.ask(picture, "What is the xylophone wearing?", "fastv", 0.25))
    assert all("'xylophone'" in one.outside for one in news), "before the answers are there"
    banner = shown(engine, news[0], 0, "none")[1]
    assert "xylophone" in banner
    assert "vlmprune demo --model ORG/NAME" in banner


def test_a_photograph_gets_the_banner(engine: Any) -> None:
    photograph = next(photographs())
    assert "photograph" in result(engine, photograph, questions()[0][1], "fastv", 0.25).outside
