"""Heads that hold different numbers of entries: which ones, against plain loops, and bytes that are really free."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import vlmprune
from tests.methods.kv.test_choice import chosen, rounded, with_heads
from tests.methods.kv.test_exact import METHODS, batch
from tests.support.cache_twin import Maps, cut_logits, kept_sets
from tests.support.grid import either, grid, only_full
from tests.support.running import assert_near, shared
from tests.support.tiny_families import make_inputs, row
from vlmprune import VlmpruneError
from vlmprune.attention.probe import AttentionCall
from vlmprune.hf.buffered_layer import FIRST_ROOM
from vlmprune.hf.compatibility import CACHE
from vlmprune.hf.grouped_layer import GroupedLayer, head_groups
from vlmprune.methods.kv.base import LayerEntries

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def votes(maps: Maps, layer: int, head: int, window: int, pool: int, before_only: bool) -> list[float]:
    """Mean attention of the last rows over the queries of a key head, averaged over neighbours."""
    attention = maps.layers[layer]
    group = len(attention) // maps.key_heads
    rows = range(max(0, maps.length - window), maps.length)
    found = []
    for at in range(maps.length):
        total = 0.0
        for near in range(at - pool // 2, at + pool // 2 + 1):
            if 0 <= near < (rows[0] if before_only else maps.length):
                for query in range(head * group, head * group + group):
                    total += sum(float(attention[query, row, near]) for row in rows)
        found.append(total / (group * len(rows) * pool))
    return found


@grid(
    family=either((("llava", 4),), (("llava", 4), ("llava", None), ("qwen2_5_vl", None), ("internvl", None))),
    tokens=either(("all",), ("all", "visual")),
)
def test_adakv_shares_the_budget_among_heads(family, tokens):
    """A fifth of the mean for every head, the rest to the highest scores of any head; the window's own come first."""
    for maps, kept, spans in chosen(family[0], vlmprune.AdaKV(0.5, tokens, window=2, pool=3), family[1]):
        eligible = maps.visual if tokens == "visual" else list(range(maps.length))
        count = sum(rounded(0.5, n) for n in spans) if tokens == "visual" else rounded(0.5, maps.length)
        least = max(1, int(0.2 * count))
        for layer, heads in enumerate(kept):
            ranked = []
            for head in range(maps.key_heads):
                own = votes(maps, layer, head, 2, 3, before_only=True)
                own = [10.0 + at if at >= maps.length - 2 else own[at] for at in range(maps.length)]
                ranked.append(sorted(((own[at], at) for at in eligible), key=lambda one: (-one[0], one[1])))
            taken = [{at for _, at in own[:least]} for own in ranked]
            rest = [(score, head, at) for head, own in enumerate(ranked) for score, at in own[least:]]
            rest.sort(key=lambda one: -one[0])
            for _, head, at in rest[: len(ranked) * (count - least)]:
                taken[head].add(at)
            assert heads == [own | (set(range(maps.length)) - set(eligible)) for own in taken]


def far_from_the_mean(model, one, maps: Maps, layer: int, window: int, pool: int) -> list[float]:
    """How far the attention's weighted values of each key head are from the mean of all heads."""
    with torch.no_grad():
        cache = model(**one, use_cache=True)["past_key_values"]
    vectors = []
    for head in range(maps.key_heads):
        own = votes(maps, layer, head, window, pool, before_only=False)
        vectors.append(
            sum(weight * value for weight, value in zip(own, cache.layers[layer].values[0, head], strict=True))
        )
    mean = sum(vectors) / len(vectors)
    return [float((vector - mean).norm()) for vector in vectors]


def whole_heads(budget: int, entries: int, heads: int, layer: int, near: int, distance: list[float]) -> set[int]:
    """Half of the heads in the first of four layers, linearly fewer up to one in the last; fewer still where the others
    would keep less than a quarter of the mean. `near` of several are the nearest to the mean, the others the farthest.

    Two heads are equally far from their mean, whatever they hold, so the first is whole: computed distances differ by
    rounding alone, and by the kernel.
    """
    number = round(heads / 2 + (1 - heads / 2) * layer / 3)
    while number and heads * budget - number * entries < max(1, budget // 4) * (heads - number):
        number -= 1
    ranked = sorted(range(heads), key=lambda head: -distance[head]) if heads > 2 else list(range(heads))
    near = min(near, max(0, number - 1))
    return {*ranked[: number - near], *ranked[heads - near :]}


@grid(
    case=either(
        (("llava", 4, 1),),
        (("llava", None, 0), ("llava", 4, 0), ("llava", 4, 1), ("qwen2_5_vl", None, 0), ("paligemma", None, 0)),
    )
)
def test_task_kv_leaves_the_heads_whole_that_differ(case):
    """The other heads share what is left: the first token, the last two, and the best of those between."""
    family, key_heads, near = case
    model = with_heads(family, "eager", key_heads)
    method = vlmprune.TaskKV(0.6, window=3, pool=3, sinks=1, recent=2, whole=0.5, near=near)
    samples = [row(make_inputs(model, text_lengths=(6, 11), images=(1, 2)), b) for b in range(2)]
    numbers = set()
    for (maps, kept, spans), one in zip(chosen(family, method, key_heads), samples, strict=True):
        budget, entries = sum(rounded(0.6, n) for n in spans), len(maps.visual)
        if maps.key_heads == 1:
            assert all(len(layer) == 1 for layer in kept)
            continue
        text = set(range(maps.length)) - set(maps.visual)
        for layer, heads in enumerate(kept):
            distance = far_from_the_mean(model, one, maps, layer, 3, 3)
            whole = whole_heads(budget, entries, maps.key_heads, layer, near, distance)
            numbers.add(len(whole))
            short = (maps.key_heads * budget - len(whole) * entries) // (maps.key_heads - len(whole))
            for head, own in enumerate(heads):
                score = votes(maps, layer, head, 3, 3, before_only=False)
                ends = [maps.visual[0], *reversed(maps.visual[-2:])]
                ranked = ends + sorted(set(maps.visual) - set(ends), key=lambda at: (-score[at], at))
                assert own == text | set(ranked[: entries if head in whole else short])
    assert numbers == {2: {1}, 4: {1, 2}, 1: set()}[maps.key_heads]


def test_task_kv_reads_the_attention_of_a_layer_once(monkeypatch):
    """Its scores and its weights of heads are made of the same votes."""
    read, original = [], LayerEntries.attention_from

    def counted(entries, rows):
        read.append(entries.layer)
        return original(entries, rows)

    monkeypatch.setattr(LayerEntries, "attention_from", counted)
    model = shared("llava")
    with vlmprune.wrap(model, METHODS["task-kv"]), torch.no_grad():
        model(**batch(model), use_cache=True)
    assert read == [0, 1, 2, 3]


def test_two_heads_are_equally_far_whatever_rounding_says():
    """Nearly alike, so that the distance from their mean is mostly rounding, in either order; of three, one differs."""
    rows, generator = torch.ones(1, 6, dtype=torch.bool), torch.Generator().manual_seed(0)
    query, value = (torch.randn(1, 1, 6, 8, generator=generator) for _ in range(2))
    nearly = value + 1e-6 * torch.randn(1, 1, 6, 8, generator=generator)

    def far(*values):
        call = AttentionCall(
            *(query.expand(-1, len(values), -1, -1),) * 2, torch.cat(values, dim=1), None, {"scaling": 1.0}
        )
        entries = LayerEntries(
            layer=0, visual=rows, real=rows, suffix=~rows, ids=[torch.arange(6)], heads=len(values), call=call
        )
        return vlmprune.TaskKV().weigh(entries)[0].tolist()

    for values in ((value, nearly), (nearly, value)):
        first, second = far(*values)
        assert first == second > 0
    distances = far(value, value, 2 * value)
    assert distances[2] > 1.9 * max(distances[:2])


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ([[9, 2, 3, 2]], [(1, 9), (3, 3)]),
        ([[9, 2, 8, 2]], [(2, 9), (2, 2)]),
        ([[9, 1], [1, 9]], [(1, 9), (1, 1)]),  # other heads in every sample
        ([[4, 4]], [(2, 4)]),
    ],
)
def test_groups_store_the_least(lengths, sizes):
    order, found = head_groups(torch.tensor(lengths))
    assert found == sizes
    assert [lengths[0][head] for head in order[0]] == sorted(lengths[0], reverse=True)


@grid(family=either(("llava",), ("llava", "qwen3_vl")), method=either(("task-kv",), ("task-kv", "adakv", "adakv-all")))
def test_short_heads_free_their_bytes(family, method):
    """What is stored is what the heads hold and the filler within their groups, before and after steps in a buffer."""
    model = shared(family)
    inputs = row(batch(model), 1)
    with vlmprune.wrap(model, METHODS[method]) as pruned, torch.no_grad():
        cache = model(**inputs, use_cache=True)["past_key_values"]
        report = pruned.report
        heads = [[len(own) for own in layer[0]] for layer in kept_sets(report.cache.kept)]
        # Where the heads of a layer happen to hold as many, which AdaKV's may, it is stored as any other.
        assert [isinstance(layer, GroupedLayer) for layer in cache.layers] == [len(set(own)) > 1 for own in heads]
        assert any(len(set(own)) > 1 for own in heads)

        def held():
            parts = [part for layer in cache.layers for part in getattr(layer, "parts", (layer,))]
            return sum(one.untyped_storage().nbytes() for part in parts for one in (part.keys, part.values))

        assert held() == report.cache.bytes_prefill == report.kv_bytes < report.kv_bytes_full
        width, entries = cache.layers[0].keys.shape[-1] * 4 * 2, sum(map(sum, heads))
        assert held() == entries * width  # of two heads, each is a group
        model(input_ids=torch.tensor([[20]]), **{CACHE: cache})
        assert held() == (entries + FIRST_ROOM * sum(map(len, heads))) * width
        assert report.cache.saves[0] == "memory of the cache"


UNEVEN = {
    "adakv": vlmprune.AdaKV(0.5, window=3, pool=3),
    "adakv-all": vlmprune.AdaKV(0.5, "all", window=3),
    "attention": vlmprune.VLCache(0.5, budgets="attention"),
    "prefix": vlmprune.VLCache(0.5, budgets="prefix"),
}


@grid(method=either(("adakv", "prefix"), tuple(UNEVEN)))
def test_a_batch_stores_what_its_longest_sample_needs(method):
    """Budgets that depend on scores differ from sample to sample: the others have filler, and keep no more entries."""
    model = shared("llava")
    inputs = make_inputs(model, text_lengths=(9, 9), images=(2, 2))
    key_heads, found = 2, []
    with vlmprune.wrap(model, UNEVEN[method]) as pruned, torch.no_grad():
        for own in (row(inputs, 0), row(inputs, 1), inputs):
            cache = model(**own, use_cache=True)["past_key_values"]
            width = cache.layers[0].keys.shape[-1] * 4 * 2
            lengths = [
                [sorted(map(len, sample), reverse=True) * (key_heads // len(sample)) for sample in layer]
                for layer in kept_sets(pruned.report.cache.kept)
            ]
            # Of two heads each is a group: of the longer ones of all samples, and of the shorter ones.
            stored = sum(len(layer) * sum(map(max, zip(*layer, strict=True))) for layer in lengths)
            real = sum(sum(map(sum, layer)) for layer in lengths)
            assert pruned.report.cache.bytes_prefill == pruned.report.kv_bytes == stored * width
            found.append((stored, real))
    (*alone, together) = found
    assert all(stored == real for stored, real in alone)
    assert together[1] == sum(real for _, real in alone) < together[0]


@grid(method=either(("task-kv", "adakv"), ("task-kv", "adakv", "adakv-all")), samples=either((1, 2), (1, 2)))
def test_a_step_masks_only_what_its_groups_fill_up(method, samples, monkeypatch):
    """Four key heads in two groups, of prompts without padding, whose masks the model leaves out."""
    model = with_heads("llava", "sdpa", 4)
    inputs = make_inputs(model, text_lengths=(9,) * samples, images=(2,) * samples)
    masks, original = [], torch.nn.functional.scaled_dot_product_attention

    def record(query, key, value, *args, attn_mask=None, **kwargs):
        if query.shape[2] == 1 or attn_mask is not None:  # no row of the prompt
            masks.append((key.shape[2], None if attn_mask is None else attn_mask.flatten(1, 2)))
        return original(query, key, value, *args, attn_mask=attn_mask, **kwargs)

    with vlmprune.wrap(model, METHODS[method]) as pruned, torch.no_grad():
        cache = model(**inputs, use_cache=True)["past_key_values"]
        kept = kept_sets(pruned.report.cache.kept)
        tokens = torch.tensor([[20, 21, 22]] * samples)
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
        logits = [model(input_ids=tokens[:, at : at + 1], **{CACHE: cache}).logits for at in range(2)]
        monkeypatch.undo()
    assert_near(torch.cat(logits, dim=1), cut_logits(model, inputs, kept, tokens)[:, 1:])
    assert masks
    for length, mask in masks:
        assert mask is None or (mask.shape[-1] == length and not bool(mask.all()))
    assert any(mask is not None for _, mask in masks) is (method != "task-kv")


def test_filler_is_hidden_where_all_heads_are_seen_side_by_side():
    """As an intervention sees them: zeros, in each sample before the entries of its own heads."""
    lengths = torch.tensor([[9, 2, 3, 2], [4, 9, 2, 1]])
    index = torch.arange(9).expand(2, 4, 9)
    layer = GroupedLayer.of(*torch.ones(2, 2, 4, 9, 8), index, lengths)
    layer.reorder_cache(torch.tensor([1, 0]))
    seen = layer.seen_of_all(2)
    assert seen.sum(dim=-1)[:, ::2, 0].tolist() == lengths.flip(0).tolist()
    assert torch.equal(seen[:, ::2, 0], seen[:, 1::2, 0])
    assert torch.equal(seen[:, ::2, 0], torch.arange(9) >= 9 - lengths.flip(0)[..., None])


def test_only_the_wrapped_model_reads_such_a_cache():
    model = shared("llava")
    inputs = row(batch(model), 1)
    step = {"input_ids": torch.tensor([[20]])}
    with vlmprune.wrap(model, METHODS["task-kv"]) as pruned, torch.no_grad():
        cache = model(**inputs, use_cache=True)["past_key_values"]
        twins = [copy.deepcopy(cache), pickle.loads(pickle.dumps(cache)), copy.deepcopy(cache)]
        found = [model(**step, **{CACHE: each}).logits for each in (cache, *twins[:2])]
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
        cache.crop(-1)
        assert torch.equal(model(**step, **{CACHE: cache}).logits, found[0])
        cache.crop(-1)
        cache.batch_repeat_interleave(2)
        assert_near(model(input_ids=torch.tensor([[20], [21]]), **{CACHE: cache}).logits[:1], found[0])
        cache.batch_select_indices(torch.tensor([0]))
        assert cache.layers[0].keys.shape[0] == 1
        kept = kept_sets(pruned.report.cache.kept)
    assert_near(found[0][:, -1], cut_logits(model, inputs, kept, step["input_ids"].expand(1, 2))[:, 1])
    assert isinstance(cache.layers[0], GroupedLayer)
    with pytest.raises(VlmpruneError, match="cut head by head, which only the wrapped model"):
        model(**step, **{CACHE: twins[2]})


@only_full
def test_layers_that_lend_their_keys_are_refused():
    pytest.importorskip("transformers.models.cohere_compass", reason="the tiny models of all types want them all")
    from tests.support.generic import build_generic

    with pytest.raises(VlmpruneError, match=r"'adakv' stores heads in groups, but layers of this language model use"):
        vlmprune.wrap(build_generic("gemma3n"), vlmprune.AdaKV())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: vlmprune.AdaKV(safeguard=2.0), "safeguard must be a number from 0 to 1"),
        (lambda: vlmprune.TaskKV(pool=2), "pool must be an odd int"),
        (lambda: vlmprune.TaskKV(whole=-1), "whole must be a number from 0 to 1"),
    ],
)
def test_bad_options(make, said):
    with pytest.raises(VlmpruneError, match=said):
        make()
