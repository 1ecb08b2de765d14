"""How many entries each layer's cache keeps of a sample: pure functions of whole numbers and scores."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def pyramid_count(budget: int, entries: int, place: int, places: int, beta: float) -> int:
    """PyramidKV's count of the layer at `place` of `places`: from many in the first down to few in the last, linearly.

    Args:
        budget: mean over the layers. entries: what the layer holds, which no count exceeds. beta: the last layer keeps
            `budget / beta`, and the first as much more than the mean as that is less.
    """
    least = budget / beta
    most = 2 * budget - least
    if most > entries:
        least, most = 2 * budget - entries, entries
    if places == 1:
        return budget

    def before(at: int) -> int:
        """What the layers before the `at`-th keep: rounding the sum leaves the mean as it is."""
        return math.floor(at * most - at * (at - 1) / 2 * (most - least) / (places - 1) + 0.5)

    return min(entries, max(1, before(place + 1) - before(place)))


def shared_counts(total: int, weights: Sequence[float], entries: Sequence[int]) -> list[int]:
    """`total` divided over layers in proportion to their weights, each at least 1 and at most its entries.

    What a full layer cannot take goes to the others; remainders go to the largest fractions, then to earlier layers.
    """
    total = min(max(total, sum(min(1, n) for n in entries)), sum(entries))
    least = max(*weights, 1e-30) * 1e-9  # layers of no weight share what the others cannot take
    weights = [max(weight, least) for weight in weights]

    def parts(scale: float) -> list[float]:
        return [min(float(n), max(1.0, scale * weight)) for weight, n in zip(weights, entries, strict=True)]

    low, high = 0.0, max(entries, default=0) / least
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(parts(middle)) < total else (low, middle)
    wanted = [round(part, 6) for part in parts(high)]
    counts = [math.floor(part) for part in wanted]
    order = sorted(range(len(counts)), key=lambda i: (counts[i] - wanted[i], i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts


def prefix_counts(total: int, scores: Sequence[Tensor]) -> list[int]:
    """PrefixKV's counts: every layer keeps the fewest best entries that hold the same fraction of its scores.

    The fraction is the largest at which the layers together keep at most `total` entries, each at least 1.

    Args:
        scores: per layer [P], none below zero.
    """
    held = []
    for own in scores:
        ranked = own.double().clamp(min=0).sort(descending=True).values.cumsum(0)
        held.append(ranked / ranked[-1].clamp(min=torch.finfo(torch.float64).tiny) if len(ranked) else ranked)

    def counts(fraction: float) -> list[int]:
        found = [int((own < fraction).sum()) + 1 for own in held]
        return [min(n, len(own)) for n, own in zip(found, held, strict=True)]

    low, high = 0.0, 1.0
    if sum(counts(high)) <= total:
        return counts(high)
    for _ in range(60):  # doubles have 52 digits
        middle = (low + high) / 2
        low, high = (middle, high) if sum(counts(middle)) <= total else (low, middle)
    return counts(low)
