"""Scenes and questions: the same from the same seed, and every answer is true."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from demos.tiny_vlm.bundle import bundled
from demos.tiny_vlm.labels import patch_cover
from demos.tiny_vlm.language import names_an_extreme
from demos.tiny_vlm.questions import FAMILIES, Question, ask, benchmark, sentence
from demos.tiny_vlm.scenes import Scene, make_scene, render
from demos.tiny_vlm.vocabulary import CANVAS, COLOURS, PATCH, PLURALS, RELATIONS, SHAPES, SUPERLATIVES
from vlmprune.inputs.images import read_image
from vlmprune.tiny import BENCHMARK, questions


def matches(name: str, thing: object) -> bool:
    """Whether every word of a name ("red circle", "blue object") fits the thing."""
    words = name.split()
    facts = {thing.shape, thing.colour, thing.size, "object"}  # type: ignore[attr-defined]  # a Thing
    return all(word in facts for word in words)


def named(scene: Scene, name: str) -> list[object]:
    first, _, rest = name.partition(" ")
    if first in SUPERLATIVES:
        x, y = SUPERLATIVES[first]
        group = [t for t in scene.things if matches(rest, t)]
        return [max(group, key=lambda t: x * t.cx + y * t.cy)]
    return [t for t in scene.things if matches(name, t)]


def test_a_seed_gives_the_same_picture_and_another_split_another() -> None:
    assert make_scene(5, "test") == make_scene(5, "test")
    assert np.array_equal(render(make_scene(5, "test")), render(make_scene(5, "test")))
    assert make_scene(5, "test").things != make_scene(5, "train").things


def test_things_lie_inside_and_apart() -> None:
    for seed in range(60):
        boxes = [t.box for t in make_scene(seed, "validation").things]
        assert all(0 <= x0 < x1 <= CANVAS and 0 <= y0 < y1 <= CANVAS for x0, y0, x1, y1 in boxes)
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def check_answer(scene: Scene, question: Question) -> None:
    """Assert that the answer is what an independent reading of the scene gives."""
    singular = {plural: one for one, plural in PLURALS.items()}
    text = question.text
    if question.family == "count":
        words = re.search(r"(?:many|of) (.*?)(?: are| can|\?)", text)
        assert words is not None
        name = " ".join(singular.get(word, word) for word in words.group(1).split())
        assert question.answer == str(len(named(scene, name)))
    elif question.family == "existence":
        words = re.search(rf"((?:(?:{'|'.join(COLOURS)}) )?(?:{'|'.join((*SHAPES, 'object'))}))\b", text)
        assert words is not None
        assert (question.answer == "yes") == bool(named(scene, words.group(1)))
    elif question.family == "relation":
        words = re.fullmatch(rf"Is the (.+?) ({'|'.join(sorted(RELATIONS, key=len, reverse=True))}) the (.+)\?", text)
        assert words is not None
        (a,), (b,) = named(scene, words.group(1)), named(scene, words.group(3))
        sx, sy = RELATIONS[words.group(2)]
        ahead = sx * (a.cx - b.cx) + sy * (a.cy - b.cy) > 0  # type: ignore[attr-defined]  # Things
        assert (question.answer == "yes") == ahead
    elif question.family == "judge":
        claim = text.removeprefix("Is this true: there is ").removesuffix(" ?")
        sizeless = {sentence(t).replace(f"{t.size} ", "", 1) for t in scene.things}
        digitless = {re.sub(r" with the digit \d", "", s) for s in sizeless | {sentence(t) for t in scene.things}}
        true = claim in {sentence(t) for t in scene.things} | sizeless | digitless
        assert (question.answer == "yes") == true
    else:
        assert question.answer.count(" .") == len(scene.things)


@pytest.mark.parametrize("family", ["count", "existence", "relation", "judge", "caption"])
def test_answers_agree_with_an_independent_reading_of_the_scene(family: str) -> None:
    for scene, question in benchmark(family, 150, "validation"):
        check_answer(scene, question)


def test_yes_and_no_are_equally_frequent() -> None:
    for family in ("existence", "relation", "judge"):
        share = np.mean([question.answer == "yes" for _, question in benchmark(family, 400, "validation")])
        assert 0.42 < share < 0.58


def test_a_superlative_looks_across_its_relation() -> None:
    """Along it the words alone would tell: of two tiles the leftmost one is always left of the other."""
    superlatives = 0
    for _, question in benchmark("relation", 400, "validation"):
        across = {"leftmost", "rightmost"} if re.search("above|below", question.text) else {"topmost", "bottommost"}
        found = set(question.text.split()) & set(SUPERLATIVES)
        assert found <= across
        assert names_an_extreme(question) == bool(found)
        superlatives += bool(found)
    assert superlatives > 240


def test_a_things_patches_add_up_to_it() -> None:
    for seed in range(20):
        scene = make_scene(seed, window=(2, 3, 9, 10))
        cover, owner = patch_cover(scene)
        area = [cover[owner == i].sum() * PATCH**2 for i in range(len(scene.things))]
        for thing, covered in zip(scene.things, area, strict=True):
            assert 0.25 * thing.width * thing.height < covered <= thing.width * thing.height


def test_the_package_ships_what_the_generator_makes() -> None:
    shipped, made = questions(), list(bundled())
    for record, (scene, expected) in zip(shipped, made, strict=True):
        assert record | {"image": record["image"].name} == expected
        assert np.array_equal(np.asarray(read_image(record["image"])), render(scene))
    assert len({scene.seed for scene, _ in made}) == len(made)
    assert sum(path.stat().st_size for path in BENCHMARK.iterdir()) < 400_000


def test_every_family_can_be_asked() -> None:
    rng = random.Random(0)
    for family in FAMILIES:
        assert any(ask(make_scene(seed, "validation"), family, rng) for seed in range(20))
