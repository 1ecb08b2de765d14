"""Roofline estimates of a request: pure arithmetic on a model's shapes and a machine's peaks.

A bound, not a forecast: kernels that reach half of a peak take twice the time, but pruned and unpruned alike, so ratios
hold better than milliseconds. Vision, prefill and decode are estimated one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from .flops import ModelCost
from .hardware import Hardware

ROOM = 0.9  # share of the memory that weights and caches may fill; the rest is for activations and the allocator


@dataclass(frozen=True)
class ModelSize:
    """What of a model an estimate needs.

    `cost`: its language model. `text_bytes`, `vision_bytes`: weights read in one pass of each part. `all_bytes`: all
    weights. `vision_flops`: of one picture's linear maps. `visual`: tokens of one picture. `rows`: whether they are
    rows of the sequence (else keys of cross-attention layers).
    """

    name: str
    cost: ModelCost
    text_bytes: int
    vision_bytes: int
    all_bytes: int
    vision_flops: int
    visual: int
    rows: bool = True


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


def layer_lengths(size: ModelSize, text: int, kept: int, layer: int) -> list[int]:
    """Entries every decoder layer caches of a prompt pruned before `layer`."""
    visual = [size.visual if i < layer else kept for i in range(len(size.cost.layers))]
    if size.rows:
        return [text + v for v in visual]
    return [v if part.cross else text for part, v in zip(size.cost.layers, visual, strict=True)]


def estimate(
    size: ModelSize, machine: Hardware, *, text: int, new: int, kept: int, layer: int, resident: int = 0
) -> Estimate:
    """One request of `text` tokens and one picture, `new` tokens generated.

    Args:
        kept: visual tokens left from decoder layer `layer` on. resident: bytes of other models in the same memory.
    """
    cost = size.cost
    lengths = layer_lengths(size, text, kept, layer)
    rows = [[text if part.cross else length] for part, length in zip(cost.layers, lengths, strict=True)]
    keys = [[length if part.cross else 0] for part, length in zip(cost.layers, lengths, strict=True)]
    flops, cache = cost.flops(rows, keys), cost.kv_bytes(lengths, 1)
    # The cache grows by a token a step in the layers that attend to text; halfway is the average step.
    halfway = [length if part.cross else length + new // 2 for part, length in zip(cost.layers, lengths, strict=True)]
    last = [length if part.cross else length + new for part, length in zip(cost.layers, lengths, strict=True)]
    step_flops = 2 * cost.head
    for part, length in zip(cost.layers, halfway, strict=True):
        seen = part.seen(length)
        step_flops += 2 * (part.linear + 2 * part.query_width * seen)
    step = machine.seconds(step_flops, size.text_bytes + cost.kv_bytes(halfway, 1))
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
        requests=max(0, int(room // max(1, cost.kv_bytes(last, 1)))),
    )


@dataclass(frozen=True)
class GuideVerdict:
    """Whether a small model that answers first pays.

    `guide`: its seconds. `allowed`: the most it may take without exits, t_large - t_large(r). `exits`: the share of
    requests it must answer alone for the whole to be faster, 0 where it pays anyway, None where it never does.
    """

    guide: float
    allowed: float
    exits: float | None

    @property
    def pays(self) -> bool:
        return self.exits == 0.0


def verdict(full: Estimate, pruned: Estimate, guide: Estimate) -> GuideVerdict:
    """Compare `t_small + (1 - exit) * t_large(r)` with `t_large`."""
    large = pruned.total - pruned.guide
    allowed = full.total - large
    if guide.total < allowed:
        return GuideVerdict(guide.total, allowed, 0.0)
    exits = 1 - (full.total - guide.total) / large
    return GuideVerdict(guide.total, allowed, exits if exits < 1 else None)
