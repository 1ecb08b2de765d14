"""Cuts of models without a declared adapter: shared keys, latent attention, recurrences, chunks, several streams."""

from __future__ import annotations

import pytest
import torch

import vlmprune

pytest.importorskip("transformers.models.cohere_compass", reason="the tiny models of all types want them all")
# isort: split
from tests.support.cache_twin import cut_forced_logits, kept_sets
from tests.support.generic import build_generic, make_generic_inputs
from tests.support.grid import either, grid
from tests.support.masked_generate import forced_logits
from vlmprune.families.generic import decoder_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

METHODS = {
    "snapkv": vlmprune.SnapKV(0.4, window=3, pool=3),
    "vl-cache": vlmprune.VLCache(0.4, budgets="attention"),
    "kv-window": vlmprune.WindowKV(0.5, "all"),
}
WAYS = (("snapkv", "sdpa"), ("vl-cache", "eager"), ("kv-window", "sdpa"))
EVERY = sorted(name for name, adapter in vlmprune.list_families().items() if adapter == "generic")


def refusal(model, method, inputs, tokens) -> str | None:
    """Why a model cannot be cut; None where it can."""
    try:
        with vlmprune.wrap(model, method):
            forced_logits(model, dict(inputs), tokens[:, :1])
    except vlmprune.VlmpruneError as error:
        return str(error)
    return None


@grid(name=either(("gemma4",), EVERY), way=either((WAYS[0],), WAYS))
def test_a_cut_cache_is_the_twin(name, way):
    method, attn = way
    model = build_generic(name, attn=attn)
    inputs = make_generic_inputs(model)
    tokens = torch.randint(10, 99, (len(inputs["input_ids"]), 5), generator=torch.Generator().manual_seed(1))
    plain = forced_logits(model, dict(inputs), tokens)
    if (refused := refusal(model, METHODS[method], inputs, tokens)) is not None:
        assert any(
            said in refused for said in ("acts on caches that grow", "whose indexer selects keys by their place")
        )
        return
    with vlmprune.wrap(model, METHODS[method]) as pruned:
        found = forced_logits(model, dict(inputs), tokens)
        report = pruned.report
    layers, kept = decoder_of(model).layers, kept_sets(report.cache.kept)
    masked = cut_forced_logits(model, layers, inputs, kept, tokens)
    said = masked > -1e30
    bound = 1e-5 * max(1.0, float(masked[said].std()))
    assert float((found - masked)[said].abs().max()) <= bound
    if any(layer is not None for layer in kept):
        assert float((found - plain)[said].abs().max()) > 100 * bound
    assert torch.equal(forced_logits(model, dict(inputs), tokens), plain)
