"""Attention statistics of the vision tower: what one of its layers says about every visual token.

Shapes: n images, N tokens of the tower (a class token included), V visual tokens of a sample, H heads, D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import VlmpruneError
from ..families import Family
from ..flow.locate import SampleLayout
from ..flow.prompt_state import VisionStats
from ..hf.per_thread import PerThread
from .probe import AttentionCall, clear_observers, observe


@dataclass
class _Seen:
    """Attention received and keys of each image that a thread's tower encoded; `used`: a prompt has taken them."""

    images: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    used: bool = True


class TowerReader:
    """Reads one attention module of the tower while it encodes, and deals the images out to the samples of a prompt.

    Args:
        method: what the class of the method that asks is called.
        as_one: read the tower's last layer, its H heads as one of width H D, instead of the layer that the model uses.
    Raises:
        VlmpruneError: a visual token of the family is more than one patch of its tower, or nothing is known of that.
    """

    def __init__(self, family: Family, model: Any, method: str, *, as_one: bool = False) -> None:
        self.module = family.tower_attention(model, last=as_one)
        if self.module is None:
            reason, remedy = f"each token of {family.model_type!r} comes from several patches or tiles", ""
            if family.adapter == "generic":
                reason = f"no adapter says from which of its layers those of {family.model_type!r} come"
                remedy = ", or register_family with its tower_layer"
            raise VlmpruneError(
                f"{method} reads the vision tower's attention for every visual token, but {reason}; use a method that "
                f"reads the language model, such as 'fastv' or 'divprune'{remedy}."
            )
        self.class_token, self.method, self.as_one = family.class_token(model), method, as_one
        self._seen = PerThread(_Seen)

    def begin(self) -> None:
        """The tower starts: images that were taken belong to an earlier prompt."""
        seen = self._seen.own
        if seen.used:
            seen.images, seen.used = [], False
        observe(self.module, self._see)

    def end(self) -> None:
        """The tower is done."""
        clear_observers([self.module])

    def _see(self, call: AttentionCall, output: Tensor) -> None:
        if self.as_one:
            query, key = (states.transpose(1, 2).flatten(2)[:, None] for states in (call.query, call.key))
            scaling = query.shape[-1] ** -0.5
            call = replace(call, query=query, key=key, options={**call.options, "scaling": scaling})
        self._seen.own.images += image_stats(call, self.class_token)

    def take(self, layouts: Sequence[SampleLayout], repeats: int) -> list[VisionStats]:
        """Statistics of every row's visual tokens; `repeats` rows (beams) stand for one prompt.

        Raises:
            VlmpruneError: the tower did not see these images.
        """
        prompts = layouts[::repeats]
        number = sum(len(layout.images) for layout in prompts)
        seen = self._seen.own
        seen.used = True
        if len(seen.images) < number:
            raise VlmpruneError(
                f"{self.method} reads the vision tower while it encodes, but the prompt's {number} images came as "
                "finished features; pass their pixel_values."
            )
        out, left = [], iter(seen.images[len(seen.images) - number :])
        for layout in prompts:
            # The tower's class token comes first and is no visual token, unless the model keeps it as one.
            parts = [[values[len(values) - span.count :] for values in next(left)] for span in layout.images]
            received, keys = map(torch.cat, zip(*parts, strict=True)) if parts else [torch.zeros(0)] * 2
            out += [VisionStats(received, keys)] * repeats
        return out


def image_stats(call: AttentionCall, class_token: bool) -> list[tuple[Tensor, Tensor]]:
    """Of every image of a tower's attention call, what its tokens receive [N] and their keys [N, D], means over heads.

    Args:
        class_token: whether it comes first; received is what it gives then, else what all tokens give.
    """
    images, _, tokens, _ = call.query.shape
    keys = call.key.detach().float().mean(dim=1)
    rows = torch.arange(1 if class_token else tokens).expand(images, -1)
    received = call.weights(rows, causal=False).mean(dim=(1, 2))
    return list(zip(received, keys, strict=True))
