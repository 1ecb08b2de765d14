"""Editing attention weights after the kernel has run: the change of an edited row's output, without the attention map.

An edit of softmax weights `a -> a + d` changes the output by `d @ V`. A fused kernel's output can therefore be
corrected for the few rows that change, in fp32; all other rows stay as the kernel wrote them.

Shapes: B batch, H heads, G key heads, R rows, P columns, D head width.
"""

import torch
from torch import Tensor


def marks_of(sinks: Tensor, visual: Tensor) -> Tensor:
    """The column masks that `redistribution` needs.

    Args:
        sinks, visual: [B, P] bool, or [B, H, P] where heads hold other keys.
    Returns:
        [B, 1 or H, 3, P] fp32: sinks; visual tokens; visual tokens that are not sinks.
    """
    marks = torch.stack([sinks, visual, visual & ~sinks], dim=-2).float()
    return marks if marks.dim() == 4 else marks[:, None]


def masses(weights: Tensor, marks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of each row [B, H, R, P] to sinks, to the image, and to visual tokens that are not sinks: [B, H, R]."""
    sums = weights @ marks.transpose(-1, -2)
    return sums[..., 0], sums[..., 1], sums[..., 2]


def gated(image: Tensor, free: Tensor, rho: float, gate: float) -> Tensor:
    """VAR's head gate, per head and row: image-centric (attention to the image >= gate), and mostly off the sinks.

    Args:
        image, free: attention to all visual tokens and to those that are not sinks, [B, H, R].
        rho: least fraction `free / image`. A row with nothing to give to (free = 0) never passes.
    """
    return (image >= gate) & (free >= rho * image) & (free > 0)


def redistribution(weights: Tensor, marks: Tensor, *, p: float, rho: float, gate: float) -> Tensor:
    """VAR: how the weights of each row change.

    A row that passes the gate takes the fraction p from every sink, text sinks included, and gives it to the visual
    tokens that are not sinks, in proportion to their weights. A row's changes add up to 0.

    Args:
        weights: [B, H, R, P], softmax rows (columns beyond P, which nothing marks, may be left out).
        marks: [B, 1 or H, 3, P] from `marks_of`; all zero for a sample that must not change.
    Returns:
        [B, H, R, P].
    """
    sunk, image, free = masses(weights, marks)
    take = gated(image, free, rho, gate).float() * p
    give = take * sunk / free.clamp(min=torch.finfo(free.dtype).tiny)
    factors = torch.stack([-take, give], dim=-1) @ marks[..., ::2, :]
    return weights * factors


def calibration(weights: Tensor, sinks: Tensor, *, beta: float) -> Tensor:
    """ACT: how the weights of each row change.

    Sinks keep the fraction beta; what they lose goes to all other columns in proportion to their weights.

    Args:
        weights: [B, H, R, T], whole softmax rows. sinks: bool [B, H, T].
    Returns:
        [B, H, R, T]; a row's changes add up to 0, and are 0 where a row sees sinks only.
    """
    column = sinks[:, :, None].to(weights.dtype)
    sunk = (weights * column).sum(dim=-1, keepdim=True)
    rest = (weights * (1 - column)).sum(dim=-1, keepdim=True)
    take = (1 - beta) * (rest > 0)
    gain = take * sunk / rest.clamp(min=torch.finfo(rest.dtype).tiny)
    return weights * torch.where(sinks[:, :, None], -take, gain)


def column_scores(sums: Tensor, seen: Tensor, *, rows: int) -> Tensor:
    """ACT: mean attention a column gets from the rows that see it; -1 where fewer than `rows` do.

    Without that floor the last columns, seen by one or two rows, would always look like sinks.

    Args:
        sums: [B, H, T], summed over rows. seen: [B, 1 or H, T], how many rows see each column.
    """
    return torch.where(seen >= rows, sums / seen.clamp(min=1), -1.0)


def weighted_values(changes: Tensor, value: Tensor) -> Tensor:
    """`changes @ V` in fp32: [B, H, R, P] and [B, G, >= P, D] -> [B, R, H, D], as kernels lay their output out."""
    batch, heads, rows, columns = changes.shape
    groups = value.shape[1]
    folded = changes.reshape(batch, groups, heads // groups * rows, columns)
    out = folded @ value[:, :, :columns].float()
    return out.reshape(batch, heads, rows, -1).transpose(1, 2)


def add_to_rows(output: Tensor, start: int, change: Tensor, heads: list[int] | None = None) -> None:
    """Add a change [B, R, H, D] in fp32 to rows start..start+R-1 of an output [B, S, H, D], in place."""
    rows = output[:, start : start + change.shape[1]]
    if heads is None:
        rows.copy_(rows + change)  # bf16 + fp32 is computed in fp32
    else:  # one by one: indexing with a list would copy it to the device
        for at, head in enumerate(heads):
            rows[:, :, head].copy_(rows[:, :, head] + change[:, :, at])


def own_copy(output: Tensor) -> Tensor:
    """An output that may be changed in place: the kernel's own, or a copy where a gradient may need it."""
    return output.clone() if torch.is_grad_enabled() and output.requires_grad else output
