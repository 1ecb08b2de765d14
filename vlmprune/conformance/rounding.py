"""How far rounding alone moves a model's logits: runs that are equal but for the order of sums. Shapes: L layers."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .reference import Trace
from .rows import rows_apart

EXACT = 1e-5  # of the spread of what is compared: fp32 sums in another order
RULED_OUT = -3e4  # Chameleon rules tokens out by the least number there is
TIMES = 2  # pruned and masked may differ by more than the runs that were tried


@contextmanager
def jittered(layers: Iterable[nn.Module], head: nn.Module | None) -> Iterator[None]:
    """Within the block whatever the modules inside the layers return is off by up to half a unit in its last place."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        key = output.device
        if key not in generators:
            generators[key] = torch.Generator(key).manual_seed(0)
        off = torch.rand(output.shape, generator=generators[key], device=key) * 2 - 1
        return (output.float() * (1 + torch.finfo(output.dtype).eps / 2 * off)).to(output.dtype)

    generators: dict[torch.device, torch.Generator] = {}
    leaves = [one for layer in layers for one in layer.modules() if next(one.children(), None) is None]
    with ExitStack() as hooks:
        for leaf in [*leaves, *([] if head is None else [head])]:
            hooks.callback(leaf.register_forward_hook(hook).remove)
        yield


def apart(one: Trace, other: Trace) -> float:
    """The largest difference of a logit; those that both rule out by -inf are alike."""
    return float((one.logits - other.logits).abs().masked_fill(one.logits == other.logits, 0).max())


@dataclass
class RoundingBounds:
    """What counts as a difference: `logits`, and relative to a row, of what enters and leaves each layer, `rows`
    [2 L]."""

    logits: float
    rows: list[float]


def bounds_of(plain: Trace, pairs: Sequence[tuple[Trace, Trace]], left: Tensor) -> RoundingBounds:
    """From an unpruned run and pairs of runs that rounding alone tells apart in the rows `left` [B, S]."""
    noise = max(apart(*pair) for pair in pairs)
    rows = [
        max(
            rows_apart(one[point], other[point], left)
            for first, second in pairs
            for one, other in zip(first.rows, second.rows, strict=True)
        )
        for point in range(len(plain.rows[0]))
    ]
    said = plain.logits[plain.logits > RULED_OUT]
    logits = max(EXACT * max(1.0, float(said.std())), TIMES * noise)
    return RoundingBounds(logits, [max(EXACT, TIMES * off) for off in rows])
