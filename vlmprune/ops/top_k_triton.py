"""Triton kernel behind `top_k.py`: the k-th highest score by bisection over its 32 bits, then one scan. No sort."""

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def top_k_kernel(scores, positions, starts, counts, firsts, out, stride, BLOCK: tl.constexpr):
    """Program (image): its highest-scored tokens in order, written from `firsts` on."""
    image = tl.program_id(0)
    start, end = tl.load(starts + image), tl.load(starts + image + 1)
    count = tl.load(counts + image)
    i = tl.arange(0, BLOCK)
    inside = i < end - start
    token = tl.load(positions + start + i, mask=inside, other=0)
    score = tl.load(scores + token * stride, mask=inside, other=0.0).to(tl.float32)
    score = tl.where(score == 0.0, 0.0, score)  # -0.0 and 0.0 are a tie
    bits = score.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers that order like the floats
    threshold = tl.zeros([1], tl.int64) - 2147483648
    for step in range(32):
        candidate = threshold + (tl.full([1], 1, tl.int64) << (31 - step))
        enough = tl.sum((inside & (ordered >= candidate.to(tl.int32))).to(tl.int32), axis=0) >= count
        threshold = tl.where(enough, candidate, threshold)
    above = inside & (ordered > threshold.to(tl.int32))
    tied = inside & (ordered == threshold.to(tl.int32))
    room = count - tl.sum(above.to(tl.int32), axis=0)
    taken = above | (tied & (tl.cumsum(tied.to(tl.int32), axis=0) <= room))
    slot = tl.cumsum(taken.to(tl.int32), axis=0) - 1
    tl.store(out + tl.load(firsts + image) + slot, token, mask=taken)


def warps(block: int) -> int:
    """At most 16 numbers per thread; 32 spilled registers."""
    return max(4, min(16, block // 512))


def top_k(scores: Tensor, spans: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """See `top_k.top_k`; images in the order of `spans`."""
    starts = list(accumulate((len(span) for span in spans), initial=0))
    firsts = list(accumulate(counts, initial=0))

    def to_device(numbers: Tensor) -> Tensor:  # a blocking copy would wait for all queued GPU work
        return numbers.to(scores.device, non_blocking=True)

    positions = torch.cat([to_device(span) for span in spans])
    table = to_device(torch.tensor([starts, firsts, [*counts, 0]]))
    out = torch.empty(firsts[-1], dtype=torch.long, device=scores.device)
    block = triton.next_power_of_2(max(map(len, spans)))
    with torch.cuda.device_of(scores):
        top_k_kernel[(len(spans),)](
            scores, positions, table[0], table[2], table[1], out, scores.stride(0),
            BLOCK=block, num_warps=warps(block),
        )  # fmt: skip
    return out
