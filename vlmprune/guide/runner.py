"""The guide's own run: it answers greedily while its attention is summed, and then checks its answer.

Source: SGL (arXiv 2412.03324), sections 3.1 (importance) and 3.2 (confidence, consistency). Shapes: B batch, S
sequence, V visual tokens of a sample, n tokens of its answer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ..accounting.scores import sureness
from ..attention.importance import ImportanceObserver
from ..attention.sink_observer import VisualSinkObserver
from ..errors import VlmpruneError
from ..families import family_of, inner_model
from ..flow.locate import SampleLayout
from ..hf.arguments import to_device
from ..methods.guided import Guided
from ..methods.none import Unpruned
from ..runtime.call_lock import attached, bare
from ..runtime.session import Session
from .inputs import end_ids, with_answers
from .vision import VisionMemo

_GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "use_cache": True,
    "cache_implementation": None,
    "return_dict_in_generate": False,
}
CONSISTENCY_KEEP = 0.05  # the paper's share of visual tokens for the second look at the answer


@dataclass(frozen=True)
class Guidance:
    """What a guide found out about a batch.

    `importance`: per sample [V], fp32, on the guide's `layouts`. `answers`: per sample [n] token ids, the
    end-of-sequence token included where it came. `confidence` and `consistency`: per sample, in 0..1. These three are
    None after a run over the prompt alone. `flops`: of the guide's language model. `vision`: its tower's outputs.
    """

    importance: list[Tensor]
    layouts: list[SampleLayout]
    flops: int
    vision: VisionMemo
    answers: list[Tensor] | None = None
    confidence: list[float] | None = None
    consistency: list[float] | None = None

    @property
    def sure(self) -> list[float] | None:
        """SGL's S of every sample, what `exit_at` is compared with; None where it was not measured."""
        if self.confidence is None or self.consistency is None:
            return None
        return [sureness(*pair) for pair in zip(self.confidence, self.consistency, strict=True)]


def guide_for(method: Guided, model: Any) -> Guide:
    """The guide of a method on this model, made ready.

    Raises:
        VlmpruneError: it is `model` itself where the method wants another one, or unsupported.
    """
    settings = method.guide_settings()
    if settings.runner is not None:
        guide: Guide = settings.runner
        return guide
    plain = model if settings.model is None else inner_model(settings.model)
    if settings.model is not None and plain is model:
        raise VlmpruneError(
            "The guide is the model itself; pass a smaller model as guide, or use the method 'fastv-oracle'."
        )
    return Guide(
        plain,
        steps=settings.steps,
        normalise=settings.normalise,
        check=settings.check,
        exclude_sinks=settings.exclude_sinks,
    )


class _Confidence(LogitsProcessor):
    """Records the log-probability of the likeliest token of every step: [B] each."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(torch.log_softmax(scores.float(), dim=-1).amax(dim=-1))
        return scores


class Guide:
    """A small model made ready for ranking; nothing is on it between two runs, and one run goes at a time.

    Args:
        steps: count at most this many of its tokens (None: all). normalise: geometric mean of the answer tokens'
            probabilities as consistency, else their product (the paper's code). check: whether to measure consistency.
        exclude_sinks: give its visual sinks no importance.
    Raises:
        UnsupportedModelError: its family has no adapter.
    """

    def __init__(
        self,
        model: Any,
        *,
        steps: int | None = None,
        normalise: bool = True,
        check: bool = True,
        exclude_sinks: bool = False,
    ) -> None:
        self.model, self.normalise, self.check = model, normalise, check
        self.family = family_of(model)
        self.steps = steps
        self.watcher = ImportanceObserver(self.family.visual_ids(model.config), causal=not self.family.cross_attention)
        self._sinks = VisualSinkObserver(self.family, model) if exclude_sinks else None
        self._watching = Session(
            model, self.family, Unpruned(), [self.watcher, self._sinks] if self._sinks else [self.watcher]
        )
        self._second = Guided(keep=CONSISTENCY_KEEP, layer=0)
        self._checking = Session(model, self.family, self._second)

    def _importance(self) -> list[Tensor]:
        """Of the last run: per sample [V]."""
        importance = self.watcher.importance()
        if self._sinks is None:
            return importance
        return [
            scores.masked_fill(sinks.to(scores.device), 0.0)
            for scores, sinks in zip(importance, self._sinks.often(), strict=True)
        ]

    def rank(self, inputs: dict[str, Any]) -> Guidance:
        """Importance from the prompt's rows alone."""
        inputs = to_device(self.model, inputs)
        vision = VisionMemo()
        with bare(self.model), torch.no_grad():
            self.watcher.expect(ends=[], steps=0)
            with attached(self._watching), vision.recording(self.family.vision_tower(self.model)):
                self.model(**inputs, use_cache=False, logits_to_keep=1)
            importance, layouts = self._importance(), self.watcher.layouts
        return Guidance(importance, layouts, self._prompt_flops(inputs, layouts), vision)

    def answer(self, inputs: dict[str, Any], settings: dict[str, Any], *, whole: bool) -> Guidance:
        """Answer, rank and check.

        Args:
            settings: `max_new_tokens`, `eos_token_id` and the like, for `generate`. whole: whether the answer itself is
                wanted; else `steps` ends it early.
        """
        inputs = to_device(self.model, inputs)
        config = self._config(settings, whole)
        ends = end_ids(config.eos_token_id)
        vision = VisionMemo()
        tower = self.family.vision_tower(self.model)
        with bare(self.model), torch.no_grad():
            self.watcher.expect(ends=ends, steps=None if self.steps is None else self.steps - 1)
            record = _Confidence()
            with attached(self._watching), vision.recording(tower):
                sequences = self.model.generate(
                    **inputs, generation_config=config, logits_processor=LogitsProcessorList([record])
                )
            importance, layouts = self._importance(), self.watcher.layouts
            answers = [_until(row, ends) for row in sequences[:, inputs["input_ids"].shape[1] :]]
            logs = torch.stack(record.steps, dim=1)
            confidence = [float(row[: len(answer)].mean().exp()) for row, answer in zip(logs, answers, strict=True)]
            consistency = self._consistency(inputs, answers, importance, vision, config) if self.check else None
        flops = self._prompt_flops(inputs, layouts) + self._answer_flops(inputs, answers, layouts)
        return Guidance(importance, layouts, flops, vision, answers, confidence, consistency)

    def _config(self, settings: dict[str, Any], whole: bool) -> GenerationConfig:
        """The guide's own settings, greedy, with the caller's lengths and end tokens."""
        config = copy.copy(self.model.generation_config)
        for name, value in {**_GREEDY, **settings}.items():
            setattr(config, name, value)
        if self.steps is not None and not whole:
            config.max_new_tokens = min(self.steps, config.max_new_tokens or self.steps)
        return config

    def _consistency(
        self,
        inputs: dict[str, Any],
        answers: list[Tensor],
        importance: list[Tensor],
        vision: VisionMemo,
        config: GenerationConfig,
    ) -> list[float]:
        """How likely the guide finds its answer when it sees only the most important visual tokens."""
        pad = config.pad_token_id if config.pad_token_id is not None else 0
        visual = torch.tensor(self.family.visual_ids(self.model.config), device=self.model.device)
        # The last token is predicted only. An image token that the guide generated would be taken for an image.
        fed = [answer[:-1].masked_fill(torch.isin(answer[:-1], visual), pad) for answer in answers]
        given = with_answers(inputs, fed, pad)
        longest = max(len(answer) for answer in answers)
        with attached(self._checking), vision.replaying(self.family.vision_tower(self.model)):
            self._checking.rank_by(importance)
            logits = self.model(**given, use_cache=False, logits_to_keep=self._rows(given, answers, longest)).logits
        scores = []
        for row, answer in zip(logits.float(), answers, strict=True):
            logs = torch.log_softmax(row[-len(answer) :], dim=-1)
            each = logs.gather(1, answer.to(logs.device)[:, None])
            scores.append(float((each.mean() if self.normalise else each.sum()).exp()))
        return scores

    def _rows(self, given: dict[str, Any], answers: list[Tensor], longest: int) -> int | Tensor:
        """What predicts every answer: its last rows, at most `longest`; a short one's repeat, as the rows before may be
        of dropped visual tokens: [B, longest]."""
        if self.family.cross_attention:  # nothing is dropped from the rows
            return longest
        length, back = given["input_ids"].shape[1], torch.arange(longest, 0, -1)
        return torch.stack([length - back.clamp(max=len(answer)) for answer in answers])

    # -- cost --------------------------------------------------------------------------------------------------

    def _prompt_flops(self, inputs: dict[str, Any], layouts: list[SampleLayout]) -> int:
        cost = self._watching.setup.cost
        rows, visual = _lengths(inputs), [layout.count for layout in layouts]
        return cost.flops([rows] * len(cost.layers), [visual] * len(cost.layers))

    def _answer_flops(self, inputs: dict[str, Any], answers: list[Tensor], layouts: list[SampleLayout]) -> int:
        """The steps after the prompt, and the second look."""
        cost = self._watching.setup.cost
        total = 0
        for rows, answer, layout, kept in zip(
            _lengths(inputs), answers, layouts, self._second.counts(layouts), strict=True
        ):
            for step in range(1, len(answer)):
                total += cost.step_flops(cost.lengths(rows + step, layout.count))
            if not self.check:
                continue
            second = rows + len(answer) - 1
            if not self.family.cross_attention:
                second += kept - layout.count
            total += cost.flops([[second]] * len(cost.layers), [[kept]] * len(cost.layers))
            total += 2 * cost.head * (len(answer) - 1)
        return total


def _lengths(inputs: dict[str, Any]) -> list[int]:
    """Tokens of every prompt, padding left out."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    return [ids.shape[1]] * len(ids) if mask is None else [int(n) for n in mask.sum(dim=1)]


def _until(tokens: Tensor, ends: list[int]) -> Tensor:
    """Generated tokens up to the first end token, which stays."""
    found = torch.isin(tokens, torch.tensor(ends, device=tokens.device, dtype=tokens.dtype)).nonzero()
    return tokens[: int(found[0]) + 1] if len(found) else tokens
