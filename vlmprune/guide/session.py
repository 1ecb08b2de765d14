"""The session of a guided model: the guide runs before each prompt, and answers alone where its exit score is high.

Shapes: B batch, S sequence, V visual tokens of a sample.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation import GenerateDecoderOnlyOutput

from ..accounting.build_report import exited_report
from ..accounting.report import Report
from ..attention.observer import AttentionObserver
from ..errors import VlmpruneError
from ..families import Family, Media
from ..flow.frames import HINT
from ..flow.locate import SampleLayout
from ..flow.transfer import transfer
from ..hf.arguments import cache_in, has, has_visuals, media_metadata, padding_mask, setting
from ..hf.cache_state import is_filled
from ..methods.base import Method
from ..runtime.output_rows import Asked
from ..runtime.session import Session
from .inputs import end_ids, generate_parameters, prompt_inputs, same_inputs, take_samples
from .runner import Guide, GuideOutput
from .vision import SharedTower

# What the guide takes over from a call's settings, or from the model's own.
_LENGTHS = ("max_new_tokens", "min_new_tokens", "max_length", "min_length", "max_time")
_TOKENS = ("eos_token_id", "pad_token_id")
_EXTRAS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


class GuidedSession(Session):
    """A `Session` whose pruner, alone or in a list, is ranked by a guide.

    Args:
        guide: made ready by `guide_for`. processor: the model's, where known; needed to hand over the answers of a
            guide with another tokenizer.
    Raises:
        VlmpruneError: guide and model do not fit, or a processor is missing.
    """

    def __init__(
        self,
        model: Any,
        family: Family,
        method: Method,
        observers: Sequence[AttentionObserver] = (),
        *,
        guide: Guide,
        processor: Any = None,
    ) -> None:
        super().__init__(model, family, method, observers)
        self.guide, self.processor = guide, processor
        self.guide_processor, self.exit_at = guide.options.guide_processor, guide.options.exit_at
        self.same = same_prompts(model, guide, processor)
        if not self.same and self.exit_at is not None and processor is None:
            raise VlmpruneError(
                "With exit_at the guide's answers are rewritten for the model's tokenizer; pass wrap(..., "
                "processor=...), the model's processor."
            )
        self._shared = SharedTower(family.vision_tower(model), self.guide.family.vision_tower(self.guide.model))

    # -- generate ----------------------------------------------------------------------------------------------

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.calls.bypassed:
            return super()._generate(original, *args, **kwargs)
        kwargs.update(zip(generate_parameters(), args, strict=False))
        given = dict(kwargs)
        guide_inputs = kwargs.pop("guide_inputs", None)
        if kwargs.get("inputs") is not None:
            kwargs["input_ids"] = kwargs.pop("inputs")
        self.family.check_video(kwargs)
        self.guide.family.check_video(guide_inputs or kwargs)
        drafts = self.calls.now.generating  # within a call of the same prompt, whose ranking stands
        if drafts or not has_visuals(kwargs) or is_filled(cache_in(kwargs)):
            return super()._generate(original, **kwargs)
        if kwargs.get("input_ids") is None:
            raise VlmpruneError("A guided prompt needs token ids; pass input_ids with the image, not inputs_embeds.")
        self._refuse_extras(kwargs)
        with self.lock.generating():
            if not self.hooks:  # taken off while this call waited
                return self.model.generate(**given)
            out, report = self._guided(original, kwargs, guide_inputs)
            return self.calls.publish(out, report)

    def _guided(self, original: Callable[..., Any], kwargs: dict[str, Any], guide_inputs: Any) -> tuple[Any, Report]:
        """The guide's answers where it exits, the model's for the other samples; and their report."""
        clock = self.calls.now.clock
        start = clock.now()
        found = self._ask_guide(kwargs, guide_inputs)
        same = self.same and guide_inputs is None  # what the guide was given apart may be other pixels
        layouts, importance = self._transferred(found, kwargs, same)
        exited = found.exits(self.exit_at)
        alike = same and bool(self._shared)
        guided = clock.now() - start
        running = [i for i, gone in enumerate(exited) if not gone]
        out: Any = None
        report: Report | None = None
        if running:
            given: dict[str, Any] = kwargs
            rows: list[Tensor] = []
            if any(exited):
                prompt = prompt_inputs(kwargs)
                own, rows = take_samples(self.family, self.model.config, prompt, running, layouts)
                given = {name: value for name, value in kwargs.items() if name not in prompt} | own
            tower = self.family.vision_tower(self.model)
            with found.vision.replaying(tower if alike else None, rows):
                out, report = self._reported(original, (), given, [importance[i] for i in running])
        if any(exited):
            columns = self.family.cross_columns
            keys = columns(self.model.config, Media(media_metadata(kwargs))) if columns else 0
            valid = self._valid(kwargs)
            last = None if self.setup.cut is None else (self.setup.cut, 1)
            report = exited_report(report, running, layouts, valid, keys, self.method, self.setup.cost, last)
            out = self._merged(out, found, exited, kwargs)
        assert report is not None, "what ran has a report"
        self._note(report, found, exited, guided)
        report.seconds["total"] = clock.now() - start
        return out, report

    def _refuse_extras(self, kwargs: dict[str, Any]) -> None:
        asked = [name for name in _EXTRAS if setting(self.model, kwargs, name)]
        if self.exit_at is not None and asked and setting(self.model, kwargs, "return_dict_in_generate"):
            raise VlmpruneError(
                f"{asked[0]}=True is not available with exit_at={self.exit_at}, because the model does not run for "
                "samples that exit; leave it out, or set exit_at=None."
            )

    def _refuse_foreign_inputs(self, given: dict[str, Any]) -> None:
        options = self.guide.options
        if (options.guide_frames or options.guide_scale) and (has(given, "video") or given.get(HINT) is not None):
            raise VlmpruneError(
                "guide_frames and guide_scale are about clips that ask() gets; use it, or generate(..., "
                "guide_inputs=...) with inputs of fewer or smaller frames."
            )
        if not self.same:
            raise VlmpruneError(
                "The guide reads other token ids or pixels than the model; use ask(), or generate(..., "
                "guide_inputs=...) with what the guide's processor returns."
            )

    def _valid(self, kwargs: dict[str, Any]) -> Tensor:
        return padding_mask(kwargs.get("attention_mask"), kwargs["input_ids"])

    def _ask_guide(self, kwargs: dict[str, Any], guide_inputs: Any) -> GuideOutput:
        if guide_inputs is None:
            self._refuse_foreign_inputs(kwargs)
        settings: dict[str, Any] = {}
        for name in _LENGTHS if guide_inputs is not None and not self.same else _LENGTHS + _TOKENS:
            if (value := setting(self.model, kwargs, name)) is not None:
                settings[name] = value
        if "max_new_tokens" in settings:
            settings.pop("max_length", None)
        inputs = prompt_inputs(kwargs) if guide_inputs is None else prompt_inputs(dict(guide_inputs))
        if len(inputs["input_ids"]) != len(kwargs["input_ids"]):
            raise VlmpruneError(
                f"guide_inputs holds {len(inputs['input_ids'])} prompts and the call {len(kwargs['input_ids'])}; give "
                "the same prompts to both."
            )
        with self.calls.bypass():
            return self.guide.answer(inputs, settings, whole=self.exit_at is not None)

    def _transferred(
        self, found: GuideOutput, given: dict[str, Any], same: bool
    ) -> tuple[list[SampleLayout], list[Tensor]]:
        """Where the prompt's visual tokens are, and what the guide made of them.

        In the `same` prompt they are where the guide found them: its vision stage has run, the model's has not.
        """
        if same:
            return found.layouts, transfer(found.importance, found.layouts, found.layouts)
        call = self.calls.now
        call.media = {}
        layouts = self.forwards.locator.layouts(call, given, given["input_ids"], self._valid(given))
        return layouts, transfer(found.importance, found.layouts, layouts)

    def _note(self, report: Report, found: GuideOutput, exited: list[bool], seconds: float) -> None:
        report.adapter = self.family.adapter
        report.exited, report.guide_flops = exited, found.flops
        report.confidence, report.consistency = found.confidence, found.consistency
        report.seconds["guide"] = seconds

    # -- what comes back ---------------------------------------------------------------------------------------

    def _merged(self, out: Any, found: GuideOutput, exited: list[bool], kwargs: dict[str, Any]) -> Any:
        """Sequences of all samples: the guide's answers of those that left, the model's of the others."""
        ids: Tensor = kwargs["input_ids"]
        each = setting(self.model, kwargs, "num_return_sequences") or 1
        made = out if out is None or isinstance(out, Tensor) else out.sequences
        theirs = iter([] if made is None else made[:, ids.shape[1] :])
        assert found.answers is not None
        new = [
            self._retokenized(answer, kwargs).to(ids.device) if gone else next(theirs)
            for answer, gone in zip(found.answers, exited, strict=True)
            for _ in range(each)
        ]
        pad = setting(self.model, kwargs, "pad_token_id")
        if pad is None:
            pad = next(iter(end_ids(setting(self.model, kwargs, "eos_token_id"))), 0)
        answers = torch.nn.utils.rnn.pad_sequence(new, batch_first=True, padding_value=int(pad)).to(ids.dtype)
        sequences = torch.cat([ids.repeat_interleave(each, dim=0), answers], dim=1)
        if (streamer := kwargs.get("streamer")) is not None and made is None:
            streamer.put(ids.cpu())
            for token in new[0]:
                streamer.put(token[None].cpu())
            streamer.end()
        if setting(self.model, kwargs, "return_dict_in_generate"):
            return GenerateDecoderOnlyOutput(sequences=sequences)
        return sequences

    def _retokenized(self, answer: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """The guide's answer in the model's token ids."""
        if self.same:
            return answer
        assert self.guide_processor is not None, "checked when the model was wrapped"
        text = self.guide_processor.decode(answer, skip_special_tokens=True)
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ends = end_ids(setting(self.model, kwargs, "eos_token_id"))
        return torch.tensor([*ids, *ends[:1]], dtype=torch.long)

    # -- a forward of its own ----------------------------------------------------------------------------------

    @torch.compiler.disable
    def _enter_model(self, args: Any, kwargs: dict[str, Any]) -> tuple[Asked | None, Any, dict[str, Any]]:
        changed = super()._enter_model(args, kwargs)
        call = self.calls.now
        if call.generating:
            return changed
        given = self._arguments(self.model, args, kwargs)
        if self.setup.pruner is None or not has_visuals(given) or is_filled(cache_in(given)):
            return changed
        self._refuse_foreign_inputs(given)
        start = call.clock.now()
        with self.calls.bypass():
            found = self.guide.rank(prompt_inputs(given))
        layouts, call.importance = self._transferred(found, given, True)
        seconds, exited = call.clock.now() - start, [False] * len(layouts)
        call.complete = lambda report: self._note(report, found, exited, seconds)
        return changed


def same_prompts(model: Any, guide: Guide, processor: Any) -> bool:
    """Whether guide and model read the same token ids and pixels; `processor` is the model's, where known.

    Raises:
        VlmpruneError: they do not, and the guide's processor is missing.
    """
    theirs = guide.options.guide_processor
    same = same_inputs(model, guide.model) and same_vocabulary(processor, theirs)
    if not same and theirs is None:
        raise VlmpruneError(
            f"The guide ({guide.model.config.model_type}) reads other token ids or pixels than the model "
            f"({model.config.model_type}); pass guide_processor=, the guide's processor."
        )
    return same


def same_vocabulary(ours: Any, theirs: Any) -> bool:
    """Whether two processors write the same token ids; unknown ones are taken at their models' word."""
    if ours is None or theirs is None or ours is theirs:
        return True
    tokenizers = [getattr(processor, "tokenizer", processor) for processor in (ours, theirs)]
    for one in tokenizers:
        if not hasattr(one, "get_vocab"):
            raise VlmpruneError(f"processor must be the AutoProcessor of the model or of its guide, got {one!r:.80}.")
    return bool(tokenizers[0].get_vocab() == tokenizers[1].get_vocab())
