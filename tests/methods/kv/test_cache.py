"""What is left on the cache: bytes that are really free, buffers instead of copies, and what cannot be cut refused."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import DynamicCache, cache_utils
from transformers.cache_utils import DynamicLayer

import vlmprune
from tests.methods.kv.test_exact import METHODS, batch
from tests.support.cache_twin import cut_logits, kept_sets
from tests.support.grid import either, grid, only_full
from tests.support.planted import Planted
from tests.support.running import assert_near, generate, outside, plan_of, reference, shared
from tests.support.tiny_families import build, make_inputs, row
from vlmprune import VlmpruneError
from vlmprune.hf.buffered_layer import FIRST_ROOM, BufferedLayer
from vlmprune.hf.compatibility import CACHE

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def storage(cache) -> int:
    return sum(one.untyped_storage().nbytes() for layer in cache.layers for one in (layer.keys, layer.values))


@grid(family=either(("llava",), ("llava", "qwen3_vl")), method=either(("snapkv",), ("snapkv", "vl-cache-prefix-all")))
def test_the_bytes_are_really_free(family, method):
    """Counted from shapes, reported, and held by the storages: one number, after the prompt and after each step."""
    model = shared(family)
    inputs = batch(model)
    with vlmprune.wrap(model, replace(METHODS[method], buffer=False)) as pruned:
        cache = model(**inputs, use_cache=True)["past_key_values"]
        report = pruned.report
        assert storage(cache) == report.cache.bytes_prefill == report.kv_bytes < report.kv_bytes_full
        assert report.cache.saves == ["memory of the cache", "attention in each step"]
        _, out = generate(model, inputs, 5)
        end = pruned.report.cache
        entry = storage(cache) // sum(end.lengths)
        assert end.bytes_end == storage(out.past_key_values) == end.bytes_prefill + 4 * len(end.lengths) * entry
        assert end.attended == [length + 4 for length in end.lengths]
        assert end.steps == [[length + at for length in end.lengths] for at in range(1, 5)]
        assert f"{end.bytes_prefill / 1e6:.3f} after the prompt" in str(pruned.report)
        assert json.loads(json.dumps(pruned.report.to_dict()))["cache"]["lengths"] == end.lengths


def test_a_layer_is_cut_before_the_next_one_runs():
    """At no time do two layers hold more than their budget."""
    model, lengths = build("llava"), []
    inputs = row(batch(model), 1)
    layers = model.model.language_model.layers
    with vlmprune.wrap(model, vlmprune.SnapKV(2, window=2)):
        cache = DynamicCache()
        for layer in layers:
            layer.register_forward_pre_hook(
                lambda *_: lengths.append([0 if one.keys is None else one.keys.shape[2] for one in cache.layers])
            )
        with torch.no_grad():
            model(**inputs, **{CACHE: cache})
    left = inputs["input_ids"].shape[1] - 7  # of nine visual tokens two stay
    assert [seen[:i] for i, seen in enumerate(lengths)] == [[left] * i for i in range(4)]


@grid(
    family=either(("gemma3",), ("llava", "qwen2_5_vl", "gemma3", "paligemma")),
    attn=either(("sdpa",), ("sdpa", "eager")),
)
def test_a_buffer_changes_no_logit(family, attn):
    """Beyond its first room too; beside a pruner and after a cut."""
    model = shared(family, attn)
    inputs = batch(model)
    steps = FIRST_ROOM + 6 if family == "llava" else 4
    plain, _ = generate(model, inputs, steps)
    with vlmprune.wrap(model, vlmprune.Buffer()) as pruned:
        logits, out = generate(model, inputs, steps)
        kinds = {type(layer) for layer in out.past_key_values.layers}
        assert BufferedLayer in kinds
        assert pruned.report.cache.saves == ["the copy of the cache in each step"]
    assert_near(logits, plain)
    plan = plan_of(model, inputs, "ragged")
    with vlmprune.wrap(model, [Planted(plan=plan, layer=1), vlmprune.Buffer()]):
        logits, out = generate(model, inputs, 4)
    assert_near(logits, reference(model, inputs, plan, 1, 4, out.sequences[:, -4:]))


def test_a_step_writes_into_the_buffer():
    """The same storage from step to step, with room that doubles only when it is full."""
    plain, rooms, places = DynamicLayer(), [], set()
    prompt = torch.randn(2, 3, 10, 4)
    plain.update(prompt, -prompt)
    layer = BufferedLayer.of(copy.deepcopy(plain))
    for _ in range(5 * FIRST_ROOM):
        step = torch.randn(2, 3, 1, 4)
        for made, wanted in zip(layer.update(step, -step), plain.update(step, -step), strict=True):
            assert torch.equal(made, wanted)
        rooms.append(layer.buffers[0].shape[2] - layer.keys.shape[2])
        places.add(layer.keys.data_ptr())
    assert len(places) == 3
    assert rooms[0] == FIRST_ROOM - 1
    assert rooms[FIRST_ROOM] == 2 * FIRST_ROOM - 1
    assert rooms[3 * FIRST_ROOM] == 4 * FIRST_ROOM - 1


def test_buffers_of_inference_mode_are_not_written_outside_of_it():
    with torch.inference_mode():
        layer = BufferedLayer()
        for length in (10, 1):
            layer.update(torch.ones(2, 3, length, 4), torch.ones(2, 3, length, 4))
    keys, _ = layer.update(torch.zeros(2, 3, 1, 4), torch.zeros(2, 3, 1, 4))
    assert keys.sum(dim=-2).tolist() == torch.full((2, 3, 4), 11.0).tolist()
    layer.reorder_cache(torch.tensor([1, 0]))


def test_a_cache_that_the_caller_passed_is_left_as_it_is():
    model = shared("llava")
    inputs = batch(model)
    for buffer, wanted in ((None, False), (True, True), (False, False)):
        cache = DynamicCache()
        with vlmprune.wrap(model, vlmprune.SnapKV(0.4, window=3, buffer=buffer)):
            generate(model, inputs, 3, **{CACHE: cache})
        assert any(isinstance(layer, BufferedLayer) for layer in cache.layers) is wanted


@only_full
def test_a_buffer_lives_through_copies_beams_and_cropping():
    model = shared("llava")
    inputs = batch(model)
    plain = model.generate(**inputs, num_beams=3, max_new_tokens=8, do_sample=False)
    one = row(inputs, 0)
    drafted, _ = generate(model, one, 8, prompt_lookup_num_tokens=3)
    with vlmprune.wrap(model, vlmprune.Buffer()), torch.no_grad():
        assert torch.equal(model.generate(**inputs, num_beams=3, max_new_tokens=8, do_sample=False), plain)
        assert_near(generate(model, one, 8, prompt_lookup_num_tokens=3)[0], drafted)
        cache = model(**one)["past_key_values"]
    step = {"input_ids": torch.tensor([[20]])}
    with torch.no_grad():
        model(**step, **{CACHE: cache})
        twins = [copy.deepcopy(cache), pickle.loads(pickle.dumps(cache)), cache]
        found = [model(**step, **{CACHE: each}).logits for each in twins]
        assert torch.equal(found[0], found[2])
        assert torch.equal(found[1], found[2])
        cache.crop(-1)
        assert torch.equal(model(**step, **{CACHE: cache}).logits, found[2])
        cache.batch_repeat_interleave(2)
        cache.crop(-1)
        twice = model(input_ids=torch.tensor([[20], [20]]), **{CACHE: cache}).logits
        assert_near(twice[1], found[2][0])
    layer, stock = cache.layers[0], DynamicLayer()
    stock.update(layer.keys, layer.values)
    for one in (layer, stock):
        one.reset()
    assert layer.get_seq_length() == stock.get_seq_length()


@only_full
def test_a_step_with_a_gradient_copies():
    model = shared("llava")
    inputs = batch(model)
    with vlmprune.wrap(model, vlmprune.Buffer()):
        cache = model(**inputs)["past_key_values"]
        out = model(input_ids=torch.tensor([[20], [21]]), **{CACHE: cache})
        out = model(input_ids=torch.tensor([[22], [23]]), **{CACHE: out["past_key_values"]})
        out.logits.sum().backward()
    assert model.lm_head.weight.grad is not None
    model.zero_grad(set_to_none=True)


@only_full
def test_without_a_cache_the_report_says_so():
    model = shared("llava")
    inputs = batch(model)
    with vlmprune.wrap(model, METHODS["snapkv"]) as pruned:
        generate(model, inputs, 2, use_cache=False)
    assert pruned.report.cache is None
    assert any("without a cache" in note for note in pruned.report.notes)


@only_full
def test_sliding_layers_keep_their_window():
    model = shared("gemma3")
    with vlmprune.wrap(model, METHODS["snapkv"]) as pruned:
        generate(model, batch(model), 2)
    assert pruned.report.cache.uncut == [0, 2]
    assert any("layers 0, 2 keep all they hold" in note for note in pruned.report.notes)


@pytest.mark.parametrize("implementation", ["static", "offloaded", "quantized"])
def test_caches_that_cannot_be_cut_are_refused(implementation):
    if implementation == "offloaded" and not torch.cuda.is_available():
        pytest.skip("an offloaded cache needs streams of a GPU")
    options = {}
    if implementation == "quantized":
        if not hasattr(cache_utils, "Fp8QuantizedLayer"):
            pytest.skip("this transformers quantises by other packages only")
        options = {"cache_config": {"backend": "fp8"}}
    model = shared("llava")
    options |= {"cache_implementation": implementation, "disable_compile": True}
    with vlmprune.wrap(model, METHODS["snapkv"]), pytest.raises(VlmpruneError, match="cannot cut") as raised:
        model.generate(**batch(model), max_new_tokens=2, **options)
    assert str(raised.value).count(".") == 1
    generate(model, batch(model), 2)


def test_models_without_such_a_cache_are_refused():
    before = outside(shared("mllama"))
    with pytest.raises(VlmpruneError, match="cross-attention layers"):
        vlmprune.wrap(shared("mllama"), vlmprune.SnapKV())
    assert outside(shared("mllama")) == before
    windows = build("llava", text={"model_type": "mistral", "sliding_window": 8})
    with pytest.raises(VlmpruneError, match="every attention layer of this language model has a window"):
        vlmprune.wrap(windows, vlmprune.SnapKV())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: vlmprune.SnapKV(window=0), "window must be an int >= 1"),
        (lambda: vlmprune.SnapKV(pool=4), "pool must be an odd int"),
        (lambda: vlmprune.SnapKV(tokens="text"), "tokens='text' is unknown; use 'visual' or 'all'"),
        (lambda: vlmprune.VLCache(budgets="even"), "budgets='even' is unknown"),
        (lambda: vlmprune.PyramidKV(beta=0.5), "beta must be a number >= 1"),
        (lambda: vlmprune.SnapKV(0.0), "keep=0.0 is out of range"),
        (lambda: vlmprune.Buffer(buffer=1), "buffer must be True, False or None"),
        (lambda: vlmprune.SnapKV(layer=2), "has no option 'layer'"),
        (lambda: vlmprune.wrap(shared("llava"), ["snapkv", "vl-cache"]), "at most one cache method"),
    ],
)
def test_bad_options(make, said):
    with pytest.raises(VlmpruneError, match=said):
        make()


@only_full
def test_a_prompt_in_pieces_is_run_whole_or_refused():
    model = shared("llava")
    inputs = row(batch(model), 1)
    with vlmprune.wrap(model, METHODS["snapkv"]) as pruned, torch.no_grad():
        whole, _ = generate(model, inputs, 3)
        logits, _ = generate(model, inputs, 3, prefill_chunk_size=5)
        assert torch.equal(logits, whole)
        assert any("prefill_chunk_size=5 was left out" in note for note in pruned.report.notes)
        wide = {**inputs, "attention_mask": torch.ones(1, inputs["input_ids"].shape[1] + 4, dtype=torch.long)}
        with pytest.raises(VlmpruneError, match="SnapKV ranks visual tokens by the end of the prompt"):
            model(**wide)


def test_a_users_own_cut():
    @dataclass(frozen=True)
    class Small(vlmprune.CacheCut):
        """Keys of small norm stay, in every head its own."""

        def score(self, entries: vlmprune.LayerEntries) -> torch.Tensor:
            assert entries.call is not None
            return -entries.call.key.norm(dim=-1)

    model = shared("llava")
    inputs = batch(model)
    with vlmprune.wrap(model, Small(0.4)) as pruned:
        logits, out = generate(model, inputs, 4)
        kept = kept_sets(pruned.report.cache.kept)
    assert_near(logits, cut_logits(model, inputs, kept, out.sequences[:, -4:]))

    @dataclass(frozen=True)
    class Wrong(vlmprune.CacheCut):
        def score(self, entries: vlmprune.LayerEntries) -> torch.Tensor:
            return torch.zeros(3)

    with vlmprune.wrap(model, Wrong(0.4)), pytest.raises(VlmpruneError, match=r"Wrong.score\(\) returned a tensor of"):
        model(**inputs)


@only_full
def test_a_guide_an_intervention_and_a_cut_are_reported_together():
    large, small, processor = vlmprune.load_tiny()
    image, question = vlmprune.tiny.example()
    methods = [vlmprune.SGL(guide=small, keep=0.5), vlmprune.SnapKV(keep=0.25), vlmprune.VAR()]
    with vlmprune.wrap(large, methods, processor=processor) as pruned:
        report = pruned.ask(image, question, max_new_tokens=3).report
    assert report.method["name"] == "sgl+snapkv+var"
    assert report.kept_tokens == [98]
    assert report.cache.saves[-1] == "the copy of the cache in each step"
    assert report.kv_bytes < 0.5 * report.kv_bytes_full
    assert report.exited == [False] and report.guide_flops > 0


@only_full
@pytest.mark.parametrize("images", [(2, 1), (1, 0)])
def test_several_images_share_the_budget_and_a_sample_without_one_keeps_all(images):
    model = shared("internvl")
    inputs = make_inputs(model, text_lengths=(8, 11), images=images)
    with vlmprune.wrap(model, METHODS["vl-cache"]) as pruned:
        logits, out = generate(model, inputs, 4)
        report = pruned.report
    kept = kept_sets(report.cache.kept)
    assert_near(logits, cut_logits(model, inputs, kept, out.sequences[:, -4:]))
    for b, count in enumerate(images):
        visual = set((inputs["input_ids"][b] == model.config.image_token_id).nonzero()[:, 0].tolist())
        assert all(len(layer[b][0] & visual) == 3 * count for layer in kept)
