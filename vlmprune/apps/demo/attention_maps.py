"""Attention of the last prompt token to the image in every decoder layer of the large model.

Shapes: B batch, S sequence, V visual tokens of a sample, H heads, T keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...api import unwrap_peft
from ...attention.observer import AttentionObserver
from ...attention.probe import AttentionCall
from ...families import family_of
from ...flow.locate import last_valid
from ...flow.prompt_state import PromptState
from ...flow.score import visual_columns
from ...hf.arguments import to_device
from ...methods.none import Unpruned
from ...runtime.call_lock import attached
from ...runtime.session import Session


class AttentionRecorder(AttentionObserver):
    """Keeps, by layer, the attention of the last prompt token to each visual token, mean over heads: [V]."""

    def __init__(self, *, causal: bool) -> None:
        self.causal = causal
        self.found: dict[int, Tensor] = {}

    def prompt(self, state: PromptState) -> None:
        self.state = state

    def attention(self, layer: int, call: AttentionCall, output: Tensor) -> None:
        rows = last_valid(self.state.valid).to(call.query.device)[:, None]
        received = call.weights(rows, causal=self.causal).mean(dim=1)[:, 0]
        self.found[layer] = visual_columns(received, self.state.layouts)[0].cpu()


def attention_maps(model: Any, inputs: Any) -> dict[int, Tensor]:
    """By decoder layer that sees the image: attention of the last prompt token to the visual tokens [V].

    FastV ranks by one of these layers. A wrapped model is read as if it were not wrapped.
    """
    plain = unwrap_peft(model)
    family = family_of(plain)
    recorder = AttentionRecorder(causal=not family.cross_attention)
    with attached(Session(plain, family, Unpruned(), [recorder])), torch.no_grad():
        plain(**to_device(plain, dict(inputs)), use_cache=False, logits_to_keep=1)
    return recorder.found
