"""What a cut keeps, against plain loops over attention maps, and budgets against their definitions."""

from __future__ import annotations

import pytest
import torch

import vlmprune
from tests.support.cache_twin import Maps, best, kept_sets, snapkv_choice, vote_scores
from tests.support.grid import either, grid, only_full
from tests.support.running import shared
from tests.support.tiny_families import build, make_inputs, row
from vlmprune.flow.budgets import prefix_counts, pyramid_count, shared_counts

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

FAMILIES = ("llava", "qwen2_5_vl", "internvl", "paligemma")


def with_heads(family, attn, key_heads=None):
    """The family's tiny model, with another number of key heads if one is named; each has two queries' heads."""
    if key_heads is None:
        return shared(family, attn)
    return build(family, attn=attn, text={"num_attention_heads": 2 * key_heads, "num_key_value_heads": key_heads})


def chosen(family, method, key_heads=None):
    """Of each sample of a left-padded batch: its maps, what it kept in each layer and head (positions of the prompt
    alone), and how many images' tokens it has."""
    model, eager = with_heads(family, "sdpa", key_heads), with_heads(family, "eager", key_heads)
    inputs = make_inputs(model, text_lengths=(6, 11), images=(1, 2))
    with vlmprune.wrap(model, method) as pruned, torch.no_grad():
        model(**inputs)
        kept = kept_sets(pruned.report.cache.kept)
        spans = [[span.count for span in images] for images in pruned.report.images]
    for b in range(2):
        shift = int((inputs["attention_mask"][b] == 0).sum())
        everything = [[set(range(shift, inputs["input_ids"].shape[1]))]] * 2  # of a layer that was not cut
        mine = [[{at - shift for at in head} for head in (layer or everything)[b]] for layer in kept]
        yield Maps(eager, row(inputs, b)), mine, spans[b]


def rounded(keep: float, number: int) -> int:
    return max(1, int(keep * number + 0.5))


@grid(family=either(("llava",), FAMILIES), tokens=either(("visual",), ("visual", "all")), window=either((2,), (2, 5)))
def test_snapkv_keeps_what_the_window_attends_to(family, tokens, window):
    for maps, kept, spans in chosen(family, vlmprune.SnapKV(0.4, tokens, window=window, pool=3)):
        count = sum(rounded(0.4, n) for n in spans) if tokens == "visual" else rounded(0.4, maps.length)
        for layer, heads in enumerate(kept):
            assert heads == snapkv_choice(maps, layer, count, window, 3, tokens == "visual")


@grid(family=either(("llava",), FAMILIES), tokens=either(("all",), ("all", "visual")))
def test_vl_cache_lets_the_text_after_the_image_vote(family, tokens):
    for maps, kept, spans in chosen(family, vlmprune.VLCache(0.3, tokens)):
        eligible = maps.visual if tokens == "visual" else list(range(maps.length))
        count = sum(rounded(0.3, n) for n in spans) if tokens == "visual" else rounded(0.3, maps.length)
        for layer, (only,) in enumerate(kept):
            found = best(vote_scores(maps, layer), eligible, count, maps.length - 1)
            assert only == found | (set(range(maps.length)) - set(eligible))


@only_full
def test_budgets_by_attention_and_by_prefix():
    """TGV-KV's counts are in proportion to what a layer's text gives the image; PrefixKV's hold equal fractions."""
    for rule in ("attention", "prefix"):
        for maps, kept, spans in chosen("llava", vlmprune.VLCache(0.4, budgets=rule)):
            counts = [len(only & set(maps.visual)) for (only,) in kept]
            scores = [[vote_scores(maps, layer)[at] for at in maps.visual] for layer in range(len(kept))]
            total = len(kept) * sum(rounded(0.4, n) for n in spans)
            if rule == "attention":
                assert sum(counts) == total
                mass = sum(map(sum, scores))
                for count, own in zip(counts, scores, strict=True):
                    assert abs(count - total * sum(own) / mass) <= 1 or count == len(own)
                continue
            assert total - len(kept) < sum(counts) <= total
            ranked = [sorted(own, reverse=True) for own in scores]
            lowest = max(sum(own[: n - 1]) / sum(own) for own, n in zip(ranked, counts, strict=True))
            highest = min(sum(own[:n]) / sum(own) for own, n in zip(ranked, counts, strict=True))
            assert lowest < highest  # one fraction fits all layers


@only_full
def test_pyramidkv_falls_from_layer_to_layer():
    for maps, kept, spans in chosen("llava", vlmprune.PyramidKV(0.5, beta=4.0)):
        budget, entries = sum(rounded(0.5, n) for n in spans), len(maps.visual)
        counts = [[len(head & set(maps.visual)) for head in heads] for heads in kept]
        least = max(budget / 4, 2 * budget - entries)
        wanted = [2 * budget - least - at * 2 * (budget - least) / (len(kept) - 1) for at in range(len(kept))]
        for own, want in zip(counts, wanted, strict=True):
            assert all(abs(one - want) < 1 for one in own)
        assert counts[0] > counts[-1]
        assert sum(own[0] for own in counts) == len(kept) * budget


@only_full
def test_random_draws_anew_in_every_layer_and_repeats_itself():
    for _, kept, _ in chosen("llava", vlmprune.RandomKV(0.5)):
        assert len({frozenset(only) for (only,) in kept}) == len(kept)
    again = [kept for _, kept, _ in chosen("llava", vlmprune.RandomKV(0.5))]
    assert again == [kept for _, kept, _ in chosen("llava", vlmprune.RandomKV(0.5))]
    assert again != [kept for _, kept, _ in chosen("llava", vlmprune.RandomKV(0.5, seed=1))]


def test_the_window_is_the_first_and_the_last():
    for maps, kept, _ in chosen("llava", vlmprune.WindowKV(8, "all", sinks=3)):
        assert all(only == {0, 1, 2, *range(maps.length - 5, maps.length)} for (only,) in kept)


@pytest.mark.parametrize(
    ("total", "weights", "entries", "counts"),
    [
        (6, [1.0, 2.0, 3.0], [9, 9, 9], [1, 2, 3]),
        (7, [0.1, 2.0, 4.0], [9, 9, 9], [1, 2, 4]),  # the first has its least, the others share 6
        (9, [0.0, 0.0, 1.0], [9, 9, 4], [3, 2, 4]),  # what is full gives the rest away
        (30, [1.0, 1.0], [3, 4], [3, 4]),
        (1, [1.0, 1.0], [3, 4], [1, 1]),
        (2, [0.0, 0.0], [0, 5], [0, 2]),
    ],
)
def test_shared_counts(total, weights, entries, counts):
    assert shared_counts(total, weights, entries) == counts


def test_prefix_counts_are_one_fraction():
    even, steep = torch.ones(10), torch.tensor([90.0, 5, 1, 1, 1, 1, 1, 0, 0, 0])
    assert prefix_counts(20, [even, steep]) == [10, 7]
    assert prefix_counts(10, [even, steep]) == [9, 1]
    assert prefix_counts(2, [even, steep]) == [1, 1]


def test_pyramid_counts_average_the_budget():
    counts = [pyramid_count(40, 400, at, 9, 20.0) for at in range(9)]
    assert counts[0] == 78 and counts[-1] == 2
    assert sum(counts) == 360
    assert [pyramid_count(8, 10, at, 3, 20.0) for at in range(3)] == [10, 8, 6]
