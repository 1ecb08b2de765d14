"""VidCom2 (Liu et al., EMNLP 2025, arXiv 2505.14454): what is unlike its frame and its video."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..flow.frames import weighted_counts
from ..flow.over_time import split_frames
from ..flow.select import ranking
from .declared import number
from .per_image import ImageContext, PerImage, part_size, unit_rows

WIDTHS = tuple(2.0**k for k in range(-3, 2))  # of the Gaussians that are added up


@dataclass(frozen=True)
class VidCom2(PerImage):
    """Keeps of every frame the tokens least similar to the mean of the frame and to that of the video.

    Similarity is a sum of Gaussians of the distance between unit vectors, in the half of the channels that varies least
    over the video. Frames whose tokens are unlike the video get more: their part of the budget is 1 + p - mean(p) with
    p the softmax of minus their mean similarity to the video over a temperature. An image counts as one frame.

    Departures from the official code: there each frame's part is rounded by itself, to one token at least, so that the
    whole may differ from the budget; here the parts add up to `keep` by largest remainders, and with fewer tokens than
    frames some frames keep none. Distances are fp64. Tokens of no frame (LLaVA-OneVision's newline) stay.

    When: what is unusual in a video matters, in a few of its frames or in a part of them.

    Args:
        temperature: of the softmax; small frames' differences count for more as it falls.
    Raises:
        VlmpruneError: an option out of range.
    """

    name: ClassVar[str] = "vidcom2"
    temperature: float = field(default=0.01, metadata=number(float, 1e-6))

    def choose(self, image: ImageContext) -> Tensor:
        frames, loose = split_frames(image.span)
        loose, hidden = loose[: image.count], image.hidden.detach()
        to_video, to_frame = similarities(hidden, [own.to(hidden.device) for own in frames])
        unusual = torch.softmax(torch.stack([-one.mean() for one in to_video]) / self.temperature, dim=0)
        weights: list[float] = (1 + unusual - unusual.mean()).tolist()
        counts = weighted_counts(image.count - len(loose), [len(own) for own in frames], weights)
        kept = [loose]
        for own, video, single, count in zip(frames, to_video, to_frame, counts, strict=True):
            kept.append(own[ranking(-(video + single))[:count].cpu()])
        return torch.cat(kept).sort().values


def similarities(hidden: Tensor, frames: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """How similar each token of each frame is to the mean of all frames, and to that of its own: per frame [n].

    Args:
        hidden: [V, D]. frames: indices of the tokens of each.
    """
    every = torch.cat(frames)
    parts = hidden.split(part_size(len(hidden)), dim=1)
    spread = torch.cat([part[every].double().var(dim=0, unbiased=False) for part in parts])
    calm = torch.sort(spread, stable=True).indices[: hidden.shape[1] // 2].sort().values

    def unit(own: Tensor) -> Tensor:  # made twice, and never of all frames at once
        return unit_rows(hidden[own][:, calm])

    middles = [unit(own).mean(dim=0) for own in frames]
    middle = torch.stack([one * len(own) for one, own in zip(middles, frames, strict=True)]).sum(dim=0) / len(every)
    to_video, to_frame = [], []
    for own, single in zip(frames, middles, strict=True):
        rows = unit(own)
        to_video.append(_gaussians(rows, middle))
        to_frame.append(_gaussians(rows, single))
    return to_video, to_frame


def _gaussians(rows: Tensor, middle: Tensor) -> Tensor:
    distance = ((rows - middle) ** 2).sum(dim=-1)
    return torch.stack([torch.exp(-distance / (2 * width)) for width in WIDTHS]).sum(dim=0)
