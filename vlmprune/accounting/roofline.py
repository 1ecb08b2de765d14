"""Roofline estimates of a request: pure arithmetic on a model's shapes and a machine's peaks.

A bound, not a forecast: kernels that reach half of a peak take twice the time, but pruned and unpruned alike, so ratios
hold better than milliseconds. Vision, prefill and decode are estimated one after the other.
"""

from dataclasses import dataclass
from typing import Any

from .flops import ModelCost
from .hardware import Hardware

ROOM = 0.9  # fraction of the memory that weights and caches may fill; the rest is for activations and the allocator


@dataclass(frozen=True)
class ModelSize:
    """What of a model an estimate needs.

    `cost`: its language model. `text_bytes`, `vision_bytes`: weights read in one pass of each part. `all_bytes`: all
    weights. `vision_flops`: of the linear maps for one image. `visual`: tokens of one image.
    """

    name: str
    cost: ModelCost
    text_bytes: int
    vision_bytes: int
    all_bytes: int
    vision_flops: int
    visual: int


@dataclass(frozen=True)
class Estimate:
    """One request under one setting: counts, and seconds a request (`decode_token`: a generated token)."""

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

    @property
    def total(self) -> float:
        return self.guide + self.vision + self.prefill + self.decode


def estimate(
    size: ModelSize, machine: Hardware, *, text: int, new: int, kept: int, layer: int, resident: int = 0
) -> Estimate:
    """One request of `text` tokens and one image, `new` tokens generated.

    Args:
        kept: visual tokens left from decoder layer `layer` on. resident: bytes of other models in the same memory.
    """
    cost = size.cost
    cross = any(part.cross for part in cost.layers)
    visual = [size.visual if i < layer else kept for i in range(len(cost.layers))]
    rows = [text if cross else text + v for v in visual]

    def cached(new: int) -> list[int]:
        """Per layer, entries after `new` tokens; those of cross-attention layers stay."""
        return [v if part.cross else n + new for part, n, v in zip(cost.layers, rows, visual, strict=True)]

    flops, cache = cost.flops([[n] for n in rows], [[v] for v in visual]), cost.kv_bytes(cached(0), 1)
    halfway = cached(new // 2)  # the average step
    step = machine.seconds(cost.step_flops(halfway), size.text_bytes + cost.kv_bytes(halfway, 1))
    room = machine.memory * ROOM - size.all_bytes - resident
    return Estimate(
        kept=kept,
        layer=layer,
        prefill_flops=flops,
        kv_bytes=cache,
        vision=machine.seconds(size.vision_flops, size.vision_bytes),
        prefill=machine.seconds(flops, size.text_bytes + cache),
        decode_token=step,
        decode=step * max(0, new - 1),  # the first token comes out of the prefill
        requests=max(0, int(room // max(1, cost.kv_bytes(cached(new), 1)))),
    )


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
