"""Scenes on photographs: the same from the same seed, no photograph in two splits, and every answer is true."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest

from demos.tiny_vlm.photo_scenes import PhotoScene, make_photo_scene
from demos.tiny_vlm.photos import PHOTOGRAPHS, Photograph, of_split, pixels_of
from demos.tiny_vlm.questions import FAMILIES, ask, benchmark
from demos.tiny_vlm.scenes import SPLITS, make_scene, render
from demos.tiny_vlm.vocabulary import COLOURS
from vlmprune.errors import VlmpruneError

from ..support.grid import only_full
from .test_scenes import check_answer


def pasted(scene: PhotoScene) -> np.ndarray:
    """Which thing is on top at every pixel, -1 where none is: whole shapes, one after the other."""
    side = 8 * scene.window[2]
    top = np.full((side, side), -1)
    for number in range(len(scene.things)):
        top[shown(scene, number)] = number
    return top


def shown(scene: PhotoScene, number: int) -> np.ndarray:
    """Where one of its things would be seen if it were alone: bool (canvas, canvas)."""
    x0, y0, x1, y1 = scene.things[number].box
    inside = np.zeros(scene.image().size, dtype=bool)
    changed = np.abs(make_alone(scene, number) - make_alone(scene, None)).sum(-1) > 60
    inside[y0:y1, x0:x1] = changed[y0:y1, x0:x1]
    return inside


def make_alone(scene: PhotoScene, number: int | None) -> np.ndarray:
    """The scene's pixels with one of its things only, or with none."""
    things = () if number is None else (scene.things[number],)
    return np.asarray(replace(scene, things=things).image(), dtype=int)


def test_a_seed_gives_the_same_image_and_another_split_other_photographs() -> None:
    for seed in range(3):
        one, again = (make_photo_scene(seed, "test") for _ in range(2))
        assert one == again and np.array_equal(np.asarray(one.image()), np.asarray(again.image()))
        assert make_photo_scene(seed, "validation").photograph != one.photograph


def test_no_photograph_is_in_two_splits() -> None:
    used = {split: {make_photo_scene(seed, split).photograph for seed in range(50)} for split in SPLITS}
    assert {split: len(photographs) for split, photographs in used.items()} == {"train": 11, "validation": 3, "test": 4}
    assert used == {split: set(of_split(split)) for split in SPLITS}
    assert len({(one.package, one.file) for one in PHOTOGRAPHS}) == len(PHOTOGRAPHS) == 18
    assert all(one.licence for one in PHOTOGRAPHS)


def test_validation_and_test_need_no_package_that_vlmprune_does_not_need() -> None:
    assert {one.package for split in ("validation", "test") for one in of_split(split)} == {"skimage"}


def test_no_two_photographs_show_the_same() -> None:
    """By their pixels, shrunk: a photograph under two names would leak from training into the test."""
    there = [one for one in PHOTOGRAPHS if find_spec(one.package)]
    small = [pixels_of(one)[::16, ::16][:16, :16].astype(float).ravel() for one in there]
    for i, a in enumerate(small):
        for b in small[:i]:
            assert np.corrcoef(a, b)[0, 1] < 0.95


def test_a_missing_photograph_names_its_package() -> None:
    with pytest.raises(VlmpruneError, match=r"'none'.*'no_such_package'"):
        _ = Photograph("none", "train", "no_such_package", "a.png", "").path


@only_full
@pytest.mark.parametrize("canvas", [64, 112, 224])
def test_things_lie_inside_and_enough_of_each_shows(canvas: int) -> None:
    for seed in range(12):
        scene = make_photo_scene(seed, "validation", canvas=canvas)
        assert scene.image().size == (canvas, canvas) and scene.things
        top = pasted(scene)
        for number, thing in enumerate(scene.things):
            x0, y0, x1, y1 = thing.box
            assert 0 <= x0 < x1 <= canvas and 0 <= y0 < y1 <= canvas and thing.canvas == canvas
            whole = shown(scene, number).sum()
            assert (top == number).sum() > (0.9 if thing.shape == "tile" else 0.6) * whole


@only_full
def test_things_overlap_at_times_and_look_like_their_colour() -> None:
    overlapping = 0
    for seed in range(40):
        scene = make_photo_scene(seed, "test")
        boxes = [thing.box for thing in scene.things]
        overlapping += any(
            a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for i, a in enumerate(boxes) for b in boxes[:i]
        )
        image, top = np.asarray(scene.image(), dtype=float), pasted(scene)
        for number, thing in enumerate(scene.things):
            if thing.digit is None and thing.shape != "ring" and (top == number).sum() > 200:
                seen = np.median(image[top == number], axis=0)
                nearest = min(COLOURS, key=lambda name: float(np.square(seen - COLOURS[name]).sum()))
                assert nearest == thing.colour
    assert 8 <= overlapping <= 32


@pytest.mark.parametrize("family", ["count", "existence", "relation", "judge", "caption"])
@pytest.mark.parametrize("canvas", [112, 224])
def test_answers_agree_with_an_independent_reading_of_the_scene(family: str, canvas: int) -> None:
    for scene, question in benchmark(family, 20, "validation", make=partial(make_photo_scene, canvas=canvas)):
        check_answer(scene, question)


@only_full
def test_every_family_can_be_asked_on_any_canvas() -> None:
    for canvas in (80, 224):
        found = {
            family
            for seed in range(30)
            for family in FAMILIES
            if ask(make_photo_scene(seed, "test", canvas=canvas), family, random.Random(seed))
        }
        assert found == set(FAMILIES)


def test_positions_are_thirds_of_the_canvas_that_the_scene_has() -> None:
    for seed in range(20):
        scene = make_scene(seed, "test", canvas=224)
        assert render(scene).shape == (224, 224, 3)
        for thing in scene.things:
            words = set(thing.position.split())
            assert ("left" in words) == (thing.cx < 224 / 3) and ("right" in words) == (thing.cx > 448 / 3)
            assert ("top" in words) == (thing.cy < 224 / 3) and ("bottom" in words) == (thing.cy > 448 / 3)
