"""The describing model behind two questions: what is in these images, and is this statement about one true?

Shapes: B prompts of a batch, k samples of each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import LogitsProcessorList

from ..api import PrunedModel, unwrap_peft
from ..errors import UnsupportedModelError, VlmpruneError
from ..families import family_of
from ..hf.arguments import to_device
from ..hf.hooks import HANDLE
from ..inputs.chat import batched, user_turn, warn_unknown_words
from ..methods.combined import parts_of
from ..methods.guided import Guided
from .sampling import SeededSampler, SharedPrefill


@dataclass
class Spent:
    """What calls of a model cost so far.

    `calls`: sequences generated or statements judged; `images`: images encoded; `visual_tokens`: rows that entered
    the language model; `layer_avg_tokens`: the same averaged over its layers; `prefill_flops`: of the language model
    and of a guide, None where the model was not wrapped. The samples of a crop share one encoding and one prefill, so
    these are counted once for all of them, or as often as the prompt ran where its cache could not be shared.
    """

    calls: int = 0
    images: int = 0
    visual_tokens: float = 0.0
    layer_avg_tokens: float = 0.0
    prefill_flops: float | None = 0.0

    def add(self, other: Spent) -> None:
        """Sum in place; an unknown part makes the sum unknown."""
        for name in ("calls", "images", "visual_tokens", "layer_avg_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        known = self.prefill_flops is not None and other.prefill_flops is not None
        self.prefill_flops = (self.prefill_flops or 0.0) + (other.prefill_flops or 0.0) if known else None


@dataclass
class VisionModel:
    """A vision-language model, plain or wrapped, with its processor.

    Args:
        model: a loaded Hugging Face image-text-to-text model, or what `vlmprune.wrap` returned.
        processor: its processor; a wrapped model's own when None.
        batch_size: prompts per forward.
    Raises:
        VlmpruneError: no processor, or it writes no chat prompts.
    """

    model: Any
    processor: Any = None
    batch_size: int = 8
    spent: Spent = field(default_factory=Spent)

    def __post_init__(self) -> None:
        if isinstance(self.model, PrunedModel) and self.processor is None:
            self.processor = self.model.processor
        if self.processor is None:
            raise VlmpruneError("The captioner needs the model's processor; pass PatchCaptioner(model, processor).")
        if not hasattr(self.processor, "apply_chat_template"):
            raise VlmpruneError(f"{type(self.processor).__name__} writes no chat prompts; pass the model's processor.")
        unwrap_peft(self.model.model if isinstance(self.model, PrunedModel) else self.model)  # raises for no model
        self._refuse_exits()

    @property
    def plain(self) -> Any:
        """The transformers model itself."""
        return unwrap_peft(self.model.model if isinstance(self.model, PrunedModel) else self.model)

    @property
    def handle(self) -> PrunedModel | None:
        """The handle of a wrapped model, whether the handle or the model was passed."""
        return self.model if isinstance(self.model, PrunedModel) else self.plain.__dict__.get(HANDLE)

    # -- the two questions -------------------------------------------------------------------------------------

    def describe(
        self,
        images: Sequence[Image.Image],
        question: str,
        *,
        seeds: Sequence[Sequence[int]],
        temperature: float,
        max_new_tokens: int,
    ) -> list[list[str]]:
        """k samples for each image, its k seeds given; the k of an image share its encoding and its prefill.

        What a sample says depends on its own seed only, not on the images and samples beside it.

        Raises:
            VlmpruneError: images with different numbers of seeds, or a model wrapped with `exit_at`.
        """
        self._refuse_exits()
        warn_unknown_words(self.processor, question)
        count = len(seeds[0]) if seeds else 0
        if any(len(own) != count for own in seeds):
            raise VlmpruneError(f"{[len(own) for own in seeds]} samples were asked for; give each image the same.")
        texts: list[list[str]] = []
        for part in self._parts(len(images)):
            inputs = self._inputs([images[i] for i in part], [question] * len(part))
            sampler = SeededSampler([s for i in part for s in seeds[i]], [temperature] * (len(part) * count))
            decoding = SharedPrefill(count)
            with torch.no_grad():
                out = self.model.generate(
                    **inputs,
                    max_new_tokens=max_new_tokens,
                    # The sampler draws; "sampling" is what keeps beams and other greedy ways of a model's own away.
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    num_beams=1,
                    num_return_sequences=1,
                    logits_processor=LogitsProcessorList([sampler]),
                    custom_generate=decoding,
                )
            self._account(inputs, repeats=1 if decoding.shared else count, calls=len(out))
            new = out[:, inputs["input_ids"].shape[1] :]
            decoded = [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]
            texts += [decoded[i * count : (i + 1) * count] for i in range(len(part))]
        return texts

    def probability(
        self, images: Sequence[Image.Image], questions: Sequence[str], *, yes: str, no: str
    ) -> list[float]:
        """P(yes) / (P(yes) + P(no)) of the first answer token, for each image with its question."""
        token = {answer: self._first_tokens(answer) for answer in (yes, no)}
        found: list[float] = []
        for part in self._parts(len(images)):
            inputs = self._inputs([images[i] for i in part], [questions[i] for i in part])
            with torch.no_grad():
                logits = self.model(**inputs).logits[:, -1].float()
            self._account(inputs, repeats=1, calls=len(part))
            either = torch.stack([logits[:, token[answer]].logsumexp(-1) for answer in (yes, no)], dim=-1)
            found += either.softmax(-1)[:, 0].tolist()
        return found

    def identity(self) -> dict[str, Any]:
        """What distinguishes this model from others without reading all of its weights, JSON-serialisable."""
        digest = hashlib.sha256(self.plain.config.to_json_string(use_diff=False).encode())
        for name, weight in self.plain.named_parameters():
            # Some of each: a checkpoint trained further differs everywhere.
            head = weight.detach().flatten()[:8].float().cpu().tolist()
            digest.update(f"{name} {tuple(weight.shape)} {head}".encode())
        handle = self.handle
        method = None if handle is None else handle.method.describe()
        return {"name": type(self.plain).__name__, "digest": digest.hexdigest()[:16], "method": method}

    # -- how -----------------------------------------------------------------------------------------------------

    def _refuse_exits(self) -> None:
        """An exit would put one greedy answer of the guide in the place of all samples."""
        method = None if self.handle is None else self.handle.method
        for part in () if method is None else parts_of(method):
            if isinstance(part, Guided) and part.exit_at is not None:
                raise VlmpruneError(
                    f"With exit_at={part.exit_at} one answer of the guide takes the place of a crop's samples; wrap "
                    "the model with exit_at=None to caption."
                )

    def _parts(self, count: int) -> Iterator[range]:
        for at in range(0, count, self.batch_size):
            yield range(at, min(count, at + self.batch_size))

    def _inputs(self, images: Sequence[Image.Image], questions: Sequence[str]) -> Any:
        talks = [user_turn([one], text) for one, text in zip(images, questions, strict=True)]
        return to_device(self.plain, batched(self.processor, talks))

    def _first_tokens(self, answer: str) -> list[int]:
        """Ids of the answer's first token in its usual spellings."""
        tokenizer = self.processor.tokenizer
        ids = set()
        for spelling in {answer, answer.capitalize(), " " + answer, " " + answer.capitalize()}:
            encoded = tokenizer(spelling, add_special_tokens=False)["input_ids"]
            # " yes" as a lone space and "yes" would count every answer that starts with a space.
            if encoded and encoded[0] != tokenizer.unk_token_id and tokenizer.decode(encoded[:1]).strip():
                ids.add(encoded[0])
        if not ids:
            raise VlmpruneError(f"The tokenizer has no token for the answer {answer!r}; set another in the prompts.")
        return sorted(ids)

    def _account(self, inputs: Any, *, repeats: int, calls: int) -> None:
        prompts = len(inputs["input_ids"])
        handle = self.handle
        if handle is not None:
            report = handle.report
            entering, average = report.lm_tokens * prompts, report.layer_avg_tokens * prompts
            flops: float | None = float(report.prefill_flops + (report.guide_flops or 0)) * repeats
        else:
            entering = average = float(torch.isin(inputs["input_ids"].cpu(), torch.tensor(self._visual_ids())).sum())
            flops = None
        self.spent.add(Spent(calls, prompts, entering * repeats, average * repeats, flops))

    def _visual_ids(self) -> list[int]:
        config = self.plain.config
        try:
            return list(family_of(self.plain).visual_ids(config))
        except UnsupportedModelError:  # describing needs no family of ours, only counting does
            ids = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
            return [one for one in ids if one is not None]
