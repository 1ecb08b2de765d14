"""The generic adapter: every tested type pruned equals masked, over the prompt and steps, in a ragged batch."""

from __future__ import annotations

import pytest

import vlmprune
from tests.support.exactness import assert_exact
from tests.support.generic import TOKENS, build_generic, make_generic_inputs
from tests.support.grid import grid
from vlmprune.families.generic import TESTED

STEPS = 7
LAST = {"hy_v4_vl": 1}  # whose layers 2 and 3 attend to the keys that layer 1 has selected


@grid(model_type=TESTED, attn=["sdpa", "eager"], layer=[0, 1, 2])
def test_pruned_equals_masked(model_type, attn, layer):
    model, layer = build_generic(model_type, attn=attn), min(layer, LAST.get(model_type, layer))
    report = assert_exact(model, make_generic_inputs(model), vlmprune.Uniform(keep=0.4, layer=layer), layer)
    assert (report.kept_tokens, report.adapter) == ([4, 8], "generic")
    assert [[span.count for span in spans] for spans in report.images] == [[TOKENS], [TOKENS, TOKENS]]


@pytest.mark.parametrize("model_type", ["chameleon", "fuyu", "kimi_k25", "step3p7"])
def test_the_cache_is_as_large_as_reported(model_type):
    """Keys' heads that a config does not tell, latents instead of keys, heads and windows by layer."""
    model = build_generic(model_type)
    with vlmprune.wrap(model, vlmprune.Uniform(keep=0.4, layer=2)) as pruned:
        cache = model(**make_generic_inputs(model), use_cache=True).cache
    held = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert pruned.report.kv_bytes == held


def test_a_bound_is_not_made_of_logits_that_are_ruled_out():
    model = build_generic("chameleon")
    report = vlmprune.check(model, make_generic_inputs(model), layers=[1])
    assert report.ok and report.bound < 1e-3


def test_what_needs_places_says_so():
    model = build_generic("aya_vision")
    model.config.vision_config.image_size = 7  # no grid of nine patches
    with (
        vlmprune.wrap(model, vlmprune.Downsample(keep=0.4)),
        pytest.raises(vlmprune.VlmpruneError, match="Pooling needs to know where visual tokens lie in the image"),
    ):
        model(**make_generic_inputs(model))
