"""VisionZip and PruMerge against what their official repositories compute, written as plain loops over numbers.

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
from vlmprune.methods.prumerge import outliers

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


def outlier_share(received: Numbers) -> float:
    """The fraction of values above Tukey's upper fence."""
    values = sorted(received)

    def quartile(q: float) -> float:
        at = q * (len(values) - 1)
        low = int(at)
        return values[low] + (at - low) * (values[min(low + 1, len(values) - 1)] - values[low])

    fence = quartile(0.75) + 1.5 * (quartile(0.75) - quartile(0.25))
    return sum(v > fence for v in values) / len(values)


def sampled(free: list[int], number: int) -> list[int]:
    """All of them where they fit, else the middles of equal parts."""
    return free if len(free) <= number else [free[int((i + 0.5) * len(free) / number)] for i in range(number)]


def prumerge(
    hidden: list[Numbers], received: Numbers, keys: list[Numbers], budget: int, adaptive=True, plus=False, near=32
) -> Places:
    """The merge of the official evaluation, whose kept tokens each gather 32 of all others, and one more token all that
    is not kept; one of the budget is that token's."""
    size, width, most = len(hidden), len(hidden[0]), budget - 1
    order = sorted(range(size), key=lambda a: -received[a])
    share = outlier_share(received)
    if adaptive:
        kept = order[: min(most, int(size * share))]
        step, start = (max(1, int(int(1 / share) / 3)) if share else 1), 0
    else:
        kept = order[: most // 2 if plus else most]
        step = int(1 / (len(kept) / size)) if kept else 1
        start = step // 2 if kept else 0
    if plus:
        kept = kept + sampled([a for a in range(start, size - 1, step) if a not in kept], most - len(kept))
    places = {}
    for a in kept:
        others = sorted((b for b in range(size) if b != a), key=lambda b: -cosine(keys[a], keys[b]))[:near]
        places[a] = total([(1.0, hidden[a])] + [(received[b], hidden[b]) for b in others], width)
    rest = [a for a in order if a not in kept]
    places[rest[0]] = total([(received[b], hidden[b]) for b in rest], width)
    return places


Reference = Callable[..., Places]
MERGING: dict[str, tuple[Reference, dict[str, Any], dict[str, Any]]] = {
    "visionzip": (visionzip, {}, {}),
    "visionzip-half": (visionzip, {"contextual": 0.5}, {"share": 0.5}),
    "visionzip-average": (visionzip, {"average": True}, {"average": True}),
    "prumerge": (prumerge, {}, {}),
    "prumerge-full": (prumerge, {"adaptive": False}, {"adaptive": False}),
    "prumerge-heads": (prumerge, {"vision_as_one": False}, {}),
    "prumerge-plus": (prumerge, {"plus": True}, {"plus": True}),
    "prumerge-plus-full": (prumerge, {"plus": True, "adaptive": False}, {"plus": True, "adaptive": False}),
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


class LastLayer:
    """The tower's last layer, in the official reading: queries and keys of all heads as one, whatever layer is used."""

    def __init__(self, model, eager):
        layer, seen = model.model.vision_tower.encoder.layers[-1].self_attn, {}
        hooks = [
            projection.register_forward_hook(lambda m, a, out, name=name: seen.update({name: out[0]}))
            for name, projection in (("query", layer.q_proj), ("key", layer.k_proj))
        ]
        with torch.no_grad():
            model.model.vision_tower(eager.inputs["pixel_values"])
        for hook in hooks:
            hook.remove()
        query, key = seen["query"], seen["key"]
        maps = [[float(q @ k) / math.sqrt(len(k)) for k in key] for q in query]
        soft = [[math.exp(d) / sum(math.exp(e) for e in line) for d in line] for line in maps]
        if model.config.model_type == "llava":
            self.received, self.keys = torch.tensor(soft[0][1:]), key[1:]
        else:  # SigLIP has no class token
            self.received, self.keys = torch.tensor(soft).mean(dim=0), key


@grid(name=MERGING, family=["llava", "paligemma"], keep=[4, 7])
def test_a_model_computes_what_its_reference_puts_in(name: str, keep: int, family: str) -> None:
    """The merged states stand in for the kept tokens' before layer 0, the others are masked."""
    model = shared(family, "eager")
    inputs = make_inputs(model)
    reference, options, of_reference = MERGING[name]
    found = []
    for sample in range(3):
        one = Eager(model, inputs, sample)
        as_one = reference is prumerge and options.get("vision_as_one", True)
        tower = (LastLayer if as_one else Tower)(model, one)
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


def test_prumerges_outliers_lie_beyond_one_and_a_half_interquartile_ranges() -> None:
    """Tukey's fence of the paper (arXiv 2403.15388, section 3.2): quartiles 3.25 and 7.75, so the fence is at 14.5."""
    received = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 14.4, 20.0])
    assert outliers(received) == 1
    received[8] = 14.6
    assert outliers(received) == 2
    assert outliers(torch.ones(10)) == 0
