"""The guide's own run: it answers greedily while its attention is summed, and then checks its answer.

Source: SGL (arXiv 2412.03324), sections 3.1 (importance) and 3.2 (confidence, consistency). Shapes: B batch, S
sequence, V visual tokens of a sample, n tokens of its answer.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList

from ..accounting.scores import sureness
from ..attention.importance import ImportanceObserver
from ..attention.sink_observer import VisualSinkObserver
from ..errors import VlmpruneError
from ..families import family_of, inner_model
from ..flow.locate import SampleLayout
from ..hf.arguments import padding_mask, to_device
from ..methods.base import Method, PruningContext
from ..methods.guided import Guided, GuideOptions
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


@dataclass(frozen=True)
class _Halfway(Guided):
    """Keeps the visual tokens of a guide that are the most important so far."""

    observer: Any = None

    def score(self, prompt: PruningContext) -> list[Tensor]:
        scores: list[Tensor] = self.observer.importance()
        return scores


CONSISTENCY_KEEP = 0.05  # the paper's fraction of visual tokens for the second look at the answer


@dataclass(frozen=True)
class GuideOutput:
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
    def exit_score(self) -> list[float] | None:
        """SGL's S of every sample, what `exit_at` is compared with; None where it was not measured."""
        if self.confidence is None or self.consistency is None:
            return None
        return [sureness(*pair) for pair in zip(self.confidence, self.consistency, strict=True)]

    def exits(self, exit_at: float | None) -> list[bool]:
        """Per sample, whether the guide's answer is taken."""
        scores = self.exit_score
        if exit_at is None or scores is None:
            return [False] * len(self.importance)
        return [score >= exit_at for score in scores]


def guide_for(method: Guided, model: Any) -> "Guide":
    """The guide of a method on this model, made ready.

    Raises:
        VlmpruneError: it is `model` itself where the method wants another one, or unsupported.
    """
    if method.runner is not None:
        guide: Guide = method.runner
        return guide
    plain = model if method.guide is None else inner_model(method.guide)
    if method.guide is not None and plain is model:
        raise VlmpruneError(
            "The guide is the model itself; pass a smaller model as guide, or use the method 'fastv-oracle'."
        )
    return Guide(plain, method)


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
        options: of the guided method, by default those of SGL.
    Raises:
        UnsupportedModelError: its family has no adapter.
    """

    def __init__(self, model: Any, options: GuideOptions | None = None) -> None:
        self.options = options if options is not None else GuideOptions()
        self.model, self.steps, self.check = model, self.options.guide_steps, self.options.measure_consistency
        self.family = family_of(model)
        self._tower = self.family.vision_tower(model)
        self.observer = ImportanceObserver(self.family.visual_ids(model.config), causal=not self.family.cross_attention)
        self._sinks = VisualSinkObserver(self.family, model) if self.options.exclude_sinks else None
        observers, keep = [self.observer, self._sinks] if self._sinks else [self.observer], self.options.guide_keep
        self._second = Session(model, self.family, Guided(keep=CONSISTENCY_KEEP, layer=0))
        seeing = self._second.setup.seeing
        own: Method = Unpruned()
        if keep is not None:
            if len(seeing) < 2:
                raise VlmpruneError(
                    f"guide_keep={keep} drops tokens halfway through the guide's layers that see the image, and it has "
                    "one; leave guide_keep out."
                )
            own = _Halfway(keep=keep, layer=seeing[len(seeing) // 2], observer=self.observer)
        self._first = Session(model, self.family, own, observers)

    @contextmanager
    def _observed(self, ends: Sequence[int], steps: int | None) -> Iterator[VisionMemo]:
        """Within the block the model's attention is summed, and what its vision tower returns is remembered."""
        self.observer.expect(ends=ends, steps=steps)
        vision = VisionMemo()
        with attached(self._first), vision.recording(self._tower):
            yield vision

    def _importance(self) -> list[Tensor]:
        """Of the last run: per sample [V]."""
        importance = self.observer.importance()
        if self._sinks is None:
            return importance
        return [
            scores.masked_fill(sinks.to(scores.device), 0.0)
            for scores, sinks in zip(importance, self._sinks.often(), strict=True)
        ]

    def rank(self, inputs: dict[str, Any]) -> GuideOutput:
        """Importance from the prompt's rows alone."""
        inputs = to_device(self.model, inputs)
        with bare(self.model), torch.no_grad():
            with self._observed(ends=[], steps=0) as vision:
                self.model(**inputs, use_cache=False, logits_to_keep=1)
            return GuideOutput(self._importance(), self.observer.layouts, self._prefill_flops(self._first), vision)

    def answer(self, inputs: dict[str, Any], settings: dict[str, Any], *, whole: bool) -> GuideOutput:
        """Answer, rank and check.

        Args:
            settings: `max_new_tokens`, `eos_token_id` and the like, for `generate`. whole: whether the answer itself is
                wanted; else `steps` ends it early.
        """
        inputs = to_device(self.model, inputs)
        config = self._config(settings, whole)
        ends = end_ids(config.eos_token_id)
        with bare(self.model), torch.no_grad():
            with self._observed(ends, None if self.steps is None else self.steps - 1) as vision:
                sequences, likeliest = self._generated(inputs, config)
            importance, layouts = self._importance(), self.observer.layouts
            answers = [_until(row, ends) for row in sequences[:, inputs["input_ids"].shape[1] :]]
            logs = torch.stack(likeliest, dim=1)
            confidence = [float(row[: len(answer)].mean().exp()) for row, answer in zip(logs, answers, strict=True)]
            consistency = self._consistency(inputs, answers, importance, vision, config) if self.check else None
            flops = self._prefill_flops(self._first) + self._answer_flops(inputs, answers, layouts)
        return GuideOutput(importance, layouts, flops, vision, answers, confidence, consistency)

    def _generated(self, inputs: dict[str, Any], config: GenerationConfig) -> tuple[Tensor, list[Tensor]]:
        """Token ids, prompts included, and of every step the log-probability of the likeliest token [B]."""
        record = _Confidence()
        if type(self.model).generate is GenerationMixin.generate:
            processors = LogitsProcessorList([record])
            return self.model.generate(**inputs, generation_config=config, logits_processor=processors), record.steps
        # One of its own may leave processors out, as Janus's does: the scores of all steps are kept until its end.
        config.output_scores = config.return_dict_in_generate = True
        made = self.model.generate(**inputs, generation_config=config)
        for scores in made.scores:
            record(made.sequences, scores)
        return made.sequences, record.steps

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
        rows: int | Tensor = longest
        if not self.family.cross_attention:  # of a short answer the rows before may be of dropped visual tokens
            length, back = given["input_ids"].shape[1], torch.arange(longest, 0, -1)
            rows = torch.stack([length - back.clamp(max=len(answer)) for answer in answers])
        with attached(self._second), vision.replaying(self._tower):
            self._second.calls.now.importance = importance
            logits = self.model(**given, use_cache=False, logits_to_keep=rows).logits
        scores = []
        for row, answer in zip(logits.float(), answers, strict=True):
            logs = torch.log_softmax(row[-len(answer) :], dim=-1)
            each = logs.gather(1, answer.to(logs.device)[:, None])
            scores.append(float((each.mean() if self.options.normalise_consistency else each.sum()).exp()))
        return scores

    # -- cost --------------------------------------------------------------------------------------------------

    def _prefill_flops(self, session: Session) -> int:
        """Of the last prompt of a session."""
        report = session.calls.report
        assert report is not None, "a prompt has just run"
        return report.prefill_flops

    def _answer_flops(self, inputs: dict[str, Any], answers: list[Tensor], layouts: list[SampleLayout]) -> int:
        """The steps after the prompt, and the second look."""
        cost, cut, report = self._first.setup.cost, self._first.setup.layers[0], self._first.calls.report
        assert report is not None, "a prompt has just run"
        lengths = padding_mask(inputs.get("attention_mask"), inputs["input_ids"]).sum(dim=1).tolist()
        total = self._prefill_flops(self._second) if self.check else 0
        for rows, answer, layout, kept in zip(lengths, answers, layouts, report.kept_tokens, strict=True):
            for step in range(1, len(answer)):
                whole = cost.lengths(rows + step, layout.count)
                left = cost.lengths(rows + step - layout.count + kept, kept)
                total += cost.step_flops(whole[:cut] + left[cut:])
            total += 2 * cost.head * (len(answer) - 1) if self.check else 0
        return total


def _until(tokens: Tensor, ends: list[int]) -> Tensor:
    """Generated tokens up to the first end token, which stays."""
    found = torch.isin(tokens, torch.tensor(ends, device=tokens.device, dtype=tokens.dtype)).nonzero()
    return tokens[: int(found[0]) + 1] if len(found) else tokens
