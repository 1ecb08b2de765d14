"""Peers against what their official code does, as plain eager loops over lists of numbers, on random cases.

Where the official code goes beyond `keep` the reference is called with the budget that makes both the same.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import vlmprune
from tests.support.running import shared
from tests.support.tiny_families import make_inputs, row
from vlmprune.flow.locate import ImageSpan, SampleLayout
from vlmprune.methods.base import PruningContext

CASES = range(100)


def context(hidden: Tensor, first: int, visual: int, padding: int = 0, **more) -> PruningContext:
    """One sample [S, D] with one image from position `first` on, behind some padding."""
    hidden = torch.cat([torch.full((padding, hidden.shape[1]), float("nan")), hidden])
    size, start = len(hidden), first + padding
    at = torch.arange(visual)
    span = ImageSpan(0, at, visual, (1, visual), torch.stack([at, at * 0], dim=1))
    layouts = [SampleLayout(torch.arange(start, start + visual), (span,))]
    return PruningContext(
        layouts=layouts,
        unpruned=layouts,
        hidden=hidden[None],
        input_ids=torch.arange(size)[None],
        valid=(torch.arange(size) >= padding)[None],
        layer=2,
        **more,
    )


def chosen(method, prompt: PruningContext) -> list[int]:
    (kept,) = method.select(prompt).kept
    return kept.tolist()


def similar(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def farthest(points: Tensor, count: int) -> list[int]:
    every = range(len(points))
    away = [[1 - similar(points[a], points[b]) for b in every] for a in every]
    picked = [max(every, key=lambda a: min(away[a][b] for b in every if b != a))]
    while len(picked) < count:
        picked.append(max((a for a in every if a not in picked), key=lambda a: min(away[a][b] for b in picked)))
    return sorted(picked)


def test_divprune():
    """Every second case has features that are almost parallel."""
    wrong = []
    for case in CASES:
        torch.manual_seed(case)
        points = torch.randn(24, 16) if case % 2 else 1 + 2e-4 * torch.randn(24, 16)
        count = 3 + case % 8
        if chosen(vlmprune.DivPrune(keep=count), context(points, 0, 24)) != farthest(points, count):
            wrong.append(case)
    assert wrong == []


def conditional(points: Tensor, words: Tensor, count: int, negate: bool) -> list[int]:
    """The official kernel, and the greedy gain by Schur complements of sub-matrices instead of its recursion."""
    every = range(len(points))
    sign = -1 if negate else 1
    mean = [sign * sum(similar(v, w) for w in words) / len(words) for v in points]
    weight = [(m - min(mean) + 1e-6) / (max(mean) - min(mean)) for m in mean]
    near = [[similar(points[a], points[b]) for b in every] for a in every]
    kernel = torch.tensor([[weight[a] * near[a][b] * weight[b] for b in every] for a in every], dtype=torch.float64)
    picked: list[int] = []
    for _ in range(count):

        def gain(a: int) -> float:
            some = torch.tensor(picked, dtype=torch.long)
            return float(kernel[a, a] - kernel[a, some] @ torch.linalg.solve(kernel[some][:, some], kernel[some, a]))

        picked.append(max((a for a in every if a not in picked), key=gain))
    return sorted(picked)


@pytest.mark.parametrize("negate", [False, True])
def test_cdpruner(negate):
    wrong = []
    for case in CASES:
        torch.manual_seed(case)
        states, count = torch.randn(22, 24), 2 + case % 6
        method = vlmprune.CDPruner(keep=count, negate=negate)
        if chosen(method, context(states, 2, 16)) != conditional(states[2:18], states[18:], count, negate):
            wrong.append(case)
    assert wrong == []


def duplication(states: Tensor, keys: Tensor, first: int, visual: int, budget: int, norm: Tensor) -> list[int]:
    """DART's loop for a budget of which every pivot takes an eighth; the pivots come on top.

    states [S, D] entering the layer, keys [H, S, width] rotated, norm [D]: weights of the last RMS norm.
    """
    large = [sum(abs(float(x)) for x in keys[:, at].flatten()) for at in range(len(states))]
    image = sorted(range(first, first + visual), key=lambda at: -large[at])[:4]
    text = sorted(range(first + visual, len(states)), key=lambda at: -large[at])[:4]
    normed = [state / state.pow(2).mean().sqrt() * norm for state in states.double()]
    rest = [at for at in range(first, first + visual) if at not in image]
    kept = list(image)
    for pivot in set(image + text):
        rest.sort(key=lambda at, pivot=pivot: similar(normed[pivot], normed[at]))
        taken, rest = rest[: math.ceil(budget / 8)], rest[math.ceil(budget / 8) :]
        kept += taken
    return sorted(at - first for at in kept)


def test_dart():
    """Budgets that are multiples of the pivots; prompts of up to 90 tokens, so that a set is not sorted."""
    wrong = []
    for case in CASES:
        torch.manual_seed(case)
        first, visual, words, budget = 1 + case % 30, 40, 6 + case % 14, 8 * (1 + case % 4)
        states, keys = torch.randn(first + visual + words, 16), torch.randn(2, first + visual + words, 8)
        norm = torch.nn.RMSNorm(16)
        norm.weight.data = torch.rand(16) + 0.5
        expected = duplication(states, keys, first, visual, budget, norm.weight.data)
        for padding in (0, 5):
            padded = torch.cat([torch.full((2, padding, 8), float("nan")), keys], dim=1)[None]
            prompt = context(states, first, visual, padding, keys=padded, last_norm=norm)
            if chosen(vlmprune.Dart(keep=budget + 4), prompt) != expected:
                wrong.append((case, padding))
    assert wrong == []


def test_darts_pivots_are_within_the_budget():
    """Whatever the budget, it is met, and the largest keys are among what stays."""
    for keep in range(1, 41):
        keys = torch.randn(1, 2, 50, 8)
        kept = chosen(vlmprune.Dart(keep=keep), context(torch.randn(50, 16), 3, 40, keys=keys))
        assert len(kept) == keep == len(set(kept))
        large = keys[0, :, 3:43].abs().sum(dim=(0, 2)).sort(descending=True).indices.tolist()
        assert set(large[: min(4, keep)]) <= set(kept)


def peaks(points: list[list[float]], clusters: int, neighbours: int) -> list[list[int]]:
    """The official clustering without its noise: groups of points, each with its centre first."""
    every = range(len(points))
    away = [[math.dist(points[a], points[b]) / math.sqrt(len(points[a])) for b in every] for a in every]
    density = [math.exp(-sum(d * d for d in sorted(row)[:neighbours]) / min(neighbours, len(row))) for row in away]
    far = max(max(row) for row in away)
    score = [density[a] * min([far, *(away[a][b] for b in every if density[b] > density[a])]) for a in every]
    centres = sorted(every, key=lambda a: -score[a])[:clusters]
    groups = [[centre] for centre in centres]
    for a in every:
        if a not in centres:
            groups[min(range(clusters), key=lambda c: away[a][centres[c]])].append(a)
    return groups


def recycled(states: Tensor, scores: list[float], stay: int, neighbours: int) -> dict[int, Tensor]:
    """The official stage, which keeps `stay` tokens and puts clusters on top; by the place of each centre."""
    order = sorted(range(len(states)), key=lambda a: -scores[a])
    dropped = order[stay:]
    pool = dropped[: int(len(dropped) * 0.3) + 1]
    clusters = int(len(pool) / 10) + 1
    out = {a: states[a] for a in order[:stay]}
    for group in peaks([states[a].tolist() for a in pool], clusters, neighbours or clusters):
        out[pool[group[0]]] = states[[pool[a] for a in group]].mean(dim=0)
    return dict(sorted(out.items()))


@pytest.mark.parametrize("neighbours", [5, 0])
def test_sparsevlm(neighbours):
    """One stage of 130 tokens, of which up to 36 are clustered into up to 4."""
    wrong = []
    for case in CASES:
        torch.manual_seed(case)
        states, attention = torch.randn(130, 8), torch.rand(1, 130)
        # Where one token more and one cluster less make as many, it is the token.
        expected, other = (recycled(states, attention[0].tolist(), 10 + case + more, neighbours) for more in (0, 1))
        expected = other if len(other) == len(expected) else expected
        method = vlmprune.SparseVLM(keep=len(expected), neighbours=neighbours)
        selection = method.select(context(states, 0, 130, attention=attention))
        near = torch.allclose(selection.merged[0], torch.stack(list(expected.values())), atol=1e-5)
        if selection.kept[0].tolist() != list(expected) or not near:
            wrong.append(case)
    assert wrong == []


def test_sparsevlm_obeys_every_budget():
    """Also where it is too small for all clusters."""
    for count in range(1, 31):
        prompt = context(torch.randn(30, 4), 0, 30, attention=torch.rand(1, 30))
        assert len(set(chosen(vlmprune.SparseVLM(keep=count), prompt))) == count


def test_sparsevlm_drops_behind_layers_2_6_and_15_of_32():
    assert vlmprune.SparseVLM().stage_layers(32) == (3, 7, 16)
    assert vlmprune.SparseVLM(layer=3).stage_layers(32) == (3, 7, 16)


def turned(heads: Tensor, theta: float) -> Tensor:
    """Llama's rotary embedding of one head [S, width] of a prompt from position 0 on."""
    half = heads.shape[1] // 2
    angle = torch.arange(len(heads))[:, None] * torch.tensor([theta ** (-i / half) for i in range(half)])
    low, high = heads[:, :half], heads[:, half:]
    return torch.cat([low * angle.cos() - high * angle.sin(), high * angle.cos() + low * angle.sin()], dim=1)


def last_tokens_attention(layer, states: Tensor, config) -> list[float]:
    """What the last of the tokens [S, D] entering a Llama layer attends to, mean over heads."""
    weight = layer.input_layernorm.weight
    normed = torch.stack([x / torch.sqrt(x.pow(2).mean() + config.rms_norm_eps) * weight for x in states])
    heads, groups = config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads
    width, theta = config.hidden_size // heads, config.rope_parameters["rope_theta"]
    queries = (normed @ layer.self_attn.q_proj.weight.T).view(len(states), heads, width)
    keys = (normed @ layer.self_attn.k_proj.weight.T).view(len(states), -1, width)
    out = [0.0] * len(states)
    for head in range(heads):
        dots = (turned(keys[:, head // groups], theta) @ turned(queries[:, head], theta)[-1]).tolist()
        powers = [math.exp((dot - max(dots)) / math.sqrt(width)) for dot in dots]
        out = [o + power / sum(powers) / heads for o, power in zip(out, powers, strict=True)]
    return out


@torch.no_grad()
def test_pyramiddrop():
    """Ranked by the layer before which it drops, from the states that enter it: 25 words and pictures for each of 4."""
    model, wrong = shared("llava"), []
    config, layers = model.config.text_config, model.model.language_model.layers
    one = row(make_inputs(model), 2)
    visual = (one["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0].tolist()
    for layer in range(4):
        torch.manual_seed(layer)
        given = {name: value.repeat(25, *[1] * (value.dim() - 1)) for name, value in one.items()}
        given["pixel_values"] = torch.randn_like(given["pixel_values"])
        ids = given["input_ids"]
        given["input_ids"] = torch.where(ids < 100, torch.randint(10, 100, ids.shape), ids)
        states = model(**given, output_hidden_states=True).hidden_states[layer]
        with vlmprune.wrap(model, vlmprune.PyramidDrop(keep=3, layer=layer, stages=1)) as pruned:
            model(**given)
        for case, kept in enumerate(pruned.report.kept):
            seen = last_tokens_attention(layers[layer], states[case], config)
            if kept.tolist() != sorted(sorted(range(len(visual)), key=lambda a, seen=seen: -seen[visual[a]])[:3]):
                wrong.append((layer, case))
    assert wrong == []
