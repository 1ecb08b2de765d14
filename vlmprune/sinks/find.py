"""`find_sinks`: one forward of a model, read layer by layer, gives the sinks of a prompt.

Shapes: B batch, S sequence, V visual tokens of a sample, H heads, L layers, D width.
"""

import inspect
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..api import unwrap_peft
from ..attention.editor import KeyColumns, check_readable, columns_of
from ..attention.observer import AttentionObserver
from ..attention.probe import AttentionCall
from ..attention.sink_dims import SinkDims
from ..errors import VlmpruneError, checked, nearest
from ..families import Family, family_of
from ..flow.prompt_state import PromptState
from ..flow.sinks import FIRST_LAYER, active_window, phi, secondary_sinks
from ..hf.arguments import has_visuals
from ..hf.hooks import evaluating
from ..methods.none import Unpruned
from ..methods.var import VAR
from ..ops.attention_rows import row_chunks
from ..ops.correction import gated, marks_of, masses
from ..ops.gather import one_stream
from ..runtime.call_lock import attached
from ..runtime.session import Session
from .report import SinkReport
from .sample import SampleSinks


@checked
def find_sinks(
    model: Any,
    *,
    tau: float | None = None,
    sink_dims: Sequence[int] | None = None,
    rho: float = 0.5,
    gate: float = 0.2,
    **inputs: Any,
) -> SinkReport:
    """Where the attention sinks of a prompt are, in every layer.

    Args:
        model: a loaded model of a supported family; a wrapped one is read as if it were unwrapped.
        tau: as in `VAR`.
        sink_dims: as in `VAR`.
        rho: as in `VAR`.
        gate: as in `VAR`; the gates are those that VAR would open.
        inputs: what the processor returns, with an image.
    Raises:
        UnsupportedModelError: not a vision-language model.
        VlmpruneError: no image tokens in the prompt, or an option out of range.
    """
    var = VAR(tau=tau, sink_dims=sink_dims, rho=rho, gate=gate)
    plain = unwrap_peft(model)
    family = family_of(plain)
    reader = SinkReader(family, plain, var)
    family.check_video(inputs)
    for name, value in inputs.items():
        # What else a processor returns is ignored, as the model ignores it.
        if isinstance(value, int | float | str) and name not in inspect.signature(plain.forward).parameters:
            known = ("tau", "sink_dims", "rho", "gate")
            raise VlmpruneError(f"find_sinks() has no option {name!r}; {nearest(name, known)}")
    ids = inputs.get("input_ids")
    visual = torch.tensor(family.visual_ids(plain.config))
    if not isinstance(ids, Tensor) or not has_visuals(inputs) or not bool(torch.isin(ids.cpu(), visual).any()):
        raise VlmpruneError(
            "The prompt has no image or no image tokens, so there are no visual sinks to find; pass what the "
            "processor returns for an image and a question."
        )
    with attached(Session(plain, family, Unpruned(), [reader])), evaluating(plain), torch.no_grad():
        plain(**{**inputs, "use_cache": False})
    return reader.report()


class SinkReader(AttentionObserver):
    """Reads the residual stream before every layer and after the last, and the suffix rows' attention in each that
    attends."""

    def __init__(self, family: Family, model: Any, var: VAR) -> None:
        self.sinks = SinkDims(family, model, tau=var.tau, dims=var.sink_dims, what="find_sinks")
        self.var, self.text = var, self.sinks.text

    def begin(self, ids: Tensor | None, valid: Tensor | None) -> None:
        assert ids is not None and valid is not None, "find_sinks checks its inputs"
        self.sinks.find(ids, valid)

    def prompt(self, state: PromptState) -> None:
        self.state = state
        self.columns: KeyColumns = columns_of(state)
        # The primary sink is the first token; where that is a patch, the first text token may be it instead.
        real, text = self.columns.real, self.columns.real & ~self.columns.visual
        self.firsts = torch.stack([real.int().argmax(dim=1), text.int().argmax(dim=1)], dim=1)
        self.read: dict[str, list[Tensor]] = defaultdict(list)  # layer by layer
        self.attended: dict[int, Tensor] = {}  # of the layers that attend
        self._last = self.text.layers[-1].register_forward_hook(self._leave)

    def _leave(self, module: Any, args: Any, output: Any) -> None:
        self._last.remove()
        hidden = output[0] if isinstance(output, tuple) else output
        self.read["norms"].append(_norms(one_stream(hidden, *self.columns.real.shape)))

    def before_layer(self, layer: int, hidden: Tensor) -> None:
        lengths = _norms(hidden)
        first = hidden[torch.arange(len(hidden))[:, None], self.firsts].float()  # [B, 2, D]
        pairs = torch.einsum("bsd,bfd->bfs", hidden.float(), first)
        sizes = torch.gather(lengths, 1, self.firsts)[:, :, None] * lengths[:, None]
        self.read["norms"].append(lengths)
        self.read["cosines"].append(pairs.cpu() / sizes.clamp(min=1e-12))
        # Without sink dimensions the maximum over all is reported: how far the model is from having any.
        self.read["phi"].append(phi(hidden, self.sinks.dims or range(hidden.shape[-1])).cpu())

    def attention(self, layer: int, call: AttentionCall, output: Tensor) -> None:
        """Sums over the suffix rows of each sample: attention to the image, to its sinks, and gates passed [B, H]."""
        check_readable(call, "find_sinks")
        device = output.device
        sinks = self._sinks(layer)
        touched = (sinks & self.columns.visual).any(dim=1)
        marks = marks_of(sinks, self.columns.visual).to(device)
        suffix_rows = self.columns.suffix_rows.to(device)
        totals = torch.zeros(3, *call.query.shape[:2], device=device)
        first = suffix_rows.shape[1] - self.columns.rows.shape[1]  # of any sample
        for _, rows in row_chunks(call.query, call.key, first):
            weights = call.weights(rows).masked_fill(~suffix_rows[:, None, rows[0], None], 0.0)
            _, image, free = masses(weights, marks)
            passed = gated(image, free, self.var.rho, self.var.gate) & touched.to(device)[:, None, None]
            totals += torch.stack([image.sum(-1), (image - free).sum(-1), passed.float().sum(-1)])
        self.attended[layer] = totals.cpu()

    def _sinks(self, layer: int) -> Tensor:
        """bool [B, S]; none before layer 2."""
        if layer < FIRST_LAYER or not self.sinks.dims:
            return torch.zeros_like(self.columns.real)
        return (self.read["phi"][layer] >= self.sinks.tau) & self.columns.real

    def report(self) -> SinkReport:
        """What was read, sample by sample, padding left out."""
        found = {name: torch.stack(layers) for name, layers in self.read.items()}
        none = torch.zeros_like(next(iter(self.attended.values())))
        found["attention"] = torch.stack([self.attended.get(layer, none) for layer in range(len(found["phi"]))])
        found["sinks"] = torch.stack([self._sinks(layer) for layer in range(len(found["phi"]))])
        samples = [self._sample(b, found) for b in range(len(self.columns.real))]
        return SinkReport(self.sinks.dims, self.sinks.tau, samples)

    def _sample(self, b: int, found: dict[str, Tensor]) -> SampleSinks:
        real, layout = self.columns.real[b], self.state.layouts[b]
        norms = found["norms"][:, b, real]
        places = real.cumsum(dim=0) - 1  # from a position in the padded row to one in the prompt
        firsts = places[self.firsts[b]].tolist()
        which = int(norms[:, firsts].mean(dim=0).argmax())
        window = active_window(norms[:, firsts[which]])
        cosines = found["cosines"][:, b, which][:, real]
        rows = max(1, int(self.columns.suffix_rows[b].sum()))
        image, sunk, passing = found["attention"][:, :, b].unbind(dim=1)
        return SampleSinks(
            phi=found["phi"][:, b, real],
            visual=places[layout.slots],
            images=list(layout.images),
            sinks=found["sinks"][:, b, real],
            norms=norms[:, firsts[which]],
            primary=firsts[which],
            window=window,
            secondary=secondary_sinks(cosines, firsts[which], window),
            cosines=cosines,
            image_attention=image / rows,
            sink_share=sunk / image.clamp(min=1e-12),
            gated=passing / rows,
        )


def _norms(hidden: Tensor) -> Tensor:
    """[B, S, D] -> [B, S] on the CPU, in fp32."""
    return torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32).cpu()
