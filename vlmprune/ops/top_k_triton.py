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
    device = scores.device
    positions = torch.cat([_to_device(span, device) for span in spans])
    starts, taken, firsts = _bounds([len(span) for span in spans], counts, device)
    out = torch.empty(sum(counts), dtype=torch.long, device=device)
    block = triton.next_power_of_2(max(map(len, spans)))
    with torch.cuda.device_of(scores):
        top_k_kernel[(len(spans),)](
            scores, positions, starts, taken, firsts, out, scores.stride(0),
            BLOCK=block, num_warps=warps(block),
        )  # fmt: skip
    return out


def _to_device(numbers: Tensor, device: torch.device) -> Tensor:
    return numbers.to(device, non_blocking=True)  # a blocking copy would wait for all queued GPU work


def _bounds(lengths: Sequence[int], counts: Sequence[int], device: torch.device) -> Sequence[Tensor]:
    """Where every image's tokens begin, how many of them are taken, and where these go.

    Of images that are alike they are made on the device: a CUDA graph holds no copy from memory that the host frees.
    """
    if len(set(lengths)) == len(set(counts)) == 1:
        image = torch.arange(len(lengths) + 1, device=device)
        return image * lengths[0], torch.full_like(image, counts[0]), image * counts[0]
    table = [list(accumulate(lengths, initial=0)), [*counts, 0], list(accumulate(counts, initial=0))]
    return _to_device(torch.tensor(table), device).unbind()
