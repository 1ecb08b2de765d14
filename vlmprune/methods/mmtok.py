"""MMTok (Dong et al., ICLR 2026, arXiv 2508.18264): tokens that cover the question and the image together."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .declared import number
from .per_image import ROUGH, WHOLE, ImageContext, PerImage, cosine, pair_blocks, rough_unit_rows, unit_rows
from .scope import greedy_coverage, lazy_coverage


@dataclass(frozen=True)
class MMTok(PerImage):
    """Keeps the tokens that cover the question's tokens and all visual tokens best, greedily.

    Coverage of a text or visual token is its largest similarity to a chosen token, where similarities are a softmax
    over the visual tokens of cosine / temperature; both kinds are averaged, and the visual kind counts `visual_weight`
    times. Departures from the official code: visual similarities are those of the projected features, not of the
    vision tower's; the question's tokens are all of the text after the image, not keywords picked from it.

    When: as CDPruner, where the question is long or about several things: it covers all of its tokens.

    Args:
        visual_weight: alpha of the paper.
        text_temperature, visual_temperature: of the two softmaxes.
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
        if len(features) <= WHOLE:
            visual = torch.softmax(cosine(features) / self.visual_temperature, dim=1) / len(features)
            return greedy_coverage(torch.cat([text, self.visual_weight * visual]), image.count)
        heat, visible, unit = self.visual_temperature, self.visual_weight / len(features), unit_rows(features)
        total = torch.zeros(len(unit), dtype=unit.dtype, device=unit.device)  # of each row before its softmax
        for rows, others, near in pair_blocks(unit):
            total[rows] += near.sub_(1).div_(heat).exp_().sum(dim=1)
            if rows != others:
                total[others] += near.sum(dim=0)
        del unit
        scale, gain = visible / total, text.sum(dim=0)  # what each token adds while nothing is covered
        for rows, others, near in pair_blocks(rough_unit_rows(features)):
            near = near.sub_(1).div_(heat).exp_()
            gain[others] += scale[rows].float() @ near
            if rows != others:
                gain[rows] += near @ scale[others].float()
        unit = unit_rows(features)

        def similar(some: Tensor) -> Tensor:
            visual = (unit[some] @ unit.T).sub_(1).div_(heat).exp_().mul_(scale)
            return torch.cat([text[:, some].T, visual], dim=1)

        return lazy_coverage(similar, gain * (1 + ROUGH) * math.exp(2 * ROUGH / heat), image.count)
