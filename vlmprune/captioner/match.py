"""How well a sentence fits a crop, 0 to 1: by the describing model itself, or by an image-text model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from ..errors import VlmpruneError
from ..inputs.images import as_rgb
from .prompts import Prompts
from .vlm import VisionModel

Pair = tuple[Image.Image, str]
Matcher = Callable[[Sequence[Pair]], Sequence[float]]  # one number per pair, 0 (does not fit) to 1 (fits), in order
CLIP_SCALE = 2.5  # CLIPScore's (arXiv 2104.08718): cosines of CLIP rarely pass 0.4


def checked_scores(matcher: Matcher, pairs: Sequence[Pair]) -> list[float]:
    """The matcher's scores.

    Raises:
        VlmpruneError: they are not one number in 0..1 per pair.
    """
    scores = [float(score) for score in matcher(pairs)] if pairs else []
    if len(scores) != len(pairs):
        raise VlmpruneError(f"The matcher gave {len(scores)} scores for {len(pairs)} sentences; it must give one each.")
    for score in scores:
        if not 0 <= score <= 1:  # nor where it is not a number at all
            raise VlmpruneError(f"The matcher gave the score {score!r}; scores must lie between 0 and 1.")
    return scores


@dataclass(frozen=True)
class VLMMatcher:
    """The describing model's own probability of "yes" when asked whether the sentence is true of the crop."""

    vision: VisionModel
    prompts: Prompts = field(default_factory=Prompts)

    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        """P(yes) against P(no) for each pair."""
        questions = [self.prompts.verify.replace("{sentence}", sentence) for _, sentence in pairs]
        images = [image for image, _ in pairs]
        return self.vision.probability(images, questions, yes=self.prompts.yes, no=self.prompts.no)


@dataclass(frozen=True)
class HFMatcher:
    """A Hugging Face CLIP, SigLIP or BLIP-ITM model with its processor.

    BLIP-ITM: (matching probability + cosine) / 2, the paper's score. SigLIP: (sigmoid of its logit + cosine) / 2. CLIP
    has no matching probability: its cosine times 2.5 (CLIPScore), at most 1. Negative cosines count as 0.
    """

    model: Any
    processor: Any
    batch_size: int = 16

    def __post_init__(self) -> None:
        kind = getattr(getattr(self.model, "config", None), "model_type", None)
        itm = kind == "blip" and hasattr(self.model, "itm_head")
        if not (itm or kind in ("clip", "siglip", "siglip2")):
            raise VlmpruneError(
                f"A model of type {kind!r} does not match sentences to images; pass a CLIP, SigLIP or "
                "BlipForImageTextRetrieval model."
            )

    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        """One score per pair; each sentence is compared with its own image only."""
        found: list[float] = []
        for at in range(0, len(pairs), self.batch_size):
            images, texts = zip(*pairs[at : at + self.batch_size], strict=True)
            found += self._scores([as_rgb(image) for image in images], list(texts))
        return found

    def _scores(self, images: list[Image.Image], texts: list[str]) -> list[float]:
        kind = self.model.config.model_type
        # SigLIP was trained on texts padded to the full length, and reads others wrongly.
        padding = "max_length" if kind.startswith("siglip") else True
        inputs = self.processor(images=images, text=texts, return_tensors="pt", padding=padding, truncation=True)
        inputs = inputs.to(self.model.device)
        with torch.no_grad():
            if kind == "blip":
                matching = self.model(**inputs, use_itm_head=True).itm_score.float().softmax(-1)[:, 1]
                cosine = self.model(**inputs, use_itm_head=False).itm_score.float().diagonal()
                return ((matching + cosine.clamp(0, 1)) / 2).tolist()
            out = self.model(**inputs)
        image, text = (torch.nn.functional.normalize(e.float(), dim=-1) for e in (out.image_embeds, out.text_embeds))
        cosine = (image * text).sum(-1).clamp(0, 1)
        if kind == "clip":
            return (cosine * CLIP_SCALE).clamp(max=1).tolist()
        return ((out.logits_per_image.float().diagonal().sigmoid() + cosine) / 2).tolist()
