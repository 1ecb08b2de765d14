"""The sink dimensions of a loaded model, found once and remembered as long as the model lives.

Shapes: B batch, S sequence, D width.
"""

import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..errors import VlmpruneError
from ..families import Family
from ..flow.sinks import check_dims, eligible_layers, spiking_dims, threshold
from ..hf.hooks import evaluating
from ..ops.gather import one_stream

MOST_TOKENS = 8  # different first tokens of a batch that are tried


@dataclass
class _Known:
    """What was found in a model with one tau: its dimensions, and the first tokens tried before there were any."""

    dims: tuple[int, ...] = ()
    tried: set[int] = field(default_factory=set)


_known: WeakKeyDictionary[Any, dict[float, _Known]] = WeakKeyDictionary()
_lock = threading.Lock()


class SinkDims:
    """The sink dimensions of one model whose visual tokens have a residual stream: given ones, or found ones.

    Args:
        tau: threshold on phi, None for the model's own. dims: given sink dimensions, None to find them.
    """

    def __init__(self, family: Family, model: Any, *, tau: float | None, dims: Any = None, what: str) -> None:
        refuse_cross_attention(family, what)
        self.text: Any = family.language_model(model)
        self.width: int = self.text.config.hidden_size
        check_dims(dims, self.width)
        self.tau = threshold(tau, self.width)
        self.visual_ids = set(family.visual_ids(model.config))
        self.given = tuple(dims) if dims is not None else None
        with _lock:
            self._known = _known.setdefault(self.text, {}).setdefault(self.tau, _Known())

    @property
    def dims(self) -> tuple[int, ...]:
        """Empty where none were found."""
        return self.given if self.given is not None else self._known.dims

    def find(self, ids: Tensor, valid: Tensor) -> None:
        """Look for them with the first tokens of a batch of prompts [B, S], unless they are known.

        A first token sees only itself, so one forward over the different first tokens, each a prompt of its own, shows
        how all prompts with them begin.
        """
        if self.dims or not eligible_layers(len(self.text.layers)):
            return
        known = self._known
        prompts = [row[real].tolist() for row, real in zip(ids.cpu(), valid.cpu(), strict=True)]
        # Visual tokens, which some families put in front, have no embedding.
        texts = [[token for token in prompt if token not in self.visual_ids] for prompt in prompts]
        firsts = list(dict.fromkeys(text[0] for text in texts if text))[:MOST_TOKENS]
        tokens = [one for one in firsts if one not in known.tried]
        if tokens:
            known.tried |= set(tokens)
            known.dims = spiking_dims(entering_states(self.text, tokens, ids.device), self.tau)


def refuse_cross_attention(family: Family, what: str) -> None:
    """Refuse a family whose visual tokens have no residual stream."""
    if family.cross_attention:
        raise VlmpruneError(
            f"{what} is not supported for {family.model_type!r}, whose visual tokens are keys of cross-attention "
            "layers; use a family whose language model takes visual tokens in."
        )


@torch.no_grad()
def entering_states(text_model: Any, tokens: list[int], device: torch.device) -> Tensor:
    """The residual stream of single-token prompts entering the eligible layers: [tokens, layers, D], on the CPU."""
    layers = eligible_layers(len(text_model.layers))
    states: dict[int, Tensor] = {}

    def record(layer: int, module: Any, args: Any) -> None:
        states[layer] = one_stream(args[0], len(tokens), 1)[:, 0].float().cpu()

    with ExitStack() as stack:
        stack.enter_context(evaluating(text_model))  # dropout hides, and takes the caller's random numbers
        for layer in layers:
            stack.enter_context(text_model.layers[layer].register_forward_pre_hook(partial(record, layer)))
        text_model(input_ids=torch.tensor(tokens, device=device)[:, None], use_cache=False)
    return torch.stack([states[layer] for layer in layers], dim=1)
