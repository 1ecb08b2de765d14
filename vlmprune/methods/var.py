"""VAR, Visual Attention Redistribution (Kang et al., ICLR 2025, arXiv 2503.03321, section 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..attention.editor import AttentionEditor, KeyColumns, check_readable
from ..attention.probe import AttentionCall
from ..attention.sink_dims import SinkDims
from ..errors import VlmpruneError
from ..flow.compact import Compaction
from ..flow.prompt_state import PromptState
from ..flow.sinks import check_dims, check_tau, phi, separation
from ..hf.arguments import host_copies
from ..ops.correction import marks_of, own_copy, redistribution, weighted_values
from .base import Intervention
from .declared import number

if TYPE_CHECKING:
    from ..attention.observer import AttentionObserver
    from ..families import Family


@dataclass(frozen=True)
class VAR(Intervention):
    """Moves attention from sinks to the other visual tokens, in the heads that look at the image.

    In layers 2..L-2, for text rows after the sample's last visual token and for every decoded row. A sink is a token
    whose residual stream entering the layer has phi = max over sink dimensions of |x[d] / RMS(x)| >= tau; sinks are
    decided when the prompt runs. No attention map is made: the fused kernel's output is corrected in those rows, or on
    a CPU, where a step's row changes, computed instead.

    Departures from the official code: p and rho are the paper's (see below); sinks are each prompt's own, where that
    code keeps the first prompt's; the last layer is left alone, which that code intends; sink dimensions are found
    instead of looked up by the model's name.

    When: answers seem to ignore the image or name what is not in it, and a comparison on your questions says that it
    helps. It saves nothing.

    Args:
        p: fraction of every sink's weight that is moved, visual and text sinks alike. The paper's p; the released code
            names what sinks *keep*, and its 0.6 is p = 0.4 here.
        rho: least fraction of a row's attention to the image that is not on sinks. The paper's rho (0.8 in general, 0.5
            against hallucination, 0.9 for vision-centric tasks); the released code's is 1 - rho.
        tau: threshold on phi; None is 20, for widths below 2,048 scaled to 20 * sqrt(D / 4096).
        gate: least attention of a row to the image.
        sink_dims: the model's sink dimensions; None finds them with the first prompt.
    Raises:
        VlmpruneError: an option out of range.
    """

    name: ClassVar[str] = "var"
    p: float = field(default=0.4, metadata=number(float, 0, 1))
    rho: float = field(default=0.5, metadata=number(float, 0, 1))
    tau: float | None = None
    gate: float = field(default=0.2, metadata=number(float, 0, 1))
    sink_dims: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tau(self.tau)
        check_dims(self.sink_dims)

    def observer(self, family: Family, model: Any) -> AttentionObserver:
        return VarEditor(self, family, model)


class VarEditor(AttentionEditor):
    """VAR on one model. Its sink masks are the sinks and the visual tokens of a layer: bool [B, 2, P]; [B, H, 2, P]
    where the cache was cut head by head."""

    def __init__(self, method: VAR, family: Family, model: Any) -> None:
        self.method = method
        self.sinks = SinkDims(family, model, tau=method.tau, dims=method.sink_dims, what="VAR")
        super().__init__("var", family, self.sinks.text)
        self._phi: list[Tensor] = []

    def begin(self, ids: Tensor | None, valid: Tensor | None) -> None:
        if ids is None or valid is None:
            raise VlmpruneError(
                "The prompt came as inputs_embeds without input_ids, so VAR cannot find its visual tokens; pass "
                "input_ids with the image."
            )
        self.sinks.find(ids, valid)

    def prompt(self, state: PromptState) -> None:
        super().prompt(state)
        self._phi = []

    def enter_prompt(self, layer: int, hidden: Tensor, columns: KeyColumns) -> None:
        if not self.sinks.dims or not any(layout.count for layout in self.state.layouts):  # type: ignore[union-attr]  # a prompt is on
            return
        values = phi(hidden.detach(), self.sinks.dims)
        self._phi.append(values.masked_fill(~columns.real, 0.0).flatten())
        sinks = (values >= self.sinks.tau) & columns.real
        touched = (sinks & columns.visual).any(dim=1)  # a sample without a visual sink selects no head here
        # Asking a GPU would wait for it in every layer; without a visual sink the mask changes nothing.
        if touched.device.type != "cpu" or bool(touched.any()):
            self.sink_masks[layer] = torch.stack([sinks, columns.visual], dim=1) & touched[:, None, None]

    def edit(
        self, layer: int, call: AttentionCall, output: Tensor, sink_mask: Tensor, columns: KeyColumns | None
    ) -> Tensor:
        every = torch.arange(output.shape[1], device=output.device).expand(len(output), -1)
        sinks, visual = sink_mask.unbind(-2)
        rows, var = columns.rows if columns is not None else every, self.method
        return call.redistribute(own_copy(output), rows, sinks, visual, p=var.p, rho=var.rho, gate=var.gate)

    def step(self, layer: int, call: AttentionCall, kernel: Callable[[], Tensor]) -> Tensor | None:
        # The kernel of a single row is as fast as keys and values are read: a correction after it costs as much again.
        # But asking a GPU whether anything changes would wait for it, and gradients are the kernel's business.
        direct = call.query.device.type == "cpu" and not torch.is_grad_enabled()
        if self.state is not None or layer not in self.sink_masks or not direct:
            return None
        check_readable(call, self.name)
        sinks, visual = self.step_mask(layer, call.query).unbind(-2)
        weights, var = call.weights(torch.zeros(len(call.query), 1, dtype=torch.long)), self.method
        marks = marks_of(sinks, visual)
        changes = redistribution(weights[..., : sinks.shape[-1]], marks, p=var.p, rho=var.rho, gate=var.gate)
        changed = changes.flatten(1).any(dim=1)
        if bool(changed.all()):
            weights[..., : sinks.shape[-1]] += changes
            return weighted_values(weights, call.value).to(call.query.dtype)
        out = kernel()  # samples without a change stay as it writes them
        return (out + weighted_values(changes, call.value)).to(out.dtype) if bool(changed.any()) else out

    def gathered(self, layer: int, sink_mask: Tensor, chosen: Compaction, group: int) -> Tensor:
        index, real = chosen.index.to(sink_mask.device)[..., None, :], chosen.real.to(sink_mask.device)[..., None, :]
        if index.dim() == 4:
            index, real = (part.repeat_interleave(group, dim=1) for part in (index, real))
            sink_mask = sink_mask[:, None].expand(-1, index.shape[1], -1, -1)
        return sink_mask.gather(-1, index.expand(*sink_mask.shape[:-1], -1)) & real

    def notes(self) -> list[str]:
        if self.state is None or not any(layout.count for layout in self.state.layouts):
            return ["VAR: no image in the prompt, so nothing was changed"]
        if not self.sinks.dims:
            return [f"VAR: no sink dimensions found (none reaches tau {self.sinks.tau:.2f}), so nothing was changed"]
        device = self._phi[0].device  # layers of a sharded model lie on several
        spread = separation(torch.cat([layer.to(device) for layer in self._phi]), self.sinks.tau)
        dims = ", ".join(map(str, self.sinks.dims))
        sunk = host_copies([sink_mask.any() for sink_mask in self.sink_masks.values()])
        layers = ranges([layer for layer, some in zip(self.sink_masks, sunk, strict=True) if some])
        lines = [f"VAR: sink dimensions {dims}; visual sinks in layers {layers or 'none'}"]
        if spread.sinks and not spread.bimodal:
            lines.append(
                f"VAR: sinks do not stand out, {spread.between} tokens lie between tau / 2 and tau beside "
                f"{spread.sinks} above"
            )
        return lines


def ranges(numbers: Any, to: str = "-") -> str:
    """Whole numbers in ascending order, runs shortened: `2-4, 6`."""
    runs: list[list[int]] = []
    for one in sorted(numbers):
        if runs and one == runs[-1][1] + 1:
            runs[-1][1] = one
        else:
            runs.append([one, one])
    return ", ".join(str(a) if a == b else f"{a}{to}{b}" for a, b in runs)
