"""Original positions of kept tokens inside vLLM, which counts the tokens that are left.

Two ways lead there. What is known of a request when it comes, such as how many tokens each image loses, goes into the
positions that vLLM asks the model for once (`positions_of_kept`). Which tokens stay is known only when the image is
encoded, and the encoder's output may be another request's too: it carries each row's distance from the first token of
its image in extra columns (`with_distances`), and `PositionBuffer` adds it when the row is used.
Shapes: K kept tokens of an image, V all of them, N tokens, R width of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..payload import KEPT, VISUAL

if TYPE_CHECKING:
    from vllm.multimodal.inputs import MultiModalFeatureSpec

AXES, _BASE = 3, 256  # whole numbers up to 256 are exact in bfloat16, of which a row's columns may be
COLUMNS = 2 * AXES
# The unpruned tokens of a video that has text between its frames: all of them become rows, that text too.
SPAN = "vlmprune_span"


def positions_of_kept(
    tokens: Sequence[int],
    features: Sequence[MultiModalFeatureSpec],
    unpruned: Callable[[list[int], list[MultiModalFeatureSpec]], Tensor],
) -> tuple[Tensor, int]:
    """Positions [3, N] of a prompt with pruned images, and what to add to the number of a later token.

    Rows of an image or a video whose kept tokens are not known yet all stand where its first token stood.

    Args:
        tokens: the prompt's N ids. unpruned: gives the positions [3, n] of the prompt with all its tokens, from their
            ids and the images in it.
    """
    columns: list[Tensor] = []
    every: list[int] = []
    whole: list[MultiModalFeatureSpec] = []
    shift = at = 0
    for feature in sorted(features, key=lambda one: one.mm_position.offset):
        offset, length, mask = feature.mm_position.offset, feature.mm_position.length, feature.mm_position.is_embed
        inside, lost = torch.arange(length), 0
        if feature.data is not None and VISUAL in feature.data:
            rows = feature.mm_position.get_num_embeds()
            lost = int(feature.data[VISUAL].data) - rows
            first = 0 if mask is None else int(mask.int().argmax())
            inside[first + rows :] += lost
            given = feature.data.get(KEPT)
            inside[first : first + rows] = first + (0 if given is None else given.data.cpu().long())
        shared = max(0, at - offset)  # Gemma 3's line breaks between two images are one token of both
        columns += [torch.arange(at, offset + shared) + shift, inside[shared:] + offset + shift]
        if feature.data is not None and SPAN in feature.data:
            every += [*tokens[at:offset], *feature.data[SPAN].data.tolist()]
        else:
            every += [*tokens[at : offset + length], *[tokens[offset + length - 1]] * lost]
        place = replace(feature.mm_position, offset=offset + shift, length=length + lost, is_embed=None)
        whole.append(replace(feature, mm_position=place))
        shift += lost
        at = offset + length
    columns.append(torch.arange(at, len(tokens)) + shift)
    positions = unpruned([*every, *tokens[at:]], whole)
    return positions[:, torch.cat(columns)], int(positions.max()) + 1 - len(tokens)


def with_distances(rows: Tensor, distances: Tensor | None = None) -> Tensor:
    """Rows [K, R] and their distances [3, K] from the first token's position as numbers in more columns.

    Args:
        distances: None where `positions_of_kept` knew the positions already.
    """
    if distances is None:
        return torch.cat([rows, rows.new_zeros(len(rows), COLUMNS)], dim=1)
    digits = torch.cat([distances // _BASE, distances % _BASE]).T
    return torch.cat([rows, digits.to(rows.device, rows.dtype)], dim=1)


class PositionBuffer:
    """The positions of a step's tokens in memory that stays: CUDA graphs read the addresses they were captured with.

    Args:
        most: the most tokens of a step. longest: positions end there, in a table that is not read beyond; None where
            they have several axes and fewer positions than tokens.
    """

    def __init__(self, most: int, longest: int | None = None) -> None:
        self._longest = longest
        self._distances = torch.zeros(AXES, most, dtype=torch.long)
        # One column more keeps slices non-contiguous, as vLLM's own buffer is: compiled code is specialised on that.
        shape = (most,) if longest is not None else (AXES, most + 1)
        self._positions = torch.zeros(shape, dtype=torch.long)
        self._used = 0

    def take(self, embeddings: Sequence[Tensor], visual: Tensor) -> list[Tensor]:
        """Keep the distances of this step's rows, and give the rows without them.

        Args:
            embeddings: per image or piece of one [K, R + 6]. visual: bool [N], which tokens of the step they are.
        """
        if self._used:
            self._distances[:, : self._used].zero_()
        self._used = 0
        if not embeddings:
            return []
        digits = torch.cat([one[:, -COLUMNS:] for one in embeddings]).round().long().T
        # The mask is on the CPU, so where it is True is known without waiting for a GPU.
        rows = visual.nonzero()[:, 0].to(digits.device, non_blocking=True)
        self._distances.index_copy_(1, rows, digits[:AXES] * _BASE + digits[AXES:])
        self._used = len(visual)
        return [one[:, :-COLUMNS] for one in embeddings]

    def add(self, positions: Tensor) -> Tensor:
        """The positions [3, N] that vLLM counted, with the distances: [3, N], or [N] of one axis."""
        number = positions.shape[-1]
        if self._longest is None:
            return torch.add(positions, self._distances[:, :number], out=self._positions[:, :number])
        out = torch.add(positions[0], self._distances[0, :number], out=self._positions[:number])
        # vLLM counts tokens, of which there are fewer than positions, so it does not see the end of the table.
        return out.clamp_(max=self._longest)
