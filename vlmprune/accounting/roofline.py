"""Roofline estimates of a request: pure arithmetic on a model's shapes and a machine's peaks.

A bound, not a forecast: kernels that reach half of a peak take twice the time, but pruned and unpruned alike, so ratios
hold better than milliseconds. Vision, prefill and decode are estimated one after the other.
"""

from dataclasses import dataclass
from typing import Any

import torch

from .flops import LayerCost, ModelCost, RowCount
from .hardware import Hardware

ROOM = 0.9  # fraction of the memory that weights and caches may fill; the rest is for activations and the allocator


@dataclass(frozen=True)
class ModelSize:
    """What of a model an estimate needs.

    `cost`: its language model. `text_bytes`, `vision_bytes`: weights of each part that a pass reads. `all_bytes`: all
    weights. `vision_flops`: of the linear maps for one image. `visual`: tokens of one image. `expert_bytes`: how much
    of `text_bytes` are experts, of which a row goes through `expert_share`. `number_bytes`: of one weight.
    """

    name: str
    cost: ModelCost
    text_bytes: int
    vision_bytes: int
    all_bytes: int
    vision_flops: int
    visual: int
    expert_bytes: int = 0
    expert_share: float = 1.0
    number_bytes: int = 2

    @property
    def active_bytes(self) -> int:
        """Weights that one token has to do with: all but the tower's, and of experts those that its router chooses."""
        return round(self.all_bytes - self.vision_bytes - self.expert_bytes * (1 - self.expert_share))

    def read_bytes(self, rows: int) -> float:
        """Weights that a pass over so many rows reads: an expert is read once if any row chooses it, and rows choose
        alike and independently of each other."""
        return self.text_bytes - self.expert_bytes * (1 - self.expert_share) ** rows


@dataclass(frozen=True)
class Estimate:
    """A batch of requests under one setting: counts, and seconds of the batch (`decode_token`: a step).

    `requests`: how many fit into the memory at once; `cache`: what one of them takes when it ends.
    """

    kept: int
    layer: int
    prefill_flops: int
    kv_bytes: int
    vision: float
    prefill: float
    decode_token: float
    decode: float
    guide: float = 0.0
    requests: int = 0
    cache: int = 0

    @property
    def total(self) -> float:
        return self.guide + self.vision + self.prefill + self.decode


def estimate(
    size: ModelSize, machine: Hardware, *, text: int, new: int, kept: int, layer: int, resident: int = 0, batch: int = 1
) -> Estimate:
    """`batch` requests side by side, each of one image and `text` tokens behind it, `new` tokens generated.

    Args:
        kept: visual tokens left from decoder layer `layer` on, which count as spread over the image.
        resident: bytes of other models in the same memory.
    """
    cost = size.cost
    cross = any(part.cross for part in cost.layers)
    visual = [size.visual if i < layer else kept for i in range(len(cost.layers))]
    rows = [text if cross else text + v for v in visual]
    placed = [_rows(part, n, v, size.visual) for part, n, v in zip(cost.layers, rows, visual, strict=True)]

    def cached(new: int) -> list[int]:
        """Per layer, entries after `new` tokens; those of cross-attention layers stay."""
        return [v if part.cross else n + new for part, n, v in zip(cost.layers, rows, visual, strict=True)]

    whole = text if cross else text + size.visual  # before anything is dropped
    flops = batch * cost.flops([[n] for n in placed], [[v] for v in visual], whole=whole)
    cache, halfway = cost.kv_bytes(cached(0), batch), cached(new // 2)  # the average step
    moved = size.read_bytes(batch) + cost.kv_bytes(halfway, batch)
    step = machine.seconds(batch * cost.step_flops(halfway), moved)
    room, largest = machine.memory * ROOM - size.all_bytes - resident, cost.kv_bytes(cached(new), 1)
    return Estimate(
        kept=kept,
        layer=layer,
        prefill_flops=flops,
        kv_bytes=cache,
        vision=machine.seconds(batch * size.vision_flops, size.vision_bytes),
        prefill=machine.seconds(flops, size.read_bytes(batch * rows[0]) + cache),
        decode_token=step,
        decode=step * max(0, new - 1),  # the first token comes out of the prefill
        requests=max(0, int(room // max(1, largest))),
        cache=largest,
    )


def _rows(part: LayerCost, rows: int, left: int, visual: int) -> RowCount:
    """A layer's rows: how many, or, where it counts back from a row's position, the positions of those left.

    What is left of the image keeps its positions, so a window sees fewer of its tokens than where all stand together.
    """
    if left == visual or part.cross or (part.window is None and part.source is None):
        return rows
    return torch.cat([torch.arange(left) * visual // max(1, left), torch.arange(visual, visual + rows - left)])


def verdict(full: Estimate, pruned: Estimate, guide: Estimate) -> dict[str, Any]:
    """Whether a small model that answers first pays: compare `t_small + (1 - exit) * t_large(r)` with `t_large`.

    `guide`: its seconds. `allowed`: the most it may take without exits, t_large - t_large(r). `exits`: the fraction of
    requests it must answer alone for the whole to be faster, 0 where it pays anyway, None where it never does.
    """
    large = pruned.total - pruned.guide
    allowed = full.total - large
    pays = guide.total <= allowed
    exits = 0.0 if pays else 1 - (full.total - guide.total) / large
    return {"guide": guide.total, "allowed": allowed, "exits": exits if exits < 1 else None, "pays": pays}
