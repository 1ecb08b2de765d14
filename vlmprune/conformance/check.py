"""`vlmprune.check`: does pruning compute on this model what masking does? In seconds, on the user's own weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..api import unwrap_peft
from ..errors import UnsupportedModelError, VlmpruneError
from ..families import Family, family_of
from ..flow.frames import HINT
from ..flow.select import Selection, count_for, every_nth
from ..hf.arguments import has_visuals, to_device
from ..hf.hooks import evaluating
from ..inputs.processor import reason
from ..methods.base import Pruner, PruningContext
from ..runtime.call_lock import attached, bare
from ..runtime.session import Session
from .batch import forced_tokens, hardened, padded_left, prompts, special_ids, valid_in, visual_in
from .cross import image_columns
from .kinds import Kind, probe_layers
from .reference import ForcedRun, Trace, hiding, plain_generation, written_masks
from .report import CheckReport, LayerCheck
from .rounding import RoundingBounds, apart, bounds_of, jittered
from .rows import rows_apart

TOKENS = 4  # forced; the first of them follows the prompt
FEW = 2  # of an image's tokens more are never all kept
WRONG = 4  # times what rounding does is not rounding


@dataclass(frozen=True)
class Uneven(Pruner):
    """Keeps evenly spaced visual tokens, of every second sample half as many again: rows of different lengths."""

    name: ClassVar[str] = ""
    keep: float = 0.4

    def select(self, prompt: PruningContext) -> Selection:
        kept = []
        for b, layout in enumerate(prompt.layouts):
            keep = self.keep * (1 + b % 2 / 2)
            kept.append(every_nth(layout.images, [count_for(keep, span.count) for span in layout.images]))
        return Selection(kept)


def check(model: Any, processor_or_inputs: Any, layers: Sequence[int] | None = None) -> CheckReport:
    """Prove on a model that pruned equals masked, over a prompt and its steps, in a batch with padding.

    A prompt with images or videos runs pruned, and unpruned with the dropped tokens hidden from every later layer by
    its mask; a recurrent layer, which no mask governs, runs over the kept tokens. Both take the same tokens. Logits are
    compared, and where they differ, the rows that enter and leave every decoder layer. The bound is 1e-5 of the logits'
    spread or, where it is more, twice what rounding does: masks written out, half a unit in the last place of what
    every module returns, and another content of hidden tokens.

    Args:
        model: any loaded image-text model; a wrapped one is checked as the plain one. processor_or_inputs: its
            processor, or what it returned for prompts with images or videos, of which a batch with padding is made.
            layers: before which tokens are dropped; by default 0, 1 and half the depth.
    Returns:
        The findings; `str()` is a short table.
    Raises:
        UnsupportedModelError: the model cannot be wrapped, or hiding tokens is no reference for it.
        VlmpruneError: no such layer, or prompts without an image.
    """
    plain = unwrap_peft(model)
    family = family_of(plain)
    text = family.language_model(plain)
    notes: list[str] = []
    with evaluating(plain), bare(plain), plain_generation(plain):
        sessions = _sessions(plain, family, len(text.layers), layers, notes)
        given = dict(processor_or_inputs if isinstance(processor_or_inputs, Mapping) else prompts(processor_or_inputs))
        given.pop(HINT, None)  # which of equally exact budgets, and not known to the plain model
        run, whole = _prompt(plain, family, text, to_device(plain, given), notes)
        kinds = _kinds(run)
        first = sessions[0].setup.layers[0]
        if family.cross_attention:
            run = _with_columns(run)
        hidden = run.hideable & (run.hideable.cumsum(1) % 3 != 1)
        if run.columns is None:
            hidden[:, -1] = False
        same, rounded = _equal_runs(run, text, kinds, whole, first, hidden)
        bounds = bounds_of(whole, [*same.values(), rounded], run.left(hidden))
        report = CheckReport(
            plain.config.model_type, family.adapter, bounds.logits, [str(k) for k in kinds], notes=notes
        )
        for session in sessions:
            report.layers.append(_compared(session, run, text, kinds, whole, bounds))
    moved = max(one.moved for one in report.layers)
    for what, pair in same.items():
        if (off := apart(*pair)) > max(moved / 2, WRONG * apart(*rounded)):
            raise UnsupportedModelError(
                f"check() has no reference for this model of type {plain.config.model_type!r}: {what} moves its logits "
                f"by {off:.1e}, and pruning by {moved:.1e}; compare answers with and without pruning instead."
            )
    for one in report.layers:
        if one.moved < 2 * report.bound:
            notes.append(f"Dropping tokens before layer {one.layer} moves the logits little more than rounding does.")
    return report


def _sessions(model: Any, family: Family, depth: int, layers: Sequence[int] | None, notes: list[str]) -> list[Session]:
    """One for each layer before which tokens are dropped; of those by default, the ones that the model allows."""
    sessions = []
    if layers is not None and not isinstance(layers, Sequence):
        raise VlmpruneError(f"layers={layers!r} is no list of decoder layers; give one, for example [0].")
    for layer in sorted({0, 1, depth // 2} & set(range(depth))) if layers is None else layers:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < depth:
            raise VlmpruneError(f"layers={layer!r} is not one of the model's {depth} decoder layers, 0 to {depth - 1}.")
        try:
            sessions.append(Session(model, family, Uneven(layer=layer)))
        except VlmpruneError as error:
            if layers is not None or layer == 0:
                raise
            notes.append(f"Not before layer {layer}: {error}")
    if not sessions:
        raise VlmpruneError("layers is empty; name decoder layers before which tokens are dropped, for example [0].")
    return sessions


def _prompt(model: Any, family: Family, text: Any, given: dict[str, Any], notes: list[str]) -> tuple[ForcedRun, Trace]:
    """The prompts to compare on, and what the model makes of them unpruned."""
    ids = family.visual_ids(model.config)
    visual_in(given, ids)
    if not has_visuals(given):
        raise VlmpruneError("The prompts have image tokens but no image, such as pixel_values, came with them.")
    given = padded_left(given)
    said: list[str] = []
    hard = hardened(given, model, text, ids, said)
    try:
        run, whole = _run(model, text, hard, ids)
    except Exception as error:  # whatever a model says to inputs that were made of its own
        said = [f"Padding and longer prompts were not tried: the model does not take them ({reason(error)})."]
        try:
            run, whole = _run(model, text, given, ids)
        except VlmpruneError:
            raise
        except Exception as own:
            raise VlmpruneError(
                f"The model does not run on these prompts ({reason(own)}); pass inputs that its generate() takes."
            ) from own
    notes += said
    return run, whole


def _run(model: Any, text: Any, inputs: dict[str, Any], visual_ids: list[int]) -> tuple[ForcedRun, Trace]:
    visual, valid = visual_in(inputs, visual_ids), valid_in(inputs)
    special = special_ids(model) | set(visual_ids)
    words = inputs["input_ids"].masked_fill(~valid | visual, visual_ids[0])
    run = ForcedRun(model, text.layers, inputs, valid, visual, forced_tokens(words, TOKENS, special))
    whole = run.trace()
    if bool((whole.logits.isnan() | whole.logits.isposinf()).any()):
        raise VlmpruneError(
            f"The model's own logits hold NaN or infinity in {model.dtype}, so there is nothing to compare; look at "
            "its weights, or load it in a precision with a wider range."
        )
    return run, whole


def _with_columns(run: ForcedRun) -> ForcedRun:
    """The same prompts, with the columns of the cross attention that are visual tokens."""
    found: list[Tensor] = []
    with image_columns(run.layers, found):
        run.trace()
    return replace(run, columns=found[0])


def _kinds(run: ForcedRun) -> list[Kind]:
    """Of every decoder layer, by a change of every second visual token."""
    probed = run.visual & (run.visual.cumsum(1) % 2 == 1)
    probed[:, -1] = False
    kinds: list[Kind] = []
    with probe_layers(run.layers, run.valid, probed, kinds):
        run.trace()
    return kinds


def _equal_runs(
    run: ForcedRun, text: Any, kinds: list[Kind], whole: Trace, first: int, hidden: Tensor
) -> tuple[dict[str, tuple[Trace, Trace]], tuple[Trace, Trace]]:
    """Runs that should be equal but for rounding, by what differs between them, and such as must be.

    Args:
        hidden: [B, S], the tokens whose content differs between two runs that hide them from layer `first` on.
    """
    nothing = torch.zeros_like(run.hideable)
    with written_masks(text), hiding(run, kinds, nothing, 0):
        written = run.trace()
    with jittered(run.layers, run.model.get_output_embeddings()):
        rounded = run.trace()
    masked = []
    for negated in (False, True):
        with written_masks(text), hiding(run, kinds, hidden, first, negated=negated):
            masked.append(run.trace())
    same = {"writing out its masks": (whole, written), "what hidden tokens hold": (masked[0], masked[1])}
    return same, (whole, rounded)


def _compared(
    session: Session, run: ForcedRun, text: Any, kinds: list[Kind], whole: Trace, bounds: RoundingBounds
) -> LayerCheck:
    """One run pruned by the session, and one with the same tokens hidden."""
    (first,) = session.setup.layers
    try:
        with attached(session):
            pruned = run.trace()
    except VlmpruneError:
        raise
    except Exception as error:  # whatever a model says to what pruning hands it
        return LayerCheck(first, nan, nan, f"the pruned run stops: {type(error).__name__}, {reason(error)}")
    kept = [] if session.calls.report is None else session.calls.report.kept
    dropped = torch.zeros_like(run.hideable)
    for row, own, some in zip(dropped, run.hideable, kept, strict=False):
        slots = own.nonzero()[:, 0]
        row[slots] = ~torch.isin(torch.arange(len(slots)), some).to(row.device)
    if not bool(dropped.any(1)[run.hideable.sum(1) > FEW].all()):
        return LayerCheck(first, nan, apart(pruned, whole), "nothing was dropped")
    with bare(run.model), written_masks(text), hiding(run, kinds, dropped, first):
        masked = run.trace()
    worst, moved = apart(pruned, masked), apart(pruned, whole)
    # A NaN is a difference.
    found = None
    if not worst <= bounds.logits:
        found = first_difference(pruned, masked, run.layers, kinds, bounds.rows, run.left(dropped))
    return LayerCheck(first, worst, moved, found)


def first_difference(
    pruned: Trace, masked: Trace, layers: Sequence[Any], kinds: Sequence[Kind], bounds: Sequence[float], left: Tensor
) -> str:
    """The first step and decoder layer before or behind which a row of those `left` [B, S] differs."""
    for step, (ours, theirs) in enumerate(zip(pruned.rows, masked.rows, strict=True)):
        for point, (one, other, bound) in enumerate(zip(ours, theirs, bounds, strict=True)):
            if not rows_apart(one, other, left) <= bound:
                i, behind = divmod(point, 2)
                what = f"layer {i} ({type(layers[i]).__name__}, {kinds[i]})"
                return f"step {step} (0 = prompt), {what if behind else f'what enters {what}'}"
    return "behind the last decoder layer"
