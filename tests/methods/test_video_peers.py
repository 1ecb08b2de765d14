"""FastVID, HoliTom and clusters of Sparse VideoGen2 against what their official repositories compute, in plain loops.

A reference gets the states of a video's tokens, frame by frame, and says which tokens' places are taken and what stands
there. Budgets are where ours departs: each official count is rounded by itself, ours add up to the budget. So each
reference takes our counts, found in another way, and asserts that the official ones are those but for rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

import vlmprune
from tests.methods.test_over_time import Eager, Stages, shares
from tests.support.grid import either, grid
from tests.support.masked_generate import forced_logits
from tests.support.running import assert_near
from vlmprune.flow.locate import dealt, video_grid
from vlmprune.methods.base import Pruner, PruningContext

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
Numbers = list[float]
Places = dict[int, Numbers]  # states by the token whose place they take
FAMILIES = either(["qwen3_vl", "llava_onevision"], ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl"])


def count(keep: float | int, total: int) -> int:
    """Half of a token is one more, in decimals."""
    return (
        min(keep, total) if isinstance(keep, int) else max(1, math.floor(Fraction(str(keep)) * total + Fraction(1, 2)))
    )


def cosine(a: Numbers, b: Numbers) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def distance(a: Numbers, b: Numbers) -> float:
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a))


def mean(rows: list[Numbers]) -> Numbers:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def mixed(weight: float, a: Numbers, b: Numbers) -> Numbers:
    return [weight * x + (1 - weight) * y for x, y in zip(a, b, strict=True)]


def slots(total: int, size: int) -> list[int]:
    """Which of `size` equal places each of `total` things spread over them lies in."""
    return [int((i + 0.5) * size / total) for i in range(total)]


def salience(rows: list[Numbers], frame: list[int]) -> dict[int, float]:
    """Ours; officially the tower's attention."""
    middle = mean([rows[token] for token in frame])
    return {token: 1 - cosine(rows[token], middle) for token in frame}


def by(score: dict[int, float]) -> list[int]:
    return sorted(score, key=lambda token: (-score[token], token))


def peaks(states: dict[int, Numbers], number: int, nearest: int) -> list[int]:
    """Density peaks (DPC-KNN): the `number` best by density times distance to what is denser."""
    far = {(a, b): distance(states[a], states[b]) for a in states for b in states}
    density = {
        a: round(math.exp(-sum(sorted(far[a, b] ** 2 for b in states)[:nearest]) / min(nearest, len(states))), 12)
        for a in states
    }
    score = {}
    for a in states:
        denser = [far[a, b] for b in states if density[b] > density[a]]
        score[a] = round(density[a] * (min(denser) if denser else max(far.values())), 12)
    return by(score)[:number]


def fastvid(
    rows: list[Numbers], frames: list[list[int]], total: int, cuts=8, similar=0.9, contextual=0.4, every=4, beta=0.6
) -> Places:
    number, each = len(frames), len(frames[0])
    means = [mean([rows[token] for token in frame]) for frame in frames]
    near = [cosine(one, two) for one, two in itertools.pairwise(means)]
    least = sorted(range(number - 1), key=lambda i: (near[i], i))[: cuts - 1]
    ends = [i for i in range(number) if i == number - 1 or i in least or near[i] < similar]
    kept = [slot // each for slot in slots(total, number * each)]
    retain = [kept.count(at) for at in range(number)]
    places: Places = {}
    first = 0
    for last in ends:
        segment = list(range(first, last + 1))
        salient = {at: retain[at] - int(retain[at] * contextual) for at in segment}
        holders = [at for at in segment if (last - at) % every == 0]
        context = sum(int(retain[at] * contextual) for at in segment)
        shared = slots(context, len(holders)) if context else []
        anchors = {at: min(shared.count(i), each - salient[at]) for i, at in enumerate(holders)}
        if len(set(retain)) == 1:  # as officially, but for rounding and for more anchors than tokens
            official = int(retain[0] * contextual) * len(segment) // len(holders)
            assert all(own - official in (0, 1) or own == each - salient[at] for at, own in anchors.items())
        left = context - sum(anchors.values())
        while left:
            for at in segment:
                if left and salient[at] + anchors.get(at, 0) < each:
                    salient[at] += 1
                    left -= 1
        rest = {}
        for at in segment:
            order = by(salience(rows, frames[at]))
            places |= {token: rows[token] for token in order[: salient[at]]}
            rest[at] = sorted(order[salient[at] :])
        for at, own in anchors.items():
            if not own:
                continue
            targets = peaks({token: rows[token] for token in rest[at]}, own, 4)
            groups: dict[int, list[int]] = {token: [] for token in targets}
            for token in [token for other in segment for token in rest[other]]:
                groups[max(targets, key=lambda a: cosine(rows[token], rows[a]))].append(token)
            for target, members in groups.items():
                weight = max(1 / (len(members) + 1), beta)
                gathered = mean([rows[token] for token in members]) if members else rows[target]
                places[target] = mixed(weight, rows[target], gathered)
        first = last + 1
    return places


def standing_segments(still: list[list[bool]]) -> list[tuple[int, int]]:
    """The official dynamic programme: a single frame unless a window brings more, the shortest window of the best."""
    number = len(still) + 1

    def gain(first: int, last: int) -> int:
        fixed = [all(still[t][place] for t in range(first, last)) for place in range(len(still[0]))] if still else []
        return sum(fixed) * (last - first)

    total, start = [0] * number, list(range(number))
    for last in range(number):
        best = total[last - 1] if last else 0
        for length in range(2, last + 2):
            first = last - length + 1
            value = (total[first - 1] if first else 0) + gain(first, last)
            if value > best:
                best, start[last] = value, first
        total[last] = best
    if number <= 7:
        for marks in itertools.product([False, True], repeat=number - 1):
            edges = [0, *[t + 1 for t, cut in enumerate(marks) if cut], number]
            assert sum(gain(a, b - 1) for a, b in itertools.pairwise(edges)) <= total[-1]
    out, last = [], number - 1
    while last >= 0:
        out.append((start[last], last))
        last = start[last] - 1
    return out[::-1]


def clustered(states: dict[int, Numbers], number: int, beta: float) -> Places:
    centres = peaks(states, number, min(7, number))
    groups: dict[int, list[int]] = {a: [] for a in centres}
    for token in states:
        if token not in groups:
            groups[min(centres, key=lambda a: distance(states[token], states[a]))].append(token)
    return {
        a: mixed(beta, states[a], mean([states[b] for b in own])) if own else states[a] for a, own in groups.items()
    }


def holitom(rows: list[Numbers], frames: list[list[int]], total: int, similar=0.8, contextual=0.0, beta=0.6) -> Places:
    still = [
        [cosine(rows[a], rows[b]) > similar for a, b in zip(one, two, strict=True)]
        for one, two in itertools.pairwise(frames)
    ]
    groups: list[tuple[bool, dict[int, Numbers], dict[int, float]]] = []
    reduced = 0
    for first, last in standing_segments(still):
        fixed = [last > first and all(still[t][place] for t in range(first, last)) for place in range(len(frames[0]))]
        reduced += sum(fixed) * (last - first)
        lines = {
            frames[first][place]: mean([rows[frames[t][place]] for t in range(first, last + 1)])
            for place, is_fixed in enumerate(fixed)
            if is_fixed
        }
        groups.append((True, lines, {}))
        for t in range(first, last + 1):
            score = salience(rows, frames[t])
            moving = [token for token, is_fixed in zip(frames[t], fixed, strict=True) if not is_fixed]
            groups.append((False, {token: rows[token] for token in moving}, {token: score[token] for token in moving}))
    groups = [group for group in groups if group[1]]
    sizes = [len(own) for _, own, _ in groups]
    tokens = len(frames) * len(frames[0])
    assert sum(sizes) == tokens - reduced
    counts = shares([1.0 * size for size in sizes], sizes, total) if total < sum(sizes) else sizes
    ratio = min(total / tokens / ((tokens - reduced) / tokens), 1)  # the official one
    places: Places = {}
    for (average, states, score), number in zip(groups, counts, strict=True):
        assert abs(number - (round(len(states) * ratio) if average else math.ceil(len(states) * ratio))) <= 1
        if average:
            places |= clustered(states, number, beta) if number else {}
            continue
        dominant = by(score)[: round(number * (1 - contextual))]
        places |= {token: states[token] for token in dominant}
        if number > len(dominant):
            rest = {token: states[token] for token in states if token not in dominant}
            places |= clustered(rest, number - len(dominant), beta)
    return places


def semantic(
    rows: list[Numbers], start: list[int], words: list[Numbers], steps=3, top_p=None, floor=1, temperature=0.02
) -> Places:
    """Lloyd's algorithm from the tokens `start`; with top_p the official choice of clusters, from their means."""
    centres = [rows[token] for token in start]
    for step in range(steps + 1):
        owner = [min(range(len(centres)), key=lambda c: distance(row, centres[c])) for row in rows]
        members = [[token for token, own in enumerate(owner) if own == c] for c in range(len(centres))]
        means = [mean([rows[token] for token in own]) if own else None for own in members]
        if step < steps:
            centres = [own if own is not None else old for own, old in zip(means, centres, strict=True)]
    found = [(own, middle) for own, middle in zip(members, means, strict=True) if middle is not None]
    share = [0.0] * len(found)
    for word in words:
        power = [len(own) * math.exp(cosine(word, middle) / temperature) for own, middle in found]
        for c, value in enumerate(power):
            share[c] += value / sum(power) / len(words)
    order, stay, held = sorted(range(len(found)), key=lambda c: -share[c]), [], 0.0
    for c in order:
        if top_p is None or held < top_p or len(stay) < floor:
            stay.append(c)
            held += share[c]
    places = {}
    for c in stay:
        own, middle = found[c]
        far = {token: math.dist(rows[token], middle) for token in own}
        # Two tokens are as far from their mean, but for rounding.
        places[min(token for token in own if far[token] <= min(far.values()) + 1e-5 * math.hypot(*middle))] = middle
    return places


# --- a hundred random videos -----------------------------------------------------------------------------------------


def clip(seed: int) -> tuple[int, int, int, Tensor]:
    """t, h, w and states [t * h * w, 6] of scenes in which some places stand still and others move."""
    make = torch.Generator().manual_seed(seed)
    t, h, w = (int(torch.randint(1, most, (1,), generator=make)) for most in (14, 4, 4))
    scene = torch.randint(0, 3, (t,), generator=make).cumsum(0) // 3
    base = torch.randn(int(scene.max()) + 1, h * w, 6, generator=make) + 1.5 * torch.randn(6, generator=make)
    moves = torch.rand(h * w, 1, generator=make) < 0.4
    noise = torch.randn(t, h * w, 6, generator=make)
    return t, h, w, (base[scene] + torch.where(moves, 1.0, 0.15) * noise).flatten(0, 1)


def prompt_of(t: int, h: int, w: int, states: Tensor, newline: bool) -> PruningContext:
    make = torch.Generator().manual_seed(len(states))
    words, extra = torch.randn(4, 6, generator=make), torch.randn(int(newline), 6, generator=make)
    hidden = torch.cat([words[:1], states, extra, words[1:]])[None]
    where = 1 + torch.arange(len(states) + int(newline))
    layouts = [dealt(where, [video_grid(t, h, w, behind=int(newline))])]
    valid = torch.ones(hidden.shape[:2], dtype=torch.bool)
    return PruningContext(
        layouts=layouts, hidden=hidden, input_ids=valid.long(), valid=valid, layer=0, unpruned=layouts
    )


CASES: dict[str, tuple[Callable[..., Places], list[dict[str, Any]]]] = {
    "fastvid": (fastvid, [{}, {"cuts": 3}, {"cuts": 1, "every": 2, "similar": 0.7}, {"contextual": 0.9, "beta": 0.1}]),
    "holitom": (holitom, [{}, {"contextual": 0.4}, {"similar": 0.95, "beta": 0.9}, {"similar": 0.6}]),
    "semantic": (semantic, [{}, {"steps": 0}, {"top_p": 0.7}, {"top_p": 0.5, "floor": 3, "temperature": 0.2}]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_hundred_random_videos_are_merged_as_officially(name: str) -> None:
    reference, settings = CASES[name]
    differ = []
    for seed in range(100):
        t, h, w, states = clip(seed)
        options, newline, keep = settings[seed % 4], seed % 3 == 0, (0.1, 0.25, 0.4, 0.7, 0.9, 2)[seed % 6]
        prompt = prompt_of(t, h, w, states, newline)
        (span,) = prompt.layouts[0].images
        method: Pruner = vlmprune.list_methods()[name](keep=keep, **options)
        selection = method.select(prompt)
        rows: list[Numbers] = prompt.sample_hidden(0).double().tolist()
        total = count(keep, len(rows))
        frames = [list(range(at * h * w, (at + 1) * h * w)) for at in range(t)]
        if name == "semantic":
            start = vlmprune.Uniform(keep=keep).select(prompt).kept[0].tolist()
            places = semantic(rows, start, prompt.hidden[0, prompt.question(0)].double().tolist(), **options)
        else:
            loose = list(range(t * h * w, span.count))[:total]
            places = {token: rows[token] for token in loose}
            if total == len(rows):  # nothing is to be done
                places = dict(enumerate(rows))
            elif total > len(loose):
                places |= reference(rows, frames, total - len(loose), **options)
        assert selection.merged is not None
        assert len(selection.kept[0]) == total or (name != "fastvid" and 0 < len(selection.kept[0]) < total)
        wanted = sorted(places.items())
        same = selection.kept[0].tolist() == [place for place, _ in wanted]
        close = same and torch.allclose(selection.merged[0], torch.tensor([row for _, row in wanted]), 1e-4, 1e-5)
        differ += [] if close else [seed]
    assert not differ, f"{len(differ)} of 100 differ: {differ[:9]}"


# --- in a model ------------------------------------------------------------------------------------------------------


@grid(family=FAMILIES, name=CASES, keep=either([0.4], [0.2, 0.4, 0.8, 3]))
def test_a_model_computes_what_its_reference_puts_in(family: str, name: str, keep: float | int) -> None:
    """A ragged batch of videos and images: merged states stand in the kept tokens' places, the others are hidden."""
    reference, options = CASES[name][0], {} if name != "semantic" else {"top_p": 0.8}
    eager = Eager(family)
    states: list[dict[int, Tensor]] = []
    with vlmprune.wrap(eager.model, vlmprune.Uniform(keep=keep)) as even, torch.no_grad():
        eager.model(**eager.inputs, **eager.options)
        starts = [[span.kept for span in spans] for spans in even.report.images]
    for sample, spans in enumerate(eager.spans):
        rows, own = eager.rows(sample, 0).tolist(), {}
        for (_, frames, none), start in zip(spans, starts[sample], strict=True):
            tokens = [token for frame in frames for token in frame] + none
            at, total = tokens[0], count(keep, len(tokens))
            part = [rows[token] for token in tokens]
            if name == "semantic":
                words = eager.words(sample, 0).tolist()
                found = semantic(part, (start - at).tolist(), words, **options)
            else:
                loose = [token - at for token in none[:total]]
                found = {token: part[token] for token in loose}
                if total > len(loose):
                    found |= reference(part, [[token - at for token in frame] for frame in frames], total - len(loose))
            own |= {token + at: torch.tensor(state) for token, state in found.items()}
        states.append(own)
    kept = [sorted(own) for own in states]
    run = Stages(eager)
    run.stages.append((0, states, kept))
    tokens = torch.randint(10, 99, (len(kept), 7), generator=torch.Generator().manual_seed(1))
    with vlmprune.wrap(eager.model, vlmprune.list_methods()[name](keep=keep, **options)) as pruned:
        found = forced_logits(eager.model, dict(eager.inputs) | eager.options, tokens)
        assert [one.tolist() for one in pruned.report.kept] == kept
    with run:
        assert_near(found, forced_logits(eager.model, dict(eager.inputs), tokens))


def test_options_out_of_range() -> None:
    for make, wanted in (
        (lambda: vlmprune.FastVID(cuts=0), "cuts must be an int >= 1, got 0"),
        (lambda: vlmprune.FastVID(every=1.5), "every must be an int >= 1, got 1.5"),
        (lambda: vlmprune.HoliTom(similar=2), "similar must be a number from -1 to 1, got 2"),
        (lambda: vlmprune.HoliTom(contextual=-0.1), "contextual must be a number from 0 to 1, got -0.1"),
        (lambda: vlmprune.Semantic(steps=-1), "steps must be an int >= 0, got -1"),
        (lambda: vlmprune.Semantic(temperature=0.0), "temperature must be a number >= 1e-06, got 0.0"),
        (lambda: vlmprune.FastVID(top_p=0.5), "top_p=0.5 needs a method that chooses once and by one score a token"),
    ):
        with pytest.raises(vlmprune.VlmpruneError, match=wanted):
            make()
