"""FastVID (Shen et al., NeurIPS 2025, arXiv 2503.11187): of each scene what is salient, and dense anchors."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..flow.over_time import split_frames
from ..flow.select import evenly, ranking
from .declared import number
from .per_image import ImageContext, PerImage, part_size, unit_rows
from .sparsevlm import density_peaks

NEIGHBOURS = 4  # nearest tokens, itself included, that make a token's density


@dataclass(frozen=True)
class FastVID(PerImage):
    """Keeps each frame's salient tokens, and merges all others of a segment into anchors in every few of its frames.

    A video is cut between the `cuts` - 1 least similar neighbouring frames, and wherever neighbours have a cosine below
    `similar`. Of the budget, the same in each frame, a fraction `contextual` goes to anchors: in the last frame of a
    segment and every `every`-th before it, the density peaks of what is not salient. Each of these frames gathers all
    that is not salient in the segment: a token goes to the anchor of largest cosine, and an anchor of n tokens becomes
    w times itself and 1 - w times their mean, with w the larger of 1 / (n + 1) and `beta`. An image is one frame.

    Departures from the official code: saliency there is the attention of the vision tower's pooling head, which no
    model here brings for its visual tokens; here it is 1 - cosine to the mean of the frame. Frames are compared by the
    mean of their tokens, not by the tower's pooled output. Budgets there are rounded down per frame and per anchor
    frame, so that less is kept than was asked for; here all parts add up to `keep`, and with more anchors than a frame
    has tokens the rest goes to salient ones. A video of fewer frames than `cuts`, where that code fails, is cut between
    all. Densities carry no noise against ties and are fp64. Tokens of no frame (LLaVA-OneVision's newline) stay.

    When: a video has scenes, and what stands still in one should be said once.

    Args:
        cuts: how many segments a video has at least.
        similar: cosine of neighbouring frames below which it is cut too.
        contextual: fraction of the budget that is anchors.
        every: of so many frames of a segment one holds anchors.
        beta: what an anchor keeps of itself at least.
    Raises:
        VlmpruneError: an option out of range.
    """

    name: ClassVar[str] = "fastvid"
    keep: float | int = 0.1
    cuts: int = field(default=8, metadata=number(int, 1))
    similar: float = field(default=0.9, metadata=number(float, -1, 1))
    contextual: float = field(default=0.4, metadata=number(float, 0, 1))
    every: int = field(default=4, metadata=number(int, 1))
    beta: float = field(default=0.6, metadata=number(float, 0, 1))

    def choose(self, image: ImageContext) -> tuple[Tensor, Tensor]:
        frames, loose = split_frames(image.span)
        hidden, loose = image.hidden, loose[: image.count]
        if image.count == image.span.count:
            return torch.arange(image.count), hidden
        unusual = saliency(hidden.detach(), frames)
        means = torch.stack([hidden[own.to(hidden.device)].detach().double().mean(dim=0) for own in frames])
        sizes = segments(means, self.cuts, self.similar)
        salient, anchors = self.counts(image.count - len(loose), [len(own) for own in frames], sizes)
        kept, states, start = [loose], [hidden[loose.to(hidden.device)]], 0
        for size in sizes:
            rest, centres = [], []
            for at in range(start, start + size):
                order = frames[at][ranking(unusual[at]).cpu()]
                kept.append(order[: salient[at]])
                states.append(hidden[kept[-1].to(hidden.device)])
                rest.append(order[salient[at] :].sort().values)
                if anchors[at]:
                    points = hidden[rest[-1].to(hidden.device)].detach()
                    centres.append(rest[-1][density_peaks(points, anchors[at], NEIGHBOURS)[0].cpu()])
            if centres:
                kept += centres
                states += gathered(hidden, torch.cat(rest), centres, self.beta)
            start += size
        places, order = torch.cat(kept).sort()
        return places, torch.cat(states)[order.to(hidden.device)]

    def counts(self, total: int, tokens: Sequence[int], sizes: Sequence[int]) -> tuple[list[int], list[int]]:
        """How many salient tokens and how many anchors each frame has, of frames of so many tokens in segments of these
        sizes; `total` together."""
        each = torch.bincount(evenly(total, sum(tokens)), minlength=sum(tokens))
        frames = [int(own.sum()) for own in each.split(list(tokens))]
        context = [int(self.contextual * own) for own in frames]
        salient, anchors = [a - b for a, b in zip(frames, context, strict=True)], [0] * len(frames)
        start = 0
        for size in sizes:
            holders = range(start + (size - 1) % self.every, start + size, self.every)
            left = sum(context[start : start + size])
            shared = torch.bincount(evenly(left, len(holders)), minlength=len(holders)).tolist()
            for at, own in zip(holders, shared, strict=True):
                anchors[at] = min(own, tokens[at] - salient[at])
            left -= sum(anchors[start : start + size])
            while left:  # more than the frames that hold anchors have tokens
                room = [at for at in range(start, start + size) if salient[at] + anchors[at] < tokens[at]]
                for at in room[:left]:
                    salient[at] += 1
                left -= min(left, len(room))
            start += size
        return salient, anchors


def saliency(hidden: Tensor, frames: Sequence[Tensor]) -> list[Tensor]:
    """1 - cosine of each frame's tokens to their mean: per frame [n] in fp64, from states [V, D]."""
    out = []
    for own in frames:
        rows = hidden[own.to(hidden.device)].double()
        out.append(1 - normalize(rows, dim=-1) @ normalize(rows.mean(dim=0), dim=0))
    return out


def segments(means: Tensor, cuts: int, similar: float) -> list[int]:
    """How many frames each segment has, from what the frames [T, D] are like."""
    unit = normalize(means, dim=-1)
    near = (unit[1:] * unit[:-1]).sum(dim=-1).cpu()
    cut = near < similar
    cut[ranking(-near)[: cuts - 1]] = True
    edges = torch.cat([torch.tensor([-1]), cut.nonzero()[:, 0], torch.tensor([len(means) - 1])])
    return edges.diff().tolist()


def gathered(hidden: Tensor, rows: Tensor, centres: Sequence[Tensor], beta: float) -> list[Tensor]:
    """Each group of anchors, of which every one of the tokens `rows` joins one: per group its states, as its order is.

    Args:
        hidden: [V, D]. rows: indices 0..V-1, the anchors among them. centres: per group [k] indices 0..V-1.
    """
    centres, rows = [own.to(hidden.device) for own in centres], rows.to(hidden.device)
    units = [unit_rows(hidden[own].detach()) for own in centres]
    totals = [torch.zeros(len(own), hidden.shape[1], device=hidden.device) for own in centres]
    sizes = [torch.zeros(len(own), 1, device=hidden.device) for own in centres]
    for part in rows.split(part_size(hidden.shape[1])):
        states = hidden[part]
        near = unit_rows(states.detach())
        for i, unit in enumerate(units):
            owner = (near @ unit.T).argmax(dim=1)
            totals[i] = totals[i].index_add(0, owner, states.float())
            sizes[i] += owner.bincount(minlength=len(unit))[:, None]
    out = []
    for own, total, size in zip(centres, totals, sizes, strict=True):
        weight = (1 / (size + 1)).clamp(min=beta)
        out.append((weight * hidden[own] + (1 - weight) * total / size.clamp(min=1)).to(hidden.dtype))
    return out
