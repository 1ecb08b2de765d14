"""HoliTom (Shao et al., NeurIPS 2025, arXiv 2505.21334): what stands still through a segment is merged over time."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..flow.frames import weighted_counts
from ..flow.over_time import NONE, before, changes, split_frames
from ..flow.select import ranking
from .declared import number
from .fastvid import saliency
from .per_image import ImageContext, PerImage, cluster_means
from .sparsevlm import density_peaks

NEIGHBOURS = 7  # nearest tokens, itself included, that make a token's density; at most as many as there are clusters


@dataclass(frozen=True)
class HoliTom(PerImage):
    """Averages what stands still over each segment of a video, and clusters it; of what moves keeps what is salient.

    A place stands still in a segment if its tokens have a cosine above `similar` from each frame to the next. Segments
    are chosen so that as many tokens as possible go into averages over time: their places that stand still, times
    their frames but one, is largest. The budget is shared by what is left in proportion: a segment's averages, which
    stand in its first frame, and the moving tokens of every frame. Averages become the means of clusters around density
    peaks: `beta` times the peak and 1 - `beta` times the mean of the others. An image is one frame.

    Departures from the official code: it is the part before the language model, without the merging at layer 18.
    Saliency there is the attention of the vision tower's last layer, which the models here do not bring for tokens made
    of several patches; here it is 1 - cosine to the mean of the frame. Every part is rounded by itself there, up where
    tokens move; here the parts add up to `keep`, unless that is more than averaging leaves. It puts averages in front
    of their segment and renumbers all tokens; here each stands where it stood in the first frame. Its ratio and its
    attention are overwritten by the first of several videos. Densities carry no noise against ties and are fp64.
    Tokens of no frame (LLaVA-OneVision's newline) stay.

    When: the camera and much of what it shows stand still for a while.

    Args:
        similar: cosine above which a place stands still.
        contextual: fraction of a frame's moving tokens that are clusters too; 0, as in the official code.
        beta: what a density peak keeps of itself.
    Raises:
        VlmpruneError: an option out of range.
    """

    name: ClassVar[str] = "holitom"
    keep: float | int = 0.15
    similar: float = field(default=0.8, metadata=number(float, -1, 1))
    contextual: float = field(default=0.0, metadata=number(float, 0, 1))
    beta: float = field(default=0.6, metadata=number(float, 0, 1))

    def choose(self, image: ImageContext) -> tuple[Tensor, Tensor]:
        frames, loose = split_frames(image.span)
        hidden, loose = image.hidden, loose[: image.count]
        if image.count == image.span.count:
            return torch.arange(image.count), hidden
        still = standing(hidden.detach(), before(image.span), frames, self.similar)
        unusual = saliency(hidden.detach(), frames)
        groups: list[tuple[Tensor, Tensor, Tensor | None]] = []  # places, states and saliency, None of averages
        for first, last in segments(still):
            fixed = still[first:last].all(dim=0) if last > first else torch.zeros(len(frames[first]), dtype=torch.bool)
            if bool(fixed.any()):
                same = torch.stack([own[fixed] for own in frames[first : last + 1]]).to(hidden.device)
                groups.append((frames[first][fixed], averages(hidden, same), None))
            for at in range(first, last + 1):
                moving = frames[at][~fixed]
                if len(moving):
                    own = unusual[at][~fixed.to(hidden.device)]
                    groups.append((moving, hidden[moving.to(hidden.device)], own))
        sizes = [len(places) for places, _, _ in groups]
        counts = weighted_counts(image.count - len(loose), sizes, [float(size) for size in sizes])
        kept, states = [loose], [hidden[loose.to(hidden.device)]]
        for (places, own, salient), count in zip(groups, counts, strict=True):
            if not count:
                continue
            clusters = count if salient is None else count - round(count * (1 - self.contextual))
            order = torch.arange(len(own), device=own.device) if salient is None else ranking(salient)
            stay, rest = order[: count - clusters], order[count - clusters :].sort().values
            kept.append(places[stay.cpu()])
            states.append(own[stay])
            if clusters:
                centres, means = clustered(own[rest], clusters, self.beta)
                kept.append(places[rest[centres].cpu()])
                states.append(means)
        where, order = torch.cat(kept).sort()
        return where, torch.cat(states)[order.to(hidden.device)]


def standing(hidden: Tensor, earlier: Tensor, frames: list[Tensor], similar: float) -> Tensor:
    """Which places are alike in neighbouring frames: bool [T - 1, n] on the CPU.

    Args:
        hidden: [V, D]. earlier: [V], the token at the same place in the frame before. frames: T times [n] indices; of
            unequal length, as where a model drops some itself, no place is known to stand still.
    """
    if len({len(own) for own in frames}) > 1:
        return torch.zeros(len(frames) - 1, 0, dtype=torch.bool)
    alike = (1 - changes(hidden, earlier).cpu() > similar) & (earlier != NONE)
    return torch.stack([alike[own] for own in frames])[1:]


def segments(still: Tensor) -> list[tuple[int, int]]:
    """First and last frame of each segment, so that most tokens go into averages: from bool [T - 1, n].

    Of equally good last segments a single frame is taken, else the shortest.
    """
    steps, same = len(still), still.numpy()
    run = np.zeros(same.shape[1], dtype=np.int64)  # of each place, for how many steps up to here it has stood still
    best, starts = [0], [0]  # of the frames up to each
    for last in range(1, steps + 1):
        run = (run + 1) * same[last - 1]
        # Of segments of 2, 3, ... frames that end here: how many places stand still in all of their steps.
        long = np.bincount(run, minlength=last + 1)[::-1].cumsum()[::-1][1:]
        length = np.arange(1, last + 1)
        earlier = np.array([0, *best[:-1]])[::-1]
        total = long * length + earlier
        at = int(total.argmax())
        better = bool(total[at] > best[-1])
        starts.append(last - int(length[at]) if better else last)
        best.append(int(total[at]) if better else best[-1])
    found, last = [], steps
    while last >= 0:
        found.append((starts[last], last))
        last = starts[last] - 1
    return found[::-1]


def averages(hidden: Tensor, same: Tensor) -> Tensor:
    """Mean states over time of places [T, n], indices into [V, D]: [n, D], summed in fp32 frame by frame."""
    total = torch.zeros(same.shape[1], hidden.shape[1], device=hidden.device)
    for own in same:
        total = total + hidden[own]
    return (total / len(same)).to(hidden.dtype)


def clustered(states: Tensor, number: int, beta: float) -> tuple[Tensor, Tensor]:
    """Density peaks among states [N, D] and what they become: [number] indices and [number, D]."""
    centres, owner = density_peaks(states.detach(), number, min(NEIGHBOURS, number))
    others = torch.ones(len(states), dtype=torch.bool, device=states.device)
    others[centres] = False
    own, mean = states[centres], cluster_means(states[others], owner[others], number)
    alone = owner[others].bincount(minlength=number)[:, None] == 0
    return centres, torch.where(alone, own, beta * own + (1 - beta) * mean)
