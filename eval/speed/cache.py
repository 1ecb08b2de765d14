"""What a step costs over long caches: whole, cut, read in part, and with heads of different lengths, within one run.

Caches are filled with random numbers, since a step costs the same whatever they hold. Every row runs in turns with its
own ideal: the plain model over a cache that holds in each layer as many entries as the row has to move there, so that
nothing is asked of this package. In entries of keys and values of a key head, of T in the cache, K of them read:

    copied, buffered        3 T in a step of transformers' cache, which copies them first; T
    cut                     C, those that are left; the same with `torch.cat` has a copied cache of C as its ideal
    two groups of heads     each head as many as its group holds
    delta                   T in the first layer, 1.5 T where it selects (the keys once more), 3 K where K are gathered
    quest                   T in the first layer, T / 2 (the keys) + 3 K in the others

Seconds are the processor's. `bytes` are of the storages of the cache's tensors; `claimed`: the entries that the method
says it stores, and the room for 64 more of each head that a buffer has.

    python -m eval.speed.cache --out eval/speed/results/cache.json
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

import vlmprune
from eval import markdown
from eval.provenance import provenance, write_record
from eval.speed.models import HEAD, random_llava
from eval.speed.overhead import interleave
from eval.speed.video_scale import committed
from vlmprune.accounting.cache_report import stored_bytes
from vlmprune.flow.entries import entry_index, kept_entries
from vlmprune.hf.buffered_layer import FIRST_ROOM, buffer_layers
from vlmprune.hf.cache_state import PrunedPrompt, remember_layers
from vlmprune.hf.compatibility import CACHE
from vlmprune.hf.grouped_layer import GroupedLayer
from vlmprune.methods.kv.base import CacheCut, CacheMethod

LENGTHS = (4000, 8000, 32000)
FRACTION = 8  # one entry in so many stays, or is read
WIDTH, LAYERS = 1024, 8
KEY_HEADS = 4  # of 16, as grouped queries have it
PAGE = 16
MOST = 1.15  # of the ideal


@dataclass(frozen=True)
class Way:
    """A row: a method in the steps over its cache.

    `moved`: per layer, entries of a key head that a step has to move. `claimed`: entries that the cache holds, of all
    heads and layers. `copied`: whether it grows by `torch.cat`.
    """

    name: str
    method: CacheMethod | None
    cache: DynamicCache
    moved: Sequence[int]
    claimed: int
    copied: bool = False


def filled(lengths: Sequence[int], copied: bool = False) -> DynamicCache:
    """A cache of so many random entries in each layer."""
    cache = DynamicCache()
    for i, entries in enumerate(lengths):
        cache.update(torch.randn(1, KEY_HEADS, entries, HEAD), torch.randn(1, KEY_HEADS, entries, HEAD), i)
    if not copied:
        buffer_layers(cache)
    return cache


def cut(cache: DynamicCache, length: int, by_head: bool, group: int) -> DynamicCache:
    """The cache of a prompt of `length` tokens of which these entries were left, at other places in each head."""
    heads = KEY_HEADS if by_head else 1
    states = []
    for i, layer in enumerate(cache.layers):
        entries = layer.keys.shape[2]
        columns = torch.stack([torch.randperm(length)[:entries].sort().values for _ in range(heads)])[None]
        columns = columns if by_head else columns[:, 0]
        states.append(PrunedPrompt(i, length, columns, False, group=group if by_head else group * KEY_HEADS))
    remember_layers(cache, states)
    return cache


def head_counts(method: CacheCut, length: int, place: int, places: int) -> list[int]:
    """How many of a prompt's entries each head keeps of a layer, of scores that are higher in some heads."""
    scores = torch.rand(KEY_HEADS, length) * torch.linspace(1, 0.5, KEY_HEADS)[:, None]
    return method.by_heads(scores, torch.rand(KEY_HEADS), round(method.keep * length), place, places)


def stored(counts: Sequence[int]) -> int:
    """Entries of all heads in two groups, each as long as its longest: the least that any two take."""
    long = sorted(counts, reverse=True)
    return min(n * long[0] + (len(long) - n) * (long[n] if n < len(long) else 0) for n in range(1, len(long) + 1))


def grouped(method: CacheCut, length: int, layers: int, group: int) -> tuple[DynamicCache, list[int]]:
    """The cache that such a method leaves of a prompt, and how many entries each layer holds."""
    cache, states, held = DynamicCache(), [], []
    everything = torch.ones(1, length, dtype=torch.bool)
    for i in range(layers):
        counts = head_counts(method, length, i, layers)
        keep = kept_entries(torch.rand(1, KEY_HEADS, length), everything, ~everything, [counts])
        chosen = entry_index(keep, [counts])
        keys, values = (torch.randn(1, KEY_HEADS, length, HEAD) for _ in range(2))
        cache.layers.append(GroupedLayer.of(keys, values, chosen.index, torch.tensor([counts])))
        cache.layers[-1].buffered()
        columns = chosen.index.masked_fill(~chosen.real, -1)
        states.append(PrunedPrompt(i, length, columns, chosen.ragged, group=group))
        held.append(stored(counts))
    remember_layers(cache, states)
    return cache, held


def ways(length: int, layers: int, group: int) -> Iterator[Way]:
    """The rows of a cache of that length, one at a time: together they would take much memory.

    Args:
        group: query heads of a key head.
    """
    few, pages = length // FRACTION, length // FRACTION // PAGE
    read, whole = pages * PAGE, [length] * layers
    left, every = [few] * layers, layers * KEY_HEADS * length
    yield Way("plain, copied", None, filled(whole, copied=True), whole, every, copied=True)
    yield Way("kv-buffer", vlmprune.Buffer(), filled(whole), whole, every)
    keep = vlmprune.SnapKV(1 / FRACTION)
    for name, by_head, copied in (
        ("cut, copied", False, True), ("cut", False, False), ("cut by head", True, False),
    ):  # fmt: skip
        held = cut(filled(left, copied), length, by_head, group)
        yield Way(name, keep, held, left, every // FRACTION, copied)
    for method in (vlmprune.AdaKV(1 / FRACTION), vlmprune.TaskKV(0.4)):
        held, entries = grouped(method, length, layers, group)
        yield Way(method.name, method, held, [-(-one // KEY_HEADS) for one in entries], sum(entries))
    delta = vlmprune.Delta(pages=pages, page=PAGE, recent=min(8, pages), full=1, selecting=[1])
    yield Way("delta", delta, filled(whole), [length, length * 3 // 2, *[3 * read] * (layers - 2)], every)
    quest = vlmprune.Quest(pages=pages, page=PAGE, full=1)
    yield Way("quest", quest, filled(whole), [length, *[length // 2 + 3 * read] * (layers - 1)], every)


def stepping(model: Any, cache: DynamicCache) -> Callable[[], Any]:
    """One step on the cache, which is then as long as it was."""

    def run() -> None:
        model(input_ids=torch.tensor([[5]]), **{CACHE: cache})
        cache.crop(-1)

    return run


def measured(way: Way, model: Any, beside: Any, length: int, rounds: int) -> dict[str, Any]:
    """A row: in turns with the plain model over a copied cache of that length, and with its own ideal.

    Args:
        beside: a copy of the model, for the method.
    """
    runs = {
        "plain": stepping(model, filled([length] * len(way.moved), copied=True)),
        "ideal": stepping(model, filled(way.moved, way.copied)),
        "way": stepping(beside, way.cache),
    }
    with vlmprune.wrap(beside, way.method or "none"):
        seconds = interleave(runs, rounds, time.process_time)
    against = {
        name: statistics.median(a / b for a, b in zip(seconds["way"], seconds[name], strict=True))
        for name in ("plain", "ideal")
    }
    room = 1 if way.copied else FIRST_ROOM  # of one that is copied the step's own entry
    entries = way.claimed + room * KEY_HEADS * len(way.moved)
    return {
        "cached": length,
        "way": way.name,
        "milliseconds": {name: 1000 * statistics.median(own) for name, own in seconds.items()},
        "moved": sum(way.moved) * (3 if way.copied else 1) / len(way.moved),
        "of plain": against["plain"],
        "over": against["ideal"],
        "bytes": stored_bytes(way.cache),
        "claimed": entries * 2 * HEAD * 4,
    }


def measure(model: Any, lengths: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Every row; prints each."""
    text = model.config.text_config
    layers, group = text.num_hidden_layers, text.num_attention_heads // text.num_key_value_heads
    beside, rows = copy.deepcopy(model), []
    for length in lengths:
        for way in ways(length, layers, group):
            rows.append(row := measured(way, model, beside, length, rounds))
            took, marks = row["milliseconds"], [f"above {MOST}"] * (row["over"] > MOST)
            marks += ["bytes are not as claimed"] * (row["bytes"] != row["claimed"])
            print(
                f"{length:6} {way.name:14} {took['way']:7.1f} ms, {row['of plain']:.3f} of plain, {row['over']:.3f} of "
                f"its ideal, {row['bytes'] / 1e6:.1f} of {row['claimed'] / 1e6:.1f} MB",
                *marks,
                sep="  ",
                flush=True,
            )
    return rows


def in_docs() -> str:
    """The page's table and a sentence about it, of the committed record."""
    found = committed("cache")
    if found is None:
        return markdown.paragraph("Not measured yet: `python -m eval.speed.cache` makes the table.")
    lines = [
        [
            f"{row['cached']:,}", row["way"], f"{row['milliseconds']['way']:.1f}", f"{row['of plain']:.2f}",
            f"{row['moved']:,.0f}", f"{row['over']:.2f}", f"{row['bytes'] / 1e6:.1f}", f"{row['claimed'] / 1e6:.1f}",
        ]
        for row in found["rows"]
    ]  # fmt: skip
    columns = ["cached", "", "ms a step", "of plain", "entries to move", "of the ideal", "MB stored", "MB claimed"]
    above = [f"{row['way']} at {row['cached']:,}" for row in found["rows"] if row["over"] > found["about"]["limit"]]
    about = found["about"]
    said = (
        f"Medians of {about['rounds']} interleaved rounds, {about['model']}, sdpa, {about['machine']}. Above "
        f"{about['limit']} of the ideal: {', '.join(above) or 'none'}."
    )
    return markdown.table(columns, lines) + "\n\n" + markdown.paragraph(said)


def main(words: Sequence[str] | None = None) -> None:
    """Run, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(words)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sizes: Any = {"num_key_value_heads": KEY_HEADS, "max_position_embeddings": 1 << 17}
    model = random_llava(args.width, args.layers, side=30, **sizes)
    shape = f"random LLaVA-like, LM {args.layers} layers x {args.width}, {KEY_HEADS} key heads of {HEAD}, fp32, batch 1"
    about = provenance(rounds=args.rounds, backend="sdpa", model=shape, limit=MOST)
    with torch.no_grad():
        record = {"about": about, "rows": measure(model, args.lengths, args.rounds)}
    write_record(record, args.out)


if __name__ == "__main__":
    main()
