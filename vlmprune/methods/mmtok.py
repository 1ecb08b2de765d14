"""MMTok (Dong et al., ICLR 2026, arXiv 2508.18264): tokens that cover the question and the image together."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .declared import number
from .per_image import ImageContext, PerImage, cosine
from .scope import greedy_coverage


@dataclass(frozen=True)
class MMTok(PerImage):
    """Keeps the tokens that cover the question's tokens and all visual tokens best, greedily.

    Coverage of a text or visual token is its largest similarity to a chosen token, where similarities are a softmax
    over the visual tokens of cosine / temperature; both kinds are averaged, and the visual kind counts `visual_weight`
    times. Departures from the official code: visual similarities are those of the projected features, not of the
    vision tower's; the question's tokens are all of the text after the image, not keywords picked from it.

    Args:
        visual_weight: alpha of the paper. text_temperature, visual_temperature: of the two softmaxes.
    Raises:
        VlmpruneError: an option out of range.
    """

    name: ClassVar[str] = "mmtok"
    reads_text: ClassVar[bool] = True
    visual_weight: float = field(default=0.5, metadata=number(float, 0))
    text_temperature: float = field(default=0.02, metadata=number(float, 1e-6))
    visual_temperature: float = field(default=0.2, metadata=number(float, 1e-6))

    def choose(self, image: ImageContext) -> Tensor:
        features, words = image.hidden.detach(), image.words.detach()
        text = torch.softmax(cosine(words, features) / self.text_temperature, dim=1) / len(words)
        visual = torch.softmax(cosine(features) / self.visual_temperature, dim=1) / len(features)
        return greedy_coverage(torch.cat([text, self.visual_weight * visual]), image.count)
