"""What each type of model can do: one probe a column of the support matrix, run on the type's tiny model.

A probe returns where what the package computes equals a reference that does without it. It raises `Differs` where it
does not, `Untested` where that cannot be seen, and whatever the package raises where it refuses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import vlmprune
from tests.full.subjects import Inputs, Subject, weights_of
from tests.support.masked_generate import dropped_of, forced_logits, masked_forced_logits
from tests.support.videos import video_subject, visual
from vlmprune.families.generic import decoder_of
from vlmprune.guide.runner import Guide
from vlmprune.methods.base import Pruner, PruningContext
from vlmprune.serving.tower import SERVED, served_family

KEEP, STEPS = 0.4, 5
BOUND = 1e-5  # of max(1, std of the logits)
MOVED = 1e-3  # at least, or the comparison shows nothing


class Differs(Exception):
    """The package computes something else than the reference."""


class Untested(Exception):
    """Nothing was shown."""


@dataclass(frozen=True)
class Answer:
    """`says`: yes, no, untested, none (there is nothing to support) or differs; `worst`: of what was compared."""

    says: str
    why: str = ""
    worst: float | None = None


@dataclass(frozen=True)
class Shown:
    """What a probe that returns has shown."""

    worst: float | None = None
    note: str = ""


def forced(batch: int) -> Tensor:
    return torch.randint(10, 99, (batch, STEPS), generator=torch.Generator().manual_seed(1))


def equal(found: Tensor, expected: Tensor, spread: float, what: str) -> float:
    """The largest difference in units of `spread`.

    Raises:
        Differs: it is above the bound.
    """
    worst = float((found - expected).abs().max()) / spread
    if not worst <= BOUND:  # NaN too
        raise Differs(f"{what} differs by {worst:.1e}")
    return worst


def exact(subject: Subject, inputs: Inputs, layers: Sequence[int]) -> Shown:
    """Pruned equals masked, over a prompt and its steps."""
    model, tokens = subject.model(), forced(len(inputs["input_ids"]))
    plain, worst, moved = forced_logits(model, dict(inputs), tokens), 0.0, 0.0
    for layer in layers:
        with vlmprune.wrap(model, vlmprune.Uniform(keep=KEEP, layer=layer)) as pruned:
            found = forced_logits(model, dict(inputs), tokens)
            kept = pruned.report.kept
        moved = max(moved, float((found - plain).abs().max()))  # behind the last attention nothing can move
        masked = subject.masked(inputs, kept, layer, tokens)
        worst = max(worst, equal(found, masked, max(1.0, float(masked.std())), f"before layer {layer} a logit"))
    if not torch.equal(forced_logits(model, dict(inputs), tokens), plain):
        raise Differs("the unwrapped model is not as it was")
    if moved < MOVED:
        raise Untested(f"dropping tokens moves the tiny model's logits by {moved:.0e} only")
    return Shown(worst)


def exact_first(subject: Subject) -> Shown:
    return exact(subject, subject.inputs("one"), [0])


def exact_later(subject: Subject) -> Shown:
    return exact(subject, subject.inputs("one"), range(1, subject.depth))


def ragged(subject: Subject) -> Shown:
    return exact(subject, subject.inputs("ragged"), [0, 1])


def fastv(subject: Subject) -> Shown:
    """What FastV keeps is what an eager run of the plain model attends to most, in the layer before."""
    model, inputs = subject.model(), subject.inputs("pair")
    seen, refused = subject.maps(inputs)[0], None
    for layer in range(2, subject.depth):
        try:
            with vlmprune.wrap(model, vlmprune.FastV(keep=KEEP, layer=layer)) as pruned:
                model.generate(**inputs, max_new_tokens=1)
                kept = pruned.report.kept
        except vlmprune.VlmpruneError as error:
            refused = refused or error
            continue
        last = seen[max(i for i in seen if i < layer)].float().mean(dim=1)[:, -1]
        worst = max(lost(last[b, own], kept[b]) for b, own in enumerate(subject.slots(inputs)))
        if worst > BOUND:
            raise Differs(f"it keeps tokens that get {worst:.1e} less attention than some that it drops")
        return Shown(worst, "" if layer == 2 else f"with `layer={layer}` or more")
    assert refused is not None, "a tiny model has three layers or more"
    raise refused


def lost(scores: Tensor, kept: Tensor) -> float:
    """By how much the best dropped score is above the worst kept one, 0 where kept are the best."""
    count = max(1, math.floor(KEEP * len(scores) + 0.5))
    if len(kept) != count:
        raise Differs(f"it keeps {len(kept)} of {len(scores)} tokens")
    dropped = torch.ones(len(scores), dtype=torch.bool)
    dropped[kept] = False
    return max(0.0, float(scores[dropped].max() - scores[kept].min()))


@dataclass(frozen=True)
class _TowerAttention(Pruner):
    """Ranks by what the vision tower attends to, and nothing else."""

    reads_vision = True

    def score(self, prompt: PruningContext) -> list[Tensor]:
        assert prompt.vision is not None, "it was asked for"
        return [one.received for one in prompt.vision]


def tower(subject: Subject) -> Shown:
    """The attention that tower methods rank by is the one of the eager tower's layer that the model uses."""
    model, inputs = subject.model(), subject.inputs("pair")
    for method in (vlmprune.VisionZip(keep=KEEP), _TowerAttention(keep=KEEP)):
        with vlmprune.wrap(model, method) as pruned, torch.no_grad():
            model(**inputs)
            kept = pruned.report.kept
    eager = subject.model("eager")
    vision = eager.base_model.vision_tower
    blocks = next(part for part in vision.modules() if isinstance(part, torch.nn.ModuleList))
    with weights_of(blocks) as seen:
        eager(**inputs)
    used = int(getattr(eager.config, "vision_feature_layer", -1))
    maps = seen[0][used % (len(blocks) + 1) - 1 if used < 0 else used - 1].float().mean(dim=1)  # hidden_states[used]
    count = len(subject.slots(inputs)[0])
    extra = maps.shape[-1] - count  # a class token
    scores = maps[:, 0, extra:] if extra else maps.mean(dim=1)
    worst = max(lost(own, some) for own, some in zip(scores, kept, strict=True))
    if worst > BOUND:
        raise Differs(f"it keeps tokens that get {worst:.1e} less attention than some that it drops")
    return Shown(worst)


def var(subject: Subject) -> Shown:
    """VAR moves the logits, alike beside two kernels, and is gone when taken off."""
    found, inputs = [], subject.inputs("ragged")
    width = int(subject.model().config.get_text_config().hidden_size)
    method = vlmprune.VAR(p=0.9, rho=0.0, gate=0.0, tau=0.3 * width**0.5, sink_dims=list(range(width)))
    tokens = forced(len(inputs["input_ids"]))
    for attn in ("sdpa", "eager"):
        model = subject.model(attn)
        plain = forced_logits(model, dict(inputs), tokens)
        with vlmprune.wrap(model, method):
            found.append(forced_logits(model, dict(inputs), tokens))
        if not torch.equal(forced_logits(model, dict(inputs), tokens), plain):
            raise Differs("the unwrapped model is not as it was")
        if (moved := float((found[-1] - plain).abs().max())) < MOVED:
            raise Untested(f"the tiny model's logits move by {moved:.0e} only")
    spread = 10 * max(1.0, float(found[0].std()))  # two kernels differ by more than two masks
    return Shown(equal(*found, spread, "beside another kernel a logit"))


class _Ranking(vlmprune.SGL):
    """SGL without the second look of its guide, which only exits need."""

    measure_consistency = False


def guided(subject: Subject) -> Shown:
    """SGL keeps what the eager guide, another model of the type, attends to most; pruned equals masked."""
    model, inputs = subject.model(), subject.inputs("pair")
    tokens = forced(len(inputs["input_ids"]))
    with vlmprune.wrap(model, _Ranking(guide=subject.model(seed=1), keep=KEEP)) as pruned:
        found = forced_logits(model, dict(inputs), tokens)
        kept = pruned.report.kept
    for scores, own in zip(subject.importance(inputs, STEPS, seed=1), kept, strict=True):
        if lost(scores, own) > BOUND * float(scores.max()):
            raise Differs("it keeps other tokens than those the guide attends to most")
    masked = subject.masked(inputs, kept, int(KEEP * subject.depth), tokens)
    return Shown(equal(found, masked, max(1.0, float(masked.std())), "a logit"))


def guide(subject: Subject) -> Shown:
    """The importance that a guide gives is its eager attention, summed over layers, heads, text and steps."""
    inputs, worst = subject.inputs("ragged"), 0.0
    ready = Guide(subject.model())
    ready.check = False  # as above
    for steps in (1, 3):
        found = ready.answer(dict(inputs), {"max_new_tokens": steps}, whole=True).importance
        for own, expected in zip(found, subject.importance(inputs, steps), strict=True):
            worst = max(worst, equal(own, expected, float(expected.max()), "the importance of a token"))
    return Shown(worst)


def video(subject: Subject) -> Shown:
    """Videos are found, each with a budget of its own, and pruned equals masked."""
    try:
        found = video_subject(subject.model_type)
    except LookupError:
        raise Untested("no tiny prompt with a video was found that the model runs on") from None
    if found is None:
        raise Missing("the model takes no videos other than as images")
    model, inputs, more = found
    tokens, worst = forced(2), 0.0
    seen, layers = visual(model, inputs), decoder_of(model).layers
    for layer in (0, 1):
        with vlmprune.wrap(model, vlmprune.Uniform(keep=KEEP, layer=layer)) as pruned:
            logits = forced_logits(model, dict(inputs) | more, tokens)
            report = pruned.report
        for span in [span for spans in report.images for span in spans]:
            if len(span.kept) != max(1, math.floor(KEEP * span.count + 0.5)):
                raise Differs(f"of a {span.kind} of {span.count} tokens it keeps {len(span.kept)}")
        masked = masked_forced_logits(model, layers, dict(inputs), dropped_of(seen, report.kept), layer, tokens)
        worst = max(worst, equal(logits, masked, max(1.0, float(masked.std())), f"before layer {layer} a logit"))
    return Shown(worst)


class Missing(Exception):
    """There is nothing to support."""


def served(subject: Subject) -> Shown:
    """An engine takes embeddings of the type, at these positions."""
    config = subject.model().config
    served_family(config)
    return Shown(note=" or ".join(SERVED[config.model_type]) + " positions")


@dataclass(frozen=True)
class Capability:
    """A column: its `title`, and what a yes means."""

    title: str
    probe: Callable[[Subject], Shown]
    means: str


CAPABILITIES: dict[str, Capability] = {
    "exact_first": Capability(
        "exact, `layer=0`", exact_first, "tokens dropped before the language model: pruned equals masked."
    ),
    "exact_later": Capability(
        "exact, `layer` ≥ 1", exact_later, "the same before every later layer of the tiny model, one after the other."
    ),
    "ragged": Capability(
        "ragged batch", ragged, "the same in a padded batch whose prompts have different numbers of visual tokens."
    ),
    "fastv": Capability(
        "FastV", fastv, "methods that read attention keep what an eager run of the plain model attends to most."
    ),
    "tower": Capability(
        "tower", tower, "VisionZip, PruMerge and your own rank by what the vision tower attends to in an eager run."
    ),
    "var": Capability(
        "VAR", var, "attention is edited, alike beside two kernels, and the model is itself again afterwards."
    ),
    "guided": Capability(
        "SGL, model", guided, "it is pruned by what a guide attends to: the eager guide's choice, pruned equals masked."
    ),
    "guide": Capability(
        "SGL, guide", guide, "it guides others: its ranking equals its eager attention, over layers, text and steps."
    ),
    "video": Capability("video", video, "videos are pruned, each within a budget of its own: pruned equals masked."),
    "served": Capability("vLLM", served, "an engine is handed its pruned embeddings."),
}


def ask(capability: Capability, subject: Subject) -> Answer:
    """A capability's answer for a type; errors that are no refusal are the caller's."""
    try:
        shown = capability.probe(subject)
    except vlmprune.VlmpruneError as refusal:
        return Answer("no", str(refusal))
    except Missing as nothing:
        return Answer("none", str(nothing))
    except Untested as unseen:
        return Answer("untested", str(unseen))
    except Differs as difference:
        return Answer("differs", str(difference))
    return Answer("yes", shown.note, shown.worst)
