"""Methods that know time, against plain loops over an unwrapped model with eager attention.

A reference says which tokens of a batch of videos and images stay; the logits of the wrapped model must then be those
of hiding the others.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

import vlmprune
from tests.support.grid import either, grid
from tests.support.masked_generate import dropped_of, forced_logits, hiding, masked_forced_logits
from tests.support.running import assert_near
from tests.support.videos import FRAMES, SIZES, hint, language_layers, make_video_inputs, video_model, visual
from vlmprune import VlmpruneError
from vlmprune.flow.frames import weighted_counts
from vlmprune.flow.locate import ImageSpan, grid_centres, video_grid

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
SAMPLES = ("viv", "iv")
FAMILIES = either(["qwen3_vl", "llava_onevision"], ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl"])
TAU = 0.02


def layout(model: Any, inputs: Any) -> list[list[tuple[str, list[list[int]], list[int]]]]:
    """Per sample its images and videos: kind, the tokens of each frame, and those of none."""
    kind, number, out = model.config.model_type, 0, []
    for word, total in zip(SAMPLES, visual(model, inputs).sum(dim=1).tolist(), strict=True):
        sizes: list[tuple[str, int, int, int]] = []
        for letter in word:
            if letter == "v":
                t, h, w = SIZES[number % 3]
                frames = {"llava_onevision": (FRAMES, 4, 1), "internvl": (2 + number % 2, 9, 0)}
                sizes.append(("v", *frames.get(kind, (t, h * w // 4, 0))))
            else:
                sizes.append(("i", 1, -1, 0))
            number += 1
        images = [one for one in sizes if one[0] == "i"]
        rest = total - sum(t * each + none for k, t, each, none in sizes if k == "v")
        assert len(images) == 1
        at, spans = 0, []
        for k, t, each, none in sizes:
            each = rest if k == "i" else each
            tokens = [list(range(at + frame * each, at + (frame + 1) * each)) for frame in range(t)]
            at += t * each
            spans.append((k, tokens, list(range(at, at + none))))
            at += none
        assert at == total
        out.append(spans)
    return out


class Eager:
    """The hidden states of an unwrapped batch at its visual tokens, and at the words behind the last of them."""

    def __init__(self, family: str, samples: tuple[str, ...] = SAMPLES) -> None:
        self.model = video_model(family, "eager")
        self.inputs = make_video_inputs(self.model, samples)
        self.hidden: list[Tensor] = []  # entering each layer, which is not what the one before returns (DeepStack)
        hooks = [
            layer.register_forward_pre_hook(lambda module, args: self.hidden.append(args[0]))
            for layer in language_layers(self.model)
        ]
        with torch.no_grad():
            out = self.model(**self.inputs, output_attentions=True, use_cache=False)
        for hook in hooks:
            hook.remove()
        self.attentions = out.attentions
        self.mask = visual(self.model, self.inputs)
        self.spans = layout(self.model, self.inputs)
        self.options = {"video_frames": hint(samples)} if family in ("internvl", "smolvlm") else {}

    def rows(self, sample: int, layer: int) -> Tensor:
        return self.hidden[layer][sample][self.mask[sample]].double()

    def words(self, sample: int, layer: int) -> Tensor:
        last = int(self.mask[sample].nonzero().max())
        return self.hidden[layer][sample][last + 1 :].double()

    def compare(self, method: Any, wanted: list[list[int]], layer: int) -> None:
        tokens = torch.randint(10, 99, (len(wanted), 4), generator=torch.Generator().manual_seed(1))
        with vlmprune.wrap(self.model, method) as pruned:
            found = forced_logits(self.model, dict(self.inputs) | self.options, tokens)
            assert [kept.tolist() for kept in pruned.report.kept] == wanted
        dropped = dropped_of(self.mask, wanted)
        layers = language_layers(self.model)
        assert_near(found, masked_forced_logits(self.model, layers, dict(self.inputs), dropped, layer, tokens))


def count(keep: float | int, total: int) -> int:
    return min(keep, total) if isinstance(keep, int) else max(1, math.floor(keep * total + 0.5))


def best(scores: dict[int, float], number: int) -> list[int]:
    return sorted(sorted(scores, key=lambda token: (-scores[token], token))[:number])


def evenly_first(tokens: list[int]) -> dict[int, float]:
    """Scores of tokens that nothing is known of: multiples of the golden ratio, modulo 1, the least first."""
    golden = (math.sqrt(5) - 1) / 2
    return {token: 1000 - (i * golden) % 1 for i, token in enumerate(tokens)}


def differences(rows: Tensor, one: int, other: int) -> float:
    return round(1 - float(cosine_similarity(rows[one], rows[other], dim=0)), 9)


def by_previous(rows: Tensor, frames: list[list[int]], number: int) -> dict[int, float]:
    scores = {}
    for before, frame in itertools.pairwise(frames):
        for place, token in enumerate(frame):
            scores[token] = differences(rows, token, before[place])
    return scores


def by_kept(rows: Tensor, frames: list[list[int]], number: int) -> dict[int, float]:
    """From nothing each time: of all that are left the one farthest from the last kept one at its place."""
    kept, scores = set(frames[0]), {}
    places = [list(place) for place in zip(*frames, strict=True)]
    left = [token for frame in frames[1:] for token in frame]
    place_of = {token: line for line in places for token in line}
    while left:
        far = {}
        for token in left:
            line = place_of[token]
            last = [other for other in line[: line.index(token)] if other in kept][-1]
            far[token] = differences(rows, token, last)
        # Of equal ones the place that comes first, and there the earliest.
        token = max(left, key=lambda token: (far[token], -places.index(place_of[token]), -token))
        scores[token] = 100.0 - len(kept) / 1000
        kept.add(token)
        left.remove(token)
    return scores


@grid(family=FAMILIES, against=["previous", "kept"], keep=either([0.5, 0.2], [0.2, 0.5, 0.8, 3]))
def test_temporal(family: str, against: str, keep: float | int) -> None:
    eager = Eager(family)
    wanted = []
    for sample, spans in enumerate(eager.spans):
        rows, kept = eager.rows(sample, 0), []
        for _, frames, none in spans:
            tokens = [token for frame in frames for token in frame] + none
            number = count(keep, len(tokens))
            rule: Callable[..., dict[int, float]] = {"previous": by_previous, "kept": by_kept}[against]
            scores = rule(rows, frames, number) | evenly_first(frames[0])
            scores |= dict.fromkeys(none, 2000.0)
            kept += best(scores, number)
        wanted.append(kept)
    eager.compare(vlmprune.Temporal(keep=keep, against=against), wanted, 0)


def shares(weights: list[float], sizes: list[int], total: int) -> list[int]:
    """Proportional parts, found by bisection on the scale; rounded down, the rest to the largest remainders."""
    low, high = 0.0, 1e15
    for _ in range(300):
        middle = (low + high) / 2
        if sum(min(size, middle * weight) for size, weight in zip(sizes, weights, strict=True)) < total:
            low = middle
        else:
            high = middle
    parts = [min(size, high * weight) for size, weight in zip(sizes, weights, strict=True)]
    counts = [math.floor(part + 1e-6) for part in parts]
    while sum(counts) < total:
        counts[max(range(len(parts)), key=lambda i: (round(parts[i] - counts[i], 6), -i))] += 1
    return counts


@grid(family=FAMILIES, keep=[0.5, 7], layer=either([2], [1, 2]))
def test_budgets_by_the_question(family: str, keep: float | int, layer: int) -> None:
    """FastV's order within frames, whose budgets are a softmax of their tokens' cosines to the question's."""
    eager = Eager(family)
    method = vlmprune.FastV(keep=keep, layer=layer, frames="text")
    maps = eager.attentions[layer - 1]
    wanted = []
    for sample, spans in enumerate(eager.spans):
        rows, words = eager.rows(sample, layer), eager.words(sample, layer)
        attention = maps[sample].double().mean(dim=0)[-1][eager.mask[sample]]
        kept = []
        for kind, frames, _ in spans:
            if kind == "i":
                kept += best({token: float(attention[token]) for token in frames[0]}, count(keep, len(frames[0])))
                continue
            near = []
            for frame in frames:
                pairs = [cosine_similarity(rows[a], b, dim=0) for a in frame for b in words]
                near.append(float(sum(pairs)) / len(pairs))
            weights = [math.exp((one - max(near)) / TAU) for one in near]
            total = count(keep, sum(map(len, frames)))
            for frame, number in zip(frames, shares(weights, [len(f) for f in frames], total), strict=True):
                kept += best({token: float(attention[token]) for token in frame}, number)
        wanted.append(kept)
    eager.compare(method, wanted, layer)


def twin_vidcom2(rows: Tensor, frames: list[list[int]], total: int) -> tuple[list[int], list[float]]:
    """Which tokens stay, and the parts that the official code rounds one by one."""
    tokens = [token for frame in frames for token in frame]
    width = rows.shape[1]
    spread = []
    for channel in range(width):
        values = [float(rows[token, channel]) for token in tokens]
        mean = sum(values) / len(values)
        spread.append(sum((value - mean) ** 2 for value in values) / len(values))
    calm = sorted(range(width), key=lambda channel: spread[channel])[: width // 2]
    unit = {token: rows[token, calm] / rows[token, calm].norm() for token in tokens}

    def near(token: int, others: list[int]) -> float:
        mean = torch.stack([unit[other] for other in others]).mean(dim=0)
        distance = float(((unit[token] - mean) ** 2).sum())
        return sum(math.exp(-distance / (2 * 2.0**k)) for k in (-3, -2, -1, 0, 1))

    video = {token: near(token, tokens) for token in tokens}
    means = [sum(video[token] for token in frame) / len(frame) for frame in frames]
    powers = [math.exp(-(mean - min(means)) / 0.01) for mean in means]
    chances = [power / sum(powers) for power in powers]
    weights = [1 + chance - 1 / len(chances) for chance in chances]
    kept = []
    for frame, number in zip(frames, shares(weights, [len(f) for f in frames], total), strict=True):
        kept += best({token: -(video[token] + near(token, frame)) for token in frame}, number)
    return kept, [total / len(tokens) * weight * len(frame) for weight, frame in zip(weights, frames, strict=True)]


@grid(family=FAMILIES, keep=either([0.5, 5], [0.25, 0.5, 1, 5]))
def test_vidcom2(family: str, keep: float | int) -> None:
    eager = Eager(family)
    wanted = []
    for sample, spans in enumerate(eager.spans):
        kept = []
        for _, frames, none in spans:
            total = count(keep, sum(map(len, frames)) + len(none))
            loose = none[:total]
            chosen, official = twin_vidcom2(eager.rows(sample, 0), frames, total - len(loose))
            for frame, part in zip(frames, official, strict=True):
                # Where parts are below the frames' sizes, they differ from the official ones by rounding alone.
                if part <= len(frame):
                    assert abs(len(set(chosen) & set(frame)) - part) <= 1 or any(
                        share > len(other) for share, other in zip(official, frames, strict=True)
                    )
            kept += sorted([*chosen, *loose])
        wanted.append(kept)
    eager.compare(vlmprune.VidCom2(keep=keep), wanted, 0)


class Stages:
    """An unwrapped eager model whose tokens are merged and hidden stage by stage, never removed."""

    def __init__(self, eager: Eager) -> None:
        self.eager, self.layers = eager, language_layers(eager.model)
        self.length = eager.inputs["input_ids"].shape[1]
        self.stages: list[tuple[int, list[dict[int, Tensor]], list[list[int]]]] = []  # layer, new states, kept

    def __enter__(self) -> Stages:
        self.hooks = contextlib.ExitStack()
        gone = torch.zeros_like(self.eager.mask)
        for number, (at, states, kept) in enumerate(self.stages):
            self.hooks.callback(
                self.layers[at].register_forward_pre_hook(partial(self.overwrite, states), prepend=True).remove
            )
            gone = dropped_of(self.eager.mask, kept)
            until = self.stages[number + 1][0] if number + 1 < len(self.stages) else len(self.layers)
            left = self.eager.inputs["attention_mask"].bool() & ~gone
            self.hooks.enter_context(hiding(self.layers[0], self.layers[at:until], gone, left))
        return self

    def __exit__(self, *exc: object) -> None:
        self.hooks.close()

    def overwrite(self, states: list[dict[int, Tensor]], module: Any, args: Any) -> Any:
        if args[0].shape[1] != self.length:
            return args
        hidden = args[0].clone()
        for sample, own in enumerate(states):
            slots = self.eager.mask[sample].nonzero()[:, 0]
            for token, state in own.items():
                hidden[sample, slots[token]] = state
        return (hidden, *args[1:])

    def look(self, at: int) -> tuple[Tensor, Tensor]:
        """What enters a layer, and the attention in it, the stages so far having been."""
        seen: list[Tensor] = []
        with self, torch.no_grad():
            hook = self.layers[at].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
            out = self.eager.model(**self.eager.inputs, output_attentions=True, use_cache=False)
            hook.remove()
        return seen[0], out.attentions[at].mean(dim=1)[:, -1]


def fuse(rows: Tensor, received: Tensor, frames: list[list[int]], total: int, last: bool) -> dict[int, Tensor]:
    """One stage of FrameFusion over the tokens that are left of one video: what stays, and with what states."""
    left = [token for frame in frames for token in frame[1]]  # type: ignore[index]
    if len(left) <= total:
        return {token: rows[token] for token in left}
    lines: dict[int, list[int]] = {}
    for _, own in frames:  # type: ignore[misc]
        for token in own:
            lines.setdefault(PLACE[token], []).append(token)
    links = []
    for line in lines.values():
        for a, b in itertools.pairwise(line):
            alike = 1 - differences(rows, a, b)
            if alike >= SIMILAR:
                links.append((alike, b, a))
    links = sorted(links, key=lambda link: (-link[0], link[1]))[: len(left) - total]
    owner = {token: token for token in left}
    for _, later, first in sorted(links, key=lambda link: left.index(link[1])):
        owner[later] = owner[first]
    states = {
        first: torch.stack([rows[token] for token in left if owner[token] == first]).mean(dim=0)
        for first in set(owner.values())
    }
    if len(links) < 0.1 * len(left) or last:
        stay = best({token: float(received[token]) for token in states}, total)
        states = {token: states[token] for token in stay}
    return states


SIMILAR = 0.55
PLACE: dict[int, int] = {}


@grid(family=FAMILIES, keep=either([0.4], [0.2, 0.4, 0.8]), spread=[0.2, 0.8])
def test_framefusion(family: str, keep: float, spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clip whose frames differ by noise only, so that some of its tokens resemble those before."""
    model = video_model(family, "eager")
    made = make_video_inputs

    def alike(*given: Any, **options: Any) -> Any:
        inputs = made(*given, **options)
        noise = torch.Generator().manual_seed(5)
        for name in inputs:
            if name == "pixel_values_videos" or (family == "internvl" and name == "pixel_values"):
                first = inputs[name].flatten(0, -4)[:1] if inputs[name].dim() > 3 else inputs[name][:1]
                inputs[name] = first.expand_as(inputs[name]) * 1.0 + spread * torch.randn(
                    inputs[name].shape, generator=noise
                )
        return inputs

    monkeypatch.setattr("tests.methods.test_over_time.make_video_inputs", alike)
    eager, stages = Eager(family), 3
    run = Stages(eager)
    kept = [list(range(int(row.sum()))) for row in eager.mask]
    merged = 0
    for stage in range(stages):
        hidden, received = run.look(stage)
        states: list[dict[int, Tensor]] = []
        for sample, spans in enumerate(eager.spans):
            own: dict[int, Tensor] = {}
            rows, looked = hidden[sample][eager.mask[sample]], received[sample][eager.mask[sample]]
            for kind, frames, none in spans:
                total = count(keep, sum(map(len, frames)) + len(none))
                PLACE.update({token: at for frame in frames for at, token in enumerate(frame)})
                PLACE.update(dict.fromkeys(none, -1))
                parts = [(at, [token for token in frame if token in kept[sample]]) for at, frame in enumerate(frames)]
                parts += [(-1, [token for token in none if token in kept[sample]])]
                if kind == "i":  # nothing to merge
                    PLACE.update({token: token for token in frames[0]})
                own |= fuse(rows, looked, parts, total, stage + 1 == stages)  # type: ignore[arg-type]
            merged += sum(float((state - rows[token]).abs().max()) > 1e-6 for token, state in own.items())
            states.append(own)
        kept = [sorted(own) for own in states]
        run.stages.append((stage, states, kept))
    assert merged
    tokens = torch.randint(10, 99, (len(kept), 4), generator=torch.Generator().manual_seed(1))
    method = vlmprune.FrameFusion(keep=keep, stages=stages, similarity=SIMILAR)
    with vlmprune.wrap(model, method) as pruned:
        found = forced_logits(model, dict(eager.inputs) | eager.options, tokens)
        assert [own.tolist() for own in pruned.report.kept] == kept
    with run:
        assert_near(found, forced_logits(model, dict(eager.inputs), tokens))


@pytest.mark.parametrize("seed", range(30))
def test_proportional_parts(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    number = int(torch.randint(1, 9, (1,), generator=random))
    sizes = torch.randint(1, 12, (number,), generator=random).tolist()
    weights = (torch.rand(number, generator=random, dtype=torch.float64) ** 4 + 1e-9).tolist()
    for total in range(1, sum(sizes) + 1):
        counts = weighted_counts(total, sizes, weights)
        assert counts == shares(weights, sizes, total)
        assert sum(counts) == total
    assert weighted_counts(6, [5, 5, 5], [1, 1, 1]) == [2, 2, 2]
    assert weighted_counts(7, [5, 5, 5], [1, 1, 1]) == [3, 2, 2]
    assert weighted_counts(8, [5, 5, 5], [1000, 1, 1]) == [5, 2, 1]


def video(t: int, h: int, w: int, **options: int) -> ImageSpan:
    one = video_grid(t, h, w, **options)
    return ImageSpan(0, torch.arange(one.count), one.count, one.grid, one.xy, kind="video", frame=one.frame)


def test_the_same_place_in_the_frame_before() -> None:
    from vlmprune.flow.over_time import before

    assert before(video(3, 1, 2)).tolist() == [-1, -1, 0, 1, 2, 3]
    assert before(video(2, 1, 2, placeless=2, behind=1)).tolist() == [-1, -1, -1, -1, 0, 1, 2, 3, -1]
    some = video(4, 1, 2).only(torch.tensor([0, 1, 2, 5, 6, 7]))  # frame 1 has its left token only, frame 2 its right
    assert before(some).tolist() == [-1, -1, 0, 1, 2, 3]
    image = ImageSpan(0, torch.arange(4), 4, (1, 2, 2), grid_centres(2, 2))
    assert before(image).tolist() == [-1] * 4


def test_slow_drift_is_seen_by_what_was_kept() -> None:
    """One place turns by 2 degrees a frame, another by 5 degrees once: the frame before sees the second first."""
    from vlmprune.flow.over_time import before, changes, kept_order

    frames = 40
    angle = torch.zeros(frames, 2, dtype=torch.float64)
    angle[:, 0] = torch.arange(frames) * 2
    angle[20:, 1] = 5
    hidden = torch.stack([angle.deg2rad().cos(), angle.deg2rad().sin()], dim=-1).flatten(0, 1)
    span = video(frames, 1, 2)
    assert int(changes(hidden, before(span)).argmax()) == 41  # the jump
    order = torch.sort(kept_order(hidden, span, 100), descending=True).indices[:3].tolist()
    assert order[0] == 78  # the end of the drift, 78 degrees off
    assert 41 not in order


def test_wrong_options() -> None:
    for options, said in [
        ({"against": "next"}, "against='next' is unknown; use 'previous' or 'kept'"),
        ({"against": 3}, "against=3"),
        ({"frames": "best"}, "frames='best' is unknown; use 'shared', 'even' or 'text'"),
        ({"frames": "text", "top_p": 0.5}, "frames='text' needs a method that"),
    ]:
        with pytest.raises(VlmpruneError, match=said):
            vlmprune.Temporal(**options)
    with pytest.raises(VlmpruneError, match="frames='text' needs a method that"):
        vlmprune.PyramidDrop(frames="text")
