"""VisionZip against what its official repository computes, written as plain loops over numbers.

A reference gets an image's states, the attention its tokens receive in the tower and their keys there. It says which
tokens' places are taken and what stands there, in the order of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import vlmprune
from tests.methods.test_peers import Eager, Tower
from tests.support.grid import grid
from tests.support.reference import staged_logits
from tests.support.running import STEPS, assert_near, generate, shared
from tests.support.tiny_families import make_inputs
from vlmprune.flow.locate import dealt, plain_grid
from vlmprune.flow.prompt_state import VisionStats
from vlmprune.methods.base import Pruner, PruningContext

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

Numbers = list[float]
Places = dict[int, Numbers]  # states by the token whose place they take


def cosine(a: Numbers, b: Numbers) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def total(weighted: list[tuple[float, Numbers]], width: int) -> Numbers:
    return [sum(w * state[d] for w, state in weighted) for d in range(width)]


def visionzip(
    hidden: list[Numbers], received: Numbers, keys: list[Numbers], budget: int, share=10 / 64, average=False
) -> Places:
    """The targets are every (n // c)-th of what is not dominant, from the first on, and each gets the mean of those
    assigned to it on top of its own state."""
    width, few = len(hidden[0]), min(budget - 1, round(budget * share))
    order = sorted(range(len(hidden)), key=lambda a: -received[a])
    places = {a: hidden[a] for a in order[: budget - few]}
    rest = sorted(order[budget - few :])
    targets = [rest[i * (len(rest) // few)] for i in range(few)]
    groups: dict[int, list[int]] = {a: [] for a in targets}
    for b in rest:
        if few and b not in groups:
            groups[max(targets, key=lambda a: cosine(keys[a], keys[b]))].append(b)
    for a, others in groups.items():
        mean = total([(1 / len(others), hidden[b]) for b in others], width) if others else [0.0] * width
        places[a] = [x + m for x, m in zip(hidden[a], mean, strict=True)]
        if average:
            places[a] = total([(1 / (1 + len(others)), hidden[b]) for b in [a, *others]], width)
    return places


Reference = Callable[..., Places]
MERGING: dict[str, tuple[Reference, dict[str, Any], dict[str, Any]]] = {
    "visionzip": (visionzip, {}, {}),
    "visionzip-half": (visionzip, {"contextual": 0.5}, {"share": 0.5}),
    "visionzip-average": (visionzip, {"average": True}, {"average": True}),
}


def random_prompt(images: list[tuple[int, ...]], seed: int) -> PruningContext:
    """Samples of one image a size, padded on the left, with three words before and after their images."""
    make = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make)

    lengths = [sum(sizes) + 6 for sizes in images]
    longest = max(lengths)
    layouts, vision, valid = [], [], torch.zeros(len(images), longest, dtype=torch.bool)
    for row, (sizes, length) in enumerate(zip(images, lengths, strict=True)):
        slots = longest - length + 3 + torch.arange(sum(sizes))
        layouts.append(dealt(slots, [plain_grid(1, size) for size in sizes]))
        valid[row, longest - length :] = True
        # The class token attends to itself too, so an image's values add up to less than 1.
        received = torch.cat([torch.softmax(1.5 * randn(size + 1), dim=0)[1:] for size in sizes])
        vision.append(VisionStats(received, randn(sum(sizes), 6)))
    ids = torch.zeros(len(images), longest, dtype=torch.long)
    hidden = randn(len(images), longest, 5)
    return PruningContext(
        layouts=layouts, hidden=hidden, input_ids=ids, valid=valid, layer=0, vision=vision, unpruned=layouts
    )


def method(name: str, **options: Any) -> Pruner:
    return vlmprune.list_methods()[name.partition("-")[0]](**options)


@pytest.mark.parametrize("name", MERGING)
def test_a_hundred_random_images_are_merged_as_officially(name: str) -> None:
    """Five budgets, twenty images each, in samples of one to four images of different sizes."""
    reference, options, of_reference = MERGING[name]
    differ = []
    for seed, keep in enumerate([1, 7, 0.1, 0.25, 0.6]):
        sizes = torch.randint(34, 90, (20,), generator=torch.Generator().manual_seed(seed)).tolist()
        ends = [1, 4, 6, 9, 10, 13, 17, 20]
        samples = [tuple(sizes[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
        prompt = random_prompt(samples, seed)
        selection = method(name, keep=keep, **options).select(prompt)
        assert selection.merged is not None and prompt.vision is not None
        found = [*zip(prompt.layouts, selection.kept, selection.merged, prompt.vision, strict=True)]
        for row, (layout, kept, merged, tower) in enumerate(found):
            for span in layout.images:
                at, own = span.positions, torch.isin(kept, span.positions)
                budget = keep if isinstance(keep, int) else max(1, math.floor(keep * span.count + 0.5))
                image = (prompt.sample_hidden(row)[at], tower.received[at], tower.keys[at])
                expected = sorted(reference(*(part.tolist() for part in image), budget, **of_reference).items())
                assert int(own.sum()) <= budget
                same = (kept[own] - at[0]).tolist() == [place for place, _ in expected]
                close = same and torch.allclose(merged[own], torch.tensor([x for _, x in expected]), 1e-4, 1e-5)
                differ += [] if close else [(seed, row, span.image)]
    assert not differ, f"{len(differ)} of 100 differ"


@grid(name=MERGING, family=["llava", "paligemma"], keep=[4, 7])
def test_a_model_computes_what_its_reference_puts_in(name: str, keep: int, family: str) -> None:
    """The merged states stand in for the kept tokens' before layer 0, the others are masked."""
    model = shared(family, "eager")
    inputs = make_inputs(model)
    reference, options, of_reference = MERGING[name]
    found = []
    for sample in range(3):
        one = Eager(model, inputs, sample)
        tower = Tower(model, one)
        image = (one.visual[0], tower.received, tower.keys)
        found.append(sorted(reference(*(part.tolist() for part in image), keep, **of_reference).items()))
    places = [[place for place, _ in image] for image in found]
    with vlmprune.wrap(model, method(name, keep=keep, **options)) as pruned:
        logits, out = generate(model, inputs)
        assert [kept.tolist() for kept in pruned.report.kept] == places
    states = [torch.tensor([state for _, state in image]) for image in found]
    start = inputs["input_ids"].shape[1] - 1
    expected = staged_logits(model, inputs, [(0, places, states)], out.sequences[:, -STEPS:-1])[:, start:]
    assert_near(logits, expected)
