"""The describing model behind two questions: what is in these images, and is this statement about one true?

Shapes: B prompts of a batch, k samples of each.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from ..api import PrunedModel, unwrap_peft
from ..errors import UnsupportedModelError, VlmpruneError
from ..families import family_of
from ..hf.arguments import to_device
from ..hf.hooks import HANDLE
from ..inputs.chat import batched, user_turn, warn_unknown_words
from ..methods.combined import parts_of
from ..methods.guided import Guided
from .sampling import SharedPrefill, drawn_from

STAGES = ("detect", "describe", "match", "aggregate")


@dataclass
class CaptionCost:
    """What captioning cost so far.

    `calls`: by stage, detector runs, sequences described, statements matched, generative calls of the aggregator.
    `visual_tokens`: rows of visual tokens that entered the language model in all calls of the describing model, once
    for all samples of a crop where they share its prefill (the paper counts each sample's); `layer_avg_tokens` the same
    averaged over its layers; `prefill_flops` of its language model and of a guide (None: the model was not wrapped, so
    nothing was counted). `images_encoded`: images through the vision tower. `seconds`: by stage.
    """

    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    visual_tokens: int = 0
    layer_avg_tokens: float = 0.0
    prefill_flops: float | None = 0.0
    images_encoded: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def add(self, other: "CaptionCost") -> None:
        """Sum in place; an unknown part makes the sum unknown."""
        self.visual_tokens += other.visual_tokens
        self.layer_avg_tokens += other.layer_avg_tokens
        self.images_encoded += other.images_encoded
        known = self.prefill_flops is not None and other.prefill_flops is not None
        self.prefill_flops = (self.prefill_flops or 0.0) + (other.prefill_flops or 0.0) if known else None
        for stage in STAGES:
            self.calls[stage] += other.calls[stage]
            self.seconds[stage] += other.seconds[stage]

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Add the seconds of a block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


@dataclass
class VisionModel:
    """A vision-language model, plain or wrapped, with its processor.

    Args:
        model: a loaded Hugging Face image-text-to-text model, or what `vlmprune.wrap` returned.
        processor: its processor; a wrapped model's own when None.
        batch_size: prompts per forward. cost: what every call adds its tokens, FLOPs and images to.
    Raises:
        VlmpruneError: no processor, or it writes no chat prompts.
    """

    model: Any
    processor: Any = None
    batch_size: int = 8
    cost: CaptionCost = field(default_factory=CaptionCost)

    def __post_init__(self) -> None:
        if isinstance(self.model, PrunedModel) and self.processor is None:
            self.processor = self.model.processor
        if self.processor is None:
            raise VlmpruneError("The captioner needs the model's processor; pass PatchCaptioner(model, processor).")
        if not hasattr(self.processor, "apply_chat_template"):
            raise VlmpruneError(f"{type(self.processor).__name__} writes no chat prompts; pass the model's processor.")
        self._refuse_exits()  # raises for no model as well

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
        for part, inputs in self._batches(images, [question] * len(images)):
            decoding = SharedPrefill(count)
            with torch.no_grad():
                out = self.model.generate(
                    **inputs,
                    **drawn_from([seed for own in seeds[part] for seed in own], temperature),
                    max_new_tokens=max_new_tokens,
                    num_return_sequences=1,
                    custom_generate=decoding,
                )
            self._account(inputs, repeats=1 if decoding.shared else count)
            new = out[:, inputs["input_ids"].shape[1] :]
            decoded = [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]
            texts += [decoded[i * count : (i + 1) * count] for i in range(len(seeds[part]))]
        return texts

    def probability(self, images: Sequence[Image.Image], questions: Sequence[str], *, yes: str, no: str) -> list[float]:
        """P(yes) / (P(yes) + P(no)) of the first answer token, for each image with its question."""
        token = {answer: self._first_tokens(answer) for answer in (yes, no)}
        found: list[float] = []
        for _, inputs in self._batches(images, questions):
            with torch.no_grad():
                logits = self.model(**inputs).logits[:, -1].float()
            self._account(inputs)
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

    def _batches(self, images: Sequence[Image.Image], questions: Sequence[str]) -> Iterator[tuple[slice, Any]]:
        """Model inputs, `batch_size` prompts at a time, and which prompts they are."""
        for at in range(0, len(images), self.batch_size):
            part = slice(at, at + self.batch_size)
            talks = [user_turn([one], text) for one, text in zip(images[part], questions[part], strict=True)]
            yield part, to_device(self.plain, batched(self.processor, talks))

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

    def _account(self, inputs: Any, *, repeats: int = 1) -> None:
        prompts, flops = len(inputs["input_ids"]), None
        if self.handle is not None:
            report = self.handle.report
            entering, average = report.lm_tokens * prompts, report.layer_avg_tokens * prompts
            flops = float(report.prefill_flops + (report.guide_flops or 0)) * repeats
        else:
            entering = average = float(torch.isin(inputs["input_ids"].cpu(), torch.tensor(self._visual_ids())).sum())
        rows, average = round(entering) * repeats, average * repeats
        self.cost.add(
            CaptionCost(visual_tokens=rows, layer_avg_tokens=average, prefill_flops=flops, images_encoded=prompts)
        )

    def _visual_ids(self) -> list[int]:
        config = self.plain.config
        try:
            return list(family_of(self.plain).visual_ids(config))
        except UnsupportedModelError:  # describing needs no family of ours, only counting does
            ids = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
            return [one for one in ids if one is not None]
