"""MMTok (Dong et al., ICLR 2026, arXiv 2508.18264): tokens that cover the question and the image together."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..flow.select import evenly
from .declared import number
from .per_image import (
    ROUGH,
    WHOLE,
    ImageContext,
    PerImage,
    cosine,
    pair_blocks,
    pair_rows,
    part_size,
    room_for_all,
    rough_unit_rows,
    unit_rows,
)
from .scope import greedy_coverage, lazy_coverage

_GROUPS, _SOME = 16, 256  # of rows, and the columns by which they are put together
_WARM = 10  # from 1 / this temperature on cosines in fp32 tell tokens apart well enough


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
        visible, colder = self.visual_weight / len(features), 1 / self.visual_temperature
        unit = rough_unit_rows(features) if colder <= _WARM else unit_rows(features)

        def exponentials(near: Tensor) -> Tensor:
            return near.sub_(1).mul_(colder).exp_()

        # What a token adds needs the sums of all rows. So rows are put together whose sums over some columns are alike,
        # their exponentials added up for each group, and in a group the least sum taken for all: a bound from one pass.
        some = unit[evenly(_SOME, len(unit), unit.device)]
        size = part_size(_SOME)
        rough = torch.cat([exponentials(part @ some.T).sum(dim=1) for part in unit.split(size)])
        group = rough.argsort().argsort() * _GROUPS // len(unit)
        member = (group == torch.arange(_GROUPS, device=unit.device)[:, None]).to(unit)
        sums = torch.zeros(_GROUPS, len(unit), dtype=torch.float64, device=unit.device)
        whole = room_for_all(unit)
        for rows, others, near in pair_blocks(unit, whole):
            near = exponentials(near)
            sums[:, others] += member[:, rows] @ near
            if rows != others:
                sums[:, rows] += member[:, others] @ near.T
        scale = visible / sums.sum(dim=0)
        most = scale.new_zeros(_GROUPS).scatter_reduce(0, group, scale, "amax")
        gain, scale, text = text.sum(dim=0) + most @ sums, scale.to(unit), text.to(unit)

        cosines = pair_rows(unit, whole)

        def similar(some: Tensor) -> Tensor:
            return torch.cat([text[:, some].T, exponentials(cosines(some)).mul_(scale)], dim=1)

        return lazy_coverage(similar, gain * (1 + ROUGH) * math.exp(2 * ROUGH * colder), image.count)
