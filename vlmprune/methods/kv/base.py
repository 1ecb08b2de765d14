"""What a cache method is. The body of one that cuts the cache is one pure function, `score`.

Shapes: B batch, H query heads, G key heads, P entries that a layer holds of a prompt, R rows, L decoder layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ...attention.probe import AttentionCall
from ...errors import VlmpruneError
from ...flow.budgets import prefix_counts, pyramid_count, shared_counts
from ...flow.select import check_keep, count_for
from ...ops.attention_rows import rows_at_once
from ..base import Method
from ..declared import number

BUDGETS = ("uniform", "pyramid", "attention", "prefix")


@dataclass(frozen=True, kw_only=True)
class LayerEntries:
    """What a cache method may look at: the entries of one layer, whose attention of the prompt has just run.

    `visual`, `real`: bool [B, P], visual tokens, and all that are the prompt's own (no padding, no filler, nothing
    generated). `suffix`: bool [B, P], real text after the sample's last visual token. `ids`: per sample, the token ids
    of its prompt. `heads`: G. `call`: the layer's attention call, for methods that set `reads_attention`.
    """

    layer: int
    visual: Tensor
    real: Tensor
    suffix: Tensor
    ids: Sequence[Tensor]
    heads: int
    call: AttentionCall | None = None
    made: dict[str, Tensor] = field(default_factory=dict, init=False)  # what `score` leaves for `weigh`

    def last(self, count: int) -> Tensor:
        """The last `count` real entries of each sample: bool [B, P]."""
        behind = self.real.flip(-1).cumsum(-1).flip(-1)
        return self.real & (behind <= count)

    def asking(self) -> Tensor:
        """The rows after the image vote: text after the last visual token, the last entry where there is none."""
        none = ~self.suffix.any(dim=-1, keepdim=True)
        return torch.where(none, self.last(1), self.suffix)

    def attention_from(self, rows: Tensor) -> Tensor:
        """Attention that each entry gets from rows bool [B, P], mean over these and over the queries of a key head, in
        fp32: [B, G, P]."""
        assert self.call is not None, "the session probes every method that sets reads_attention"
        number, longest = rows.sum(dim=-1), int(rows.sum(dim=-1).max())
        # Chosen rows first, in order; where a sample has fewer they are repeated without weight: padding may be NaN.
        order = torch.sort((~rows).to(torch.uint8), dim=-1, stable=True).indices
        at = torch.arange(longest, device=rows.device).expand(len(rows), -1)
        index, weight = order.gather(-1, at % number[:, None]), (at < number[:, None]) / number[:, None]
        step, total = rows_at_once(self.call.query, self.call.key), None
        for start in range(0, longest, step):
            part = self.call.weights(index[:, start : start + step])
            own = (part * weight[:, None, start : start + step, None].to(part)).sum(dim=2)
            total = own if total is None else total + own
        assert total is not None, "every sample has a row"
        return total[..., : rows.shape[-1]].unflatten(1, (self.heads, -1)).mean(dim=2)


@dataclass(frozen=True)
class CacheMethod(Method):
    """Acts on the cache behind the prompt: the prompt itself runs as it does without. One of them goes with a pruner
    and any number of interventions.

    Args:
        buffer: whether the cache grows in a buffer, which saves the copy that each step makes of a `DynamicCache`, and
            has spare room of at most 64 entries or the answer's length. None: where the model or `generate` makes the
            cache, not in one that the caller passes.
    Raises:
        VlmpruneError: an option out of range.
    """

    saves: ClassVar[tuple[str, ...]] = ()  # for the report
    # Whether the attention calls of the layers with a cache that grows are handed to the method.
    reads_attention: ClassVar[bool] = False
    buffer: bool | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buffer is not None and not isinstance(self.buffer, bool):
            raise VlmpruneError(f"buffer must be True, False or None, got {self.buffer!r:.60}.")

    @property
    def keeps_all(self) -> bool:
        """Whether the budget is everything, so that the model runs untouched."""
        return False


class StepSelector(Protocol):
    """What chooses, in the steps of one call, which entries of the cache a layer reads.

    `attended`: how many entries each layer read in the last step.
    """

    attended: dict[int, int]

    def begin(self, stages: Mapping[int, int | None]) -> None:
        """A step begins.

        Args:
            stages: of every layer that may read a part, the layer before which its prompt was pruned, None where it was
                not. Lengths alone do not tell: where the longest row of a batch lost nothing, the others hold other
                entries in as many.
        """

    def exchange(self, layer: int, call: AttentionCall) -> AttentionCall:
        """The call that takes the place of a layer's: over the entries that it reads, or as it is."""


@dataclass(frozen=True)
class CacheReader(CacheMethod):
    """Reads a part of the cache in each step; nothing leaves it."""

    saves: ClassVar[tuple[str, ...]] = ("attention in each step",)
    reads_attention: ClassVar[bool] = True

    def selector(self, readers: Sequence[int], depth: int) -> StepSelector:
        """What chooses in the steps of one call.

        Args:
            readers: the layers with a cache that grows. depth: how many layers there are.
        Raises:
            VlmpruneError: the options do not fit these layers.
        """
        raise NotImplementedError(f"{type(self).__name__} needs selector()")


@dataclass(frozen=True)
class CacheCut(CacheMethod):
    """Cuts the cache once, when the prompt has run: the entries that are left are all that later tokens see.

    The first token of the answer comes from the prompt, so a cut cannot change it. What comes after the prompt stays
    whole. The last token of the prompt always stays, and so does text unless `tokens="all"`.

    Args:
        keep: as a pruner's: a float in (0, 1] is the fraction of each image's visual tokens, an int tokens per image. A
            sample's images share the sum, and so do layers unless `budgets` is "uniform": what is ranked higher stays.
            With `tokens="all"` it is of all of a sample's tokens together.
        tokens: "visual" (text stays) or "all".
        budgets: how `keep` is spread over layers. "uniform": alike. "pyramid": linearly from many to few (PyramidKV).
            "attention": in proportion to what the scores of a layer add up to (TGV-KV). "prefix": the same fraction of
            each layer's scores (PrefixKV, whose counts are set offline; here every prompt sets its own). By the
            last two, samples have counts of their own in a layer, whose tensors are as long as the batch's longest.
        beta: of "pyramid": the last layer keeps this part of the mean, 1 / beta.
    Raises:
        VlmpruneError: an option out of range.
    """

    saves: ClassVar[tuple[str, ...]] = ("memory of the cache", "attention in each step")
    # What the method reads: the attention call of every layer that is cut.
    reads_attention: ClassVar[bool] = True
    # Whether heads hold different numbers of entries, by `by_heads`.
    by_head: ClassVar[bool] = False
    keep: float | int = 0.25
    tokens: str = "visual"
    budgets: str = field(default="uniform", kw_only=True)
    beta: float = field(default=20.0, kw_only=True, metadata=number(float, 1))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_keep(self.keep)
        for name, known in (("tokens", ("visual", "all")), ("budgets", BUDGETS)):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise VlmpruneError(f"{name}={value!r:.60} is unknown; use {' or '.join(map(repr, known))}.")

    @property
    def keeps_all(self) -> bool:
        return isinstance(self.keep, float) and self.keep == 1.0

    @property
    def spreads(self) -> bool:
        """Whether a layer's budget depends on the scores of all layers, so that none can be cut before the last ran."""
        return self.budgets in ("attention", "prefix")

    def score(self, entries: LayerEntries) -> Tensor:
        """One number an entry, higher stays: [B, G, P], or [B, 1, P] where all heads hold the same entries."""
        raise NotImplementedError(f"{type(self).__name__} needs score()")

    def weigh(self, entries: LayerEntries) -> Tensor | None:
        """What `by_heads` is handed of each key head beside the scores: [B, G], or None."""
        return None

    def by_heads(self, scores: Tensor, weights: Tensor | None, count: int, place: int, places: int) -> list[int]:
        """How many of a sample's eligible entries each key head keeps of a layer, the `place`-th of those that are cut.

        Args:
            scores: [G, eligible entries]. weights: [G], of `weigh`. count: their mean.
        """
        raise NotImplementedError(f"{type(self).__name__} needs by_heads()")

    def count(self, groups: Sequence[int], place: int, places: int) -> int:
        """How many of a sample's eligible entries a layer keeps, the `place`-th of those that are cut.

        Args:
            groups: how many there are of each image, or of all tokens together.
        """
        budget = sum(count_for(self.keep, size) for size in groups)
        if self.budgets != "pyramid" or not budget:
            return budget
        return pyramid_count(budget, sum(groups), place, places, self.beta)

    def spread(self, counts: Sequence[int], scores: Sequence[Tensor]) -> list[int]:
        """The counts of a sample's layers where they depend on all layers.

        Args:
            counts: those of uniform budgets. scores: per layer [eligible entries], mean over heads.
        """
        if self.budgets == "prefix":
            return prefix_counts(sum(counts), scores)
        masses = [float(own.double().clamp(min=0).sum()) for own in scores]
        return shared_counts(sum(counts), masses, [len(own) for own in scores])
