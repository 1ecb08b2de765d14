"""Task-KV (arXiv 2501.15113): heads that differ most from the others keep the whole cache, the rest keep little."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..declared import number
from .base import CacheCut, LayerEntries
from .snapkv import check_pool, smoothed


@dataclass(frozen=True)
class TaskKV(CacheCut):
    """Some key heads keep everything, the others the first `sinks` eligible entries, the last `recent` ones, and those
    between that the end of the prompt attends to most.

    A head's semantic vector is the sum of the values of its `top` entries, weighted by the attention of the last
    `window` rows. The heads farthest from the layer's mean are whole, and `near` of those nearest to it. How many are
    whole falls linearly from the fraction `whole` of the heads in the first layer to `least` heads in the last. What
    the whole heads leave of the budget is shared by the others; there are fewer whole heads, or none, where these would
    keep less than a quarter of the mean. Ties go to the earlier head: of two key heads, which are always equally far,
    the first is whole. The two groups of heads are stored apart, so that memory is saved.

    Departures from the official code: none was published. The paper chooses query heads, where key heads are chosen
    here; its `sinks` and `recent` are 16 and 256, more than most images leave; it counts all tokens: `tokens="all"`.

    When: long answers, where some heads need everything; with budgets of a third or more, else few heads are whole.

    Args:
        sinks, recent: entries at both ends that every head keeps.
        whole: fraction of the heads that are whole in the first layer.
        least: how many heads are whole in the last layer.
        near: how many of the whole heads are those nearest to the mean.
        window: rows at the end of the prompt that vote.
        pool: entries that are averaged, an odd number.
        top: entries of a semantic vector.
    Raises:
        VlmpruneError: an option out of range.
    """

    name: ClassVar[str] = "task-kv"
    by_head: ClassVar[bool] = True
    sinks: int = field(default=4, metadata=number(int, 0))
    recent: int = field(default=16, metadata=number(int, 0))
    whole: float = field(default=0.25, metadata=number(float, 0, 1))
    least: int = field(default=1, metadata=number(int, 0))
    near: int = field(default=1, metadata=number(int, 0))
    window: int = field(default=32, metadata=number(int, 1))
    pool: int = field(default=7, metadata=number(int, 1))
    top: int = field(default=256, metadata=number(int, 1))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pool(self.pool)

    def _votes(self, entries: LayerEntries) -> Tensor:
        if "votes" not in entries.made:
            votes = entries.attention_from(entries.last(self.window)).masked_fill(~entries.real[:, None], 0.0)
            entries.made["votes"] = smoothed(votes, self.pool)
        return entries.made["votes"]

    def score(self, entries: LayerEntries) -> Tensor:
        eligible = entries.visual if self.tokens == "visual" else entries.real
        place = eligible.cumsum(dim=-1)
        count = place[:, -1:]
        at = torch.arange(eligible.shape[-1], device=eligible.device)
        # A mean of attention is at most 1: sinks come first, then the last ones, the newest foremost.
        ends = torch.where(place > count - self.recent, 2.0 + at, 0.0)
        ends = torch.where(place <= self.sinks, 3.0 * eligible.shape[-1] - at, ends) * eligible
        return torch.where((ends > 0)[:, None], ends[:, None], self._votes(entries))

    def weigh(self, entries: LayerEntries) -> Tensor:
        assert entries.call is not None, "the session probes every method that sets reads_attention"
        votes = self._votes(entries).masked_fill(~entries.real[:, None], 0.0)
        top = votes.topk(min(self.top, votes.shape[-1]), dim=-1)
        values = entries.call.value[:, :, : votes.shape[-1]].float()
        index = top.indices[..., None].expand(-1, -1, -1, values.shape[-1])
        vectors = (top.values[..., None] * values.gather(2, index)).sum(dim=2)
        # From the mean by way of the differences: those of two heads are equal but for the sign, without rounding.
        return torch.linalg.vector_norm((vectors[:, :, None] - vectors[:, None]).mean(dim=2), dim=-1)

    def by_heads(self, scores: Tensor, weights: Tensor | None, count: int, place: int, places: int) -> list[int]:
        assert weights is not None, "weigh() returns a number a head"
        heads, entries = scores.shape
        first = self.whole * heads
        wanted = round(first + (min(self.least, heads) - first) * place / max(1, places - 1))
        quarter = max(1, count // 4)
        room = (heads * (count - quarter)) // max(1, entries - quarter)
        number = max(0, min(wanted, room, heads - 1))
        short = (heads * count - number * entries) // (heads - number)
        far = torch.sort(weights, descending=True, stable=True).indices.tolist()
        near = min(self.near, number - 1) if number else 0
        chosen = {*far[: number - near], *far[heads - near :]}
        return [entries if head in chosen else short for head in range(heads)]
