"""The peers against naive twins: plain loops written from the papers over an unwrapped model with eager attention.

A twin says which tokens stay, sample by sample without padding; the logits of the wrapped, batched model must then be
those of masking the others.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

import vlmprune
from tests.support.reference import language_model, visual_slots
from tests.support.running import STEPS, assert_near, generate, reference, shared
from tests.support.tiny_families import FAMILIES, make_inputs, row
from vlmprune import VlmpruneError
from vlmprune.methods.base import Pruner

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
FIXED_GRID = ("llava", "qwen2_vl")


class Eager:
    """Everything a twin may look at: hidden states and attention maps of one unpadded prompt, unpruned."""

    def __init__(self, model, inputs, sample):
        one = row(inputs, sample)
        with torch.no_grad():
            out = model(**one, output_hidden_states=True, output_attentions=True, use_cache=False)
        self.model, self.inputs = model, one
        self.hidden = [h[0] for h in out.hidden_states]
        self.attention = [a[0] for a in out.attentions]
        self.slots = visual_slots(model, one)[0]
        self.visual = [h[self.slots] for h in self.hidden]
        self.words = torch.arange(int(self.slots.max()) + 1, len(self.hidden[0]))

    def keys(self, layer):
        """Keys before the rotation, which leaves their norms alone: [S, width]."""
        decoder = language_model(self.model).layers[layer]
        return decoder.self_attn.k_proj(decoder.input_layernorm(self.hidden[layer]))


def twin_divprune(eager: Eager, count: int) -> list[int]:
    points = eager.visual[0]

    def distance(a, b):
        return 1 - float(cosine_similarity(points[a], points[b], dim=0))

    every = range(len(points))
    chosen = [max(every, key=lambda a: min(distance(a, b) for b in every if b != a))]
    while len(chosen) < count:
        chosen.append(max((a for a in every if a not in chosen), key=lambda a: min(distance(a, b) for b in chosen)))
    return sorted(chosen)


def twin_cdpruner(eager: Eager, count: int) -> list[int]:
    """Greedy over determinants, each computed from nothing."""
    visual, words = eager.visual[0].double(), eager.hidden[0][eager.words].double()
    mean = [sum(float(cosine_similarity(v, w, dim=0)) for w in words) / len(words) for v in visual]
    weights = [(m - min(mean)) / (max(mean) - min(mean)) + 1e-6 for m in mean]
    size = len(visual)
    matrix = torch.tensor(
        [
            [weights[a] * float(cosine_similarity(visual[a], visual[b], dim=0)) * weights[b] for b in range(size)]
            for a in range(size)
        ],
        dtype=torch.float64,
    )
    chosen: list[int] = []
    while len(chosen) < count:

        def volume(a: int) -> float:
            some = torch.tensor([*chosen, a])
            return float(torch.linalg.det(matrix[some][:, some]))

        chosen.append(max((a for a in range(size) if a not in chosen), key=volume))
    return sorted(chosen)


def twin_dart(eager: Eager, count: int, layer: int = 2, pivots: int = 4) -> list[int]:
    norms = eager.keys(layer - 1).norm(dim=-1)
    visual = sorted(range(len(eager.slots)), key=lambda a: -float(norms[eager.slots[a]]))[: min(pivots, count)]
    text = sorted(eager.words.tolist(), key=lambda a: -float(norms[a]))[:pivots]
    states = eager.hidden[layer]
    every = [states[eager.slots[a]] for a in visual] + [states[a] for a in text]
    kept, left = list(visual), count - len(visual)
    for at, pivot in enumerate(every):
        share = left // len(every) + (1 if at < left % len(every) else 0)
        rest = [a for a in range(len(eager.slots)) if a not in kept]
        rest.sort(key=lambda a: float(cosine_similarity(states[eager.slots[a]], pivot, dim=0)))
        kept += rest[:share]
    return sorted(kept)


TWINS = {"divprune": twin_divprune, "cdpruner": twin_cdpruner, "dart": twin_dart}


@pytest.mark.parametrize("family", FIXED_GRID)
@pytest.mark.parametrize("keep", [0.3, 0.7, 1])
@pytest.mark.parametrize("name", TWINS)
def test_keeps_what_the_twin_keeps_and_computes_what_masking_does(name, keep, family):
    model = shared(family, "eager")
    inputs = make_inputs(model)
    eager = [Eager(model, inputs, sample) for sample in range(3)]
    visual = [len(one.slots) for one in eager]
    counts = [keep if isinstance(keep, int) else max(1, math.floor(keep * v + 0.5)) for v in visual]
    plan = [TWINS[name](one, count) for one, count in zip(eager, counts, strict=True)]
    method = vlmprune.methods()[name](keep=keep)
    with vlmprune.wrap(model, method) as pruned:
        logits, out = generate(model, inputs)
        assert [kept.tolist() for kept in pruned.report.kept] == plan
    layer = method.layer
    assert_near(logits, reference(model, inputs, plan, layer, STEPS, out.sequences[:, -STEPS:]))


UNSUPPORTED = {"cdpruner": ("mllama",), "dart": ("mllama",)}
PEERS = [cls for name, cls in vlmprune.methods().items() if name in TWINS]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cls", PEERS, ids=lambda cls: cls.name)
def test_every_family_runs_or_says_why_not(cls: type[Pruner], family: str):
    model = shared(family)
    inputs = make_inputs(model, images=(2, 1, 2))
    if family in UNSUPPORTED.get(cls.name, ()):
        with pytest.raises(VlmpruneError, match=repr(family)):
            vlmprune.wrap(model, cls(keep=0.4))
        return
    with vlmprune.wrap(model, cls(keep=0.4)) as pruned:
        logits, out = generate(model, inputs)
        report = pruned.report
    if report.method["name"] in TWINS:
        assert_near(
            logits, reference(model, inputs, report.kept, cls(keep=0.4).layer, STEPS, out.sequences[:, -STEPS:])
        )
    for spans in report.images:
        assert [len(span.kept) for span in spans] == [max(1, int(0.4 * span.count + 0.5)) for span in spans]


@pytest.mark.parametrize("cls", PEERS, ids=lambda cls: cls.name)
def test_a_row_chooses_alike_alone_and_in_a_batch(cls: type[Pruner]):
    model = shared("llava")
    inputs = make_inputs(model)
    with vlmprune.wrap(model, cls(keep=0.5)) as pruned:
        generate(model, inputs, 1)
        batched = [kept.tolist() for kept in pruned.report.kept]
        for i in range(3):
            generate(model, row(inputs, i), 1)
            assert pruned.report.kept[0].tolist() == batched[i]


def test_equal_tokens_are_not_chosen_twice():
    from vlmprune.methods.cdpruner import greedy_mode, kernel
    from vlmprune.methods.divprune import farthest_points

    same = torch.ones(6, 4)
    assert farthest_points(same, 3).tolist() == [0, 1, 2]
    assert len(set(greedy_mode(kernel(same, torch.ones(6).double()), 3).tolist())) == 3


def test_bad_options():
    with pytest.raises(VlmpruneError, match="leave no pivot"):
        vlmprune.methods()["dart"](visual_pivots=0, text_pivots=0)
    with pytest.raises(VlmpruneError, match="Dart reads the attention of the layer before"):
        vlmprune.wrap(shared("llava"), "dart", layer=0)
