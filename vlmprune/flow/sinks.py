"""Sinks: tokens that draw attention without carrying content, told by massive activations of the residual stream.

From Kang et al., "See What You Are Told: Visual Attention Sink in Large Multimodal Models" (ICLR 2025, arXiv
2503.03321), and for secondary sinks arXiv 2512.22213. Everything here is pure: tensors in, tensors and numbers out.

Shapes: B batch, S sequence, D width, L decoder layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import VlmpruneError

FIRST_LAYER = 2  # layers 0 and 1 have no sinks yet: they are made by the first MLPs
EPSILON = 1e-6
ALIKE = 0.9  # cosine to the primary sink from which a token counts as a sink
NOISE = 4  # lifetimes up to this many layers are no sinks


def eligible_layers(layers: int) -> range:
    """The decoder layers in which attention to sinks is changed, 2..L-2: the last one is left alone."""
    return range(FIRST_LAYER, layers - 1)


def default_tau(width: int) -> float:
    """The threshold on phi: the paper's 20 from a width of 2,048 on, below it 20 * sqrt(D / 4096).

    phi is at most sqrt(D), so a fixed 20 could never be reached by a narrow model; scaled, it is always the same
    fraction of a token's energy in one dimension (10 %).
    """
    return 20.0 if width >= 2048 else 20.0 * math.sqrt(width / 4096)


def threshold(tau: float | None, width: int) -> float:
    """`tau`, or the default one for this width; refused above sqrt(D), which phi cannot reach."""
    if tau is None:
        return default_tau(width)
    if tau > math.sqrt(width):
        raise VlmpruneError(
            f"tau={tau!r} is above sqrt({width}) = {math.sqrt(width):.2f}, the most that a token of this model can "
            f"reach; use a smaller one, or None for {default_tau(width):.2f}."
        )
    return tau


def check_tau(tau: float | None) -> None:
    """Refuse a tau that is no number above 0, whatever the model."""
    if tau is not None and (isinstance(tau, bool) or not isinstance(tau, int | float) or not 0 < tau < math.inf):
        raise VlmpruneError(f"tau must be a number above 0, or None for the model's own, got {tau!r}.")


def check_dims(dims: Sequence[int] | None, width: int | None = None) -> None:
    """Refuse sink dimensions that are no list of whole numbers, or go beyond the model's width where it is known."""
    if dims is None:
        return
    whole = isinstance(dims, list | tuple) and all(isinstance(d, int) and not isinstance(d, bool) for d in dims)
    if not whole or not dims or min(dims) < 0:
        raise VlmpruneError(f"sink_dims must be a list of whole numbers from 0, or None to find them, got {dims!r}.")
    if width is not None and max(dims) >= width:
        raise VlmpruneError(
            f"sink_dims={tuple(dims)!r} go beyond the model's width of {width}; use numbers from 0 to {width - 1}, or "
            "None to find them."
        )


def rms(hidden: Tensor) -> Tensor:
    """Root mean square of [..., D] over the width, in fp32: [...]."""
    norm = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32)  # no fp32 copy of the hidden states
    return torch.sqrt(norm.square() / hidden.shape[-1] + EPSILON)


def phi(hidden: Tensor, dims: Sequence[int]) -> Tensor:
    """How far a token sticks out in the sink dimensions: max over `dims` of |x[d] / RMS(x)|, in fp32.

    Args:
        hidden: [..., D], the residual stream entering a layer. dims: the model's sink dimensions, at least one.
    Returns:
        [...], at most sqrt(D).
    """
    # Indexing with a list would copy it to the device, and wait for it there.
    return torch.stack([hidden[..., dim] for dim in dims]).float().abs().amax(dim=0) / rms(hidden)


def spiking_dims(states: Tensor, tau: float) -> tuple[int, ...]:
    """The sink dimensions of a model: those where first tokens reach `tau` in at least half of the layers.

    Args:
        states: [prompts, layers, D], the residual stream of first tokens entering layers 2..L-2.
    Returns:
        Ascending; empty where no dimension sticks out.
    """
    reached = (states.float().abs() / rms(states)[..., None] >= tau).float().mean(dim=(0, 1))
    return tuple((reached >= 0.5).nonzero()[:, 0].tolist())


@dataclass(frozen=True)
class Separation:
    """How phi is spread over tokens and layers: `bulk` below tau / 2, `between`, and `sinks` from tau on.

    Massive activations are bimodal: almost nothing lies between. `bimodal` asks for fewer tokens between than a tenth
    of the sinks; where it is False, the threshold cuts through one cloud and "sinks" are only its upper end.
    """

    bulk: int
    between: int
    sinks: int

    @property
    def bimodal(self) -> bool:
        return self.sinks > 0 and self.between <= self.sinks / 10


def separation(values: Tensor, tau: float) -> Separation:
    """The spread of phi values of any shape around the threshold."""
    sinks, low = torch.stack([(values >= tau).sum(), (values < tau / 2).sum()]).tolist()
    return Separation(low, values.numel() - sinks - low, sinks)


@dataclass(frozen=True)
class ActiveWindow:
    """Layers `first`..`last` entered by a primary sink's massive norm: from its largest rise to its largest drop."""

    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1


def active_window(norms: Tensor) -> ActiveWindow:
    """The window of a primary sink's norms [L + 1], entering layers 0..L-1 and leaving the last.

    The largest rise from one to the next opens it; the largest drop after that closes it, or the last layer where the
    norm never falls again.
    """
    steps = torch.diff(norms.float())
    first = int(steps[:-1].argmax()) + 1 if len(steps) > 1 else 0
    after = steps[first:]
    last = first + int(after.argmin()) if len(after) and bool(after.min() < 0) else len(norms) - 2
    return ActiveWindow(first, max(first, last))


@dataclass(frozen=True)
class SecondarySink:
    """A later token that points where the primary sink points.

    `position`: in the prompt. `created`: the first layer of the window entered alike. `lifetime`: how many layers.
    `kind`: "primary-like" (nearly the whole window), "secondary" (5 layers up to there) or "noise" (at most 4).
    """

    position: int
    created: int
    lifetime: int
    kind: str


def secondary_sinks(cosines: Tensor, primary: int, window: ActiveWindow) -> list[SecondarySink]:
    """The later tokens with |cos| > 0.9 to the primary sink in some layer of its window.

    Args:
        cosines: [L, S], of every token's residual stream entering a layer with the primary's. primary: its position.
    """
    inside = cosines[window.first : window.last + 1].abs() > ALIKE
    found = []
    for position in (inside.any(dim=0) & (torch.arange(cosines.shape[1]) > primary)).nonzero()[:, 0].tolist():
        lifetime = int(inside[:, position].sum())
        created = window.first + int(inside[:, position].int().argmax())
        if lifetime >= max(1, round(ALIKE * window.length)) and window.length > NOISE:
            kind = "primary-like"
        else:
            kind = "secondary" if lifetime > NOISE else "noise"
        found.append(SecondarySink(position, created, lifetime, kind))
    return found
