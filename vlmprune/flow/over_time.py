"""What a video shows at one place, frame after frame: the token before each, and how much each differs from it.

Shapes: V visual tokens of a span, D width.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .locate import ImageSpan

NONE = -1
_CHUNK = 1 << 22  # numbers in fp64 at a time: 32 MiB
_EXACT = 9  # decimals: what is one picture twice must not differ by rounding
_TURN = 0.6180339887498949  # of the golden ratio: its multiples spread over 0..1, however many there are


def places(span: ImageSpan) -> Tensor:
    """A number for the place of each token, the same in every frame: [V].

    Tokens that show no place (class tokens) are told apart by their order inside the frame.
    """
    frame = torch.zeros(span.count, dtype=torch.long) if span.frame is None else span.frame
    nowhere = torch.isnan(span.xy[:, 0])
    inside = torch.zeros(span.count, dtype=torch.long)
    for at in frame[nowhere].unique().tolist():
        own = (nowhere & (frame == at)).nonzero()[:, 0]
        inside[own] = torch.arange(len(own))
    key = torch.stack([span.xy[:, 0].double(), span.xy[:, 1].double()], dim=1).mul(1e6).round()
    key = torch.where(nowhere[:, None], torch.stack([-1.0 - inside, inside * 0.0], dim=1).double(), key)
    return torch.unique(key, dim=0, return_inverse=True)[1]


def split_frames(span: ImageSpan) -> tuple[list[Tensor], Tensor]:
    """Indices 0..V-1 of the tokens of each frame that has any, and of those of no frame; an image is one frame."""
    if span.frame is None:
        return [torch.arange(span.count)], torch.zeros(0, dtype=torch.long)
    order = torch.sort(span.frame, stable=True).indices
    frame = span.frame[order]
    loose = int((frame == NONE).sum())
    sizes = torch.unique_consecutive(frame[loose:], return_counts=True)[1]
    return list(order[loose:].split(sizes.tolist())), order[:loose]


def before(span: ImageSpan) -> Tensor:
    """Index 0..V-1 of the token at the same place in the last frame before that has it, `NONE` in the first: [V].

    `NONE` too for tokens of no frame and for images.
    """
    found = torch.full((span.count,), NONE)
    if span.frame is None:
        return found
    shown = (span.frame >= 0).nonzero()[:, 0]
    place = places(span)[shown]
    order = torch.sort(place * (span.grid[0] + 1) + span.frame[shown], stable=True).indices
    same = place[order[1:]] == place[order[:-1]]
    found[shown[order[1:][same]]] = shown[order[:-1][same]]
    return found


def changes(hidden: Tensor, earlier: Tensor) -> Tensor:
    """1 - cosine of each token [V, D] to the one at index `earlier` [V], 0 where that is `NONE`: [V] in fp64."""
    out = torch.zeros(len(hidden), dtype=torch.float64, device=hidden.device)
    for some in _chunks((earlier != NONE).nonzero()[:, 0], hidden.shape[1]):
        near = _unit(hidden[some.to(hidden.device)]) * _unit(hidden[earlier[some].to(hidden.device)])
        out[some.to(hidden.device)] = (1 - near.sum(dim=-1)).round(decimals=_EXACT)
    return out


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.double(), dim=-1)


def _chunks(index: Tensor, width: int) -> Iterator[Tensor]:
    return iter(index.split(max(1, _CHUNK // (2 * width))))


def spread_order(count: int) -> Tensor:
    """Numbers in (0, 1], distinct, of which the largest n lie evenly among 0..count-1 for every n: [count], fp64."""
    return 1 - (torch.arange(count, dtype=torch.float64) * _TURN) % 1.0


def kept_order(hidden: Tensor, span: ImageSpan, most: int) -> Tensor:
    """In what order tokens are kept if each time that one is which differs most from the last kept one at its place.

    The first frame is there to begin with. A token that is kept is what later ones at its place are compared with, up
    to the next kept one.

    Args:
        hidden: [V, D]. most: how many more than the first frame's are kept; the others come by what is left of their
            difference.
    Returns:
        [V]: a score, the larger the earlier; those of the first frame, of no frame and of images 0.
    """
    scores = torch.zeros(span.count, dtype=torch.float64)
    if span.frame is None:
        return scores
    earlier, place = before(span), places(span)
    starts = ((earlier == NONE) & (span.frame >= 0)).nonzero()[:, 0]
    place_of = {int(place[token]): row for row, token in enumerate(starts.tolist())}
    lines: list[list[int]] = [[token] for token in starts.tolist()]  # of each place its tokens over time
    for token in (earlier != NONE).nonzero()[:, 0].tolist():
        lines[place_of[int(place[token])]].append(token)
    gaps = [_differences(hidden, line) for line in lines]
    ahead = [gap[0].copy() for gap in gaps]  # of each token, to the last kept one
    for gap in ahead:
        gap[0] = -np.inf
    best = np.array([gap.max() for gap in ahead]) if lines else np.zeros(0)
    total = sum(len(line) - 1 for line in lines)
    for number in range(min(most, total)):
        row = int(best.argmax())
        gap, line = ahead[row], lines[row]
        at = int(gap.argmax())
        scores[line[at]] = 3.0 + (total - number)  # differences end at 2
        taken = np.flatnonzero(np.isneginf(gap[at + 1 :]))
        end = at + 1 + int(taken[0]) if len(taken) else len(line)
        gap[at + 1 : end] = gaps[row][at, at + 1 : end]
        gap[at] = -np.inf
        best[row] = gap.max()
    for gap, line in zip(ahead, lines, strict=True):
        for left in np.flatnonzero(~np.isneginf(gap)).tolist():
            scores[line[left]] = 1e-9 + gap[left]
    return scores


def _differences(hidden: Tensor, line: list[int]) -> np.ndarray:
    """1 - cosine of the tokens of one place to each other: [T, T]."""
    unit = _unit(hidden[torch.tensor(line, device=hidden.device)])
    return np.asarray((1 - unit @ unit.T).round(decimals=_EXACT).cpu())
