"""Pruned against masked by `generate`, in one sentence for every type of the generic adapter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import vlmprune
from vlmprune.families.generic import decoder_of

from .generic import IMAGE
from .masked_generate import dropped_of, forced_logits, masked_forced_logits


def assert_exact(model: Any, inputs: dict[str, Tensor], method: Any, layer: int, steps: int = 7) -> vlmprune.Report:
    """Logits of a prompt and forced tokens are the masked model's, far from the plain one's, and nothing is left on the
    model; returns the report."""
    tokens = torch.randint(10, 99, (len(inputs["input_ids"]), steps), generator=torch.Generator().manual_seed(1))
    plain = forced_logits(model, dict(inputs), tokens)
    with vlmprune.wrap(model, method) as pruned:
        found = forced_logits(model, dict(inputs), tokens)
        report = pruned.report
    dropped = dropped_of(inputs["input_ids"] == IMAGE, report.kept)
    masked = masked_forced_logits(model, decoder_of(model).layers, dict(inputs), dropped, layer, tokens)
    said = masked > -1e30  # Chameleon's image tokens are ruled out
    bound = 1e-5 * max(1.0, float(masked[said].std()))
    assert float((found - masked)[said].abs().max()) <= bound
    assert float((found - plain)[said].abs().max()) > 100 * bound
    assert torch.equal(forced_logits(model, dict(inputs), tokens), plain)
    return report
