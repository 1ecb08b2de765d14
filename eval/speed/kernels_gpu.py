"""The Triton kernels on a GPU: achieved bandwidth against a measured copy, against gathers, against eager attention.

Targets: compact reaches 85 % of the copy's bandwidth and is 3 times as fast as the four gathers at batch 1; column sums
take at most 5 % of the causal SDPA beside them. `--arithmetic` prints what the roofline allows, without a GPU.

    python -m eval.speed.kernels_gpu --out eval/speed/results/kernels_gpu.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.gpu.measure import times
from eval.provenance import provenance, write_record
from vlmprune import VlmpruneError, ops
from vlmprune.accounting.hardware import HARDWARE
from vlmprune.flow.compact import Compaction, compaction
from vlmprune.ops.attention_rows import Visibility
from vlmprune.ops.column_sums import column_sums
from vlmprune.ops.gather import compact, gather_positions, gather_rows

KEEP, ROUNDS = 0.25, 100
TEXT_ROWS = (1, 64)  # FastV, SGL


@dataclass(frozen=True)
class KernelSizes:
    """What is measured, on which device."""

    batches: tuple[int, ...] = (1, 2, 4, 8)
    length: int = 3000
    width: int = 4096
    heads: int = 32
    head: int = 128
    rounds: int = ROUNDS
    device: str = "cuda"

    @property
    def slots(self) -> int:
        """Tokens that stay."""
        return int(self.length * KEEP)

    def compact_bytes(self, batch: int) -> int:
        """Read and written: bf16 hidden states, cos and sin, 8-byte positions."""
        return 2 * batch * self.slots * (2 * self.width + 2 * 2 * self.head + 8)

    def columns_bytes(self, batch: int) -> int:
        """Keys in bf16, once from memory (the second pass finds them in the L2), and the sums of every head."""
        return batch * self.length * self.heads * (2 * self.head + 4)

    def sdpa_flops(self, batch: int) -> int:
        """Causal attention of the whole prompt."""
        return 2 * batch * self.heads * self.length * self.length * self.head


SIZES = KernelSizes()


def arithmetic(sizes: KernelSizes = SIZES) -> list[dict[str, Any]]:
    """Least microseconds on each machine of the table, by roofline."""
    return [
        {
            "hardware": machine.name,
            "batch": batch,
            "compact_us": 1e6 * machine.seconds(0, sizes.compact_bytes(batch)),
            "columns_us": 1e6 * machine.seconds(0, sizes.columns_bytes(batch)),
            "sdpa_us": 1e6 * machine.seconds(sizes.sdpa_flops(batch), 0),
            "columns_over_sdpa": sizes.columns_bytes(batch)
            / machine.bandwidth
            * machine.flops
            / sizes.sdpa_flops(batch),
        }
        for machine in HARDWARE.values()
        for batch in sizes.batches
    ]


def ragged(batch: int, sizes: KernelSizes) -> Compaction:
    """A quarter of every row, less by a few tokens from row to row."""
    keep = torch.zeros(batch, sizes.length, dtype=torch.bool, device=sizes.device)
    for row in range(batch):
        keep[row, torch.randperm(sizes.length, device=sizes.device)[: sizes.slots - row]] = True
    return compaction(keep)


def states(sizes: KernelSizes, *shape: int) -> Tensor:
    """Random numbers in bf16."""
    return torch.randn(*shape, device=sizes.device, dtype=torch.bfloat16)


def compaction_of(batch: int, sizes: KernelSizes) -> dict[str, Any]:
    """One launch against four gathers and against a copy of as many bytes."""
    chosen = ragged(batch, sizes)
    hidden = states(sizes, batch, sizes.length, sizes.width)
    cos_sin = tuple(states(sizes, batch, sizes.length, sizes.head) for _ in range(2))
    position_ids = torch.arange(sizes.length, device=sizes.device).expand(batch, -1).contiguous()
    moved = sizes.compact_bytes(batch)
    source = torch.empty(moved // 2, dtype=torch.uint8, device=sizes.device)
    target = torch.empty_like(source)

    def one() -> Any:
        return compact(hidden, chosen.index, cos_sin=cos_sin, position_ids=position_ids)

    def four() -> list[Tensor]:
        parts = [gather_rows(part, chosen.index) for part in (hidden, *cos_sin)]
        return [*parts, gather_positions(position_ids, chosen.index)]

    kept, pair, ids = one()
    for a, b in zip((kept, *pair, ids), four(), strict=True):
        if a is None or not torch.equal(a, b):
            raise VlmpruneError("The kernel and the gathers differ, so nothing is timed; run the tests on this GPU.")
    flat = (chosen.index + torch.arange(batch, device=sizes.device)[:, None] * sizes.length).flatten()
    ways: dict[str, Callable[[], Any]] = {
        "compact": one,
        "four gathers": four,
        "index_select of hidden states": lambda: hidden.view(-1, sizes.width).index_select(0, flat),
        "copy": lambda: target.copy_(source),
    }
    taken = {name: times(work, sizes.device, sizes.rounds) for name, work in ways.items()}
    median = {name: one["p50"] for name, one in taken.items()}
    return {
        "batch": batch,
        "microseconds": taken,
        "bytes": moved,
        "copy_gigabytes_a_second": round(moved / median["copy"] / 1000, 1),
        "of_copy_bandwidth": median["copy"] / median["compact"],
        "faster_than_gathers": median["four gathers"] / median["compact"],
    }


def columns_of(batch: int, rows: int, sizes: KernelSizes) -> dict[str, Any]:
    """Column sums of the last rows, in Triton, in PyTorch, and out of the whole map, beside causal SDPA."""
    length = sizes.length
    query, key, value = (states(sizes, batch, sizes.heads, length, sizes.head) for _ in range(3))
    chosen = torch.arange(length - rows, length, device=sizes.device).expand(batch, -1).contiguous()
    scaling = sizes.head**-0.5

    def run() -> Tensor:
        return column_sums(query, key, chosen, Visibility(scaling))

    def eager() -> Tensor:
        scores = (query @ key.transpose(-1, -2)).float() * scaling
        scores = scores.masked_fill(torch.ones(length, length, device=sizes.device).triu(1).bool(), float("-inf"))
        return scores.softmax(-1)[:, :, -rows:].sum(dim=(1, 2))

    ops.use("torch")
    wanted = run()
    taken = {"pytorch": times(run, sizes.device, sizes.rounds)}
    ops.use("auto")
    if not torch.allclose(run(), wanted, rtol=1e-3, atol=1e-3):
        raise VlmpruneError("The kernel and PyTorch differ, so nothing is timed; run the tests on this GPU.")
    taken["triton"] = times(run, sizes.device, sizes.rounds)
    attention = torch.nn.functional.scaled_dot_product_attention
    taken["sdpa"] = times(lambda: attention(query, key, value, is_causal=True), sizes.device, sizes.rounds)
    if batch == 1:
        taken["eager map"] = times(eager, sizes.device, min(20, sizes.rounds))
    return {
        "batch": batch,
        "rows": rows,
        "microseconds": taken,
        "share_of_sdpa": taken["triton"]["p50"] / taken["sdpa"]["p50"],
    }


def measured(sizes: KernelSizes = SIZES) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Everything there is to measure, by name, batch after batch."""
    for batch in sizes.batches:
        yield f"compact, batch {batch}", lambda batch=batch: compaction_of(batch, sizes)  # type: ignore[misc]
        for rows in TEXT_ROWS:
            name = f"column sums, batch {batch}, {rows} rows"
            yield name, lambda batch=batch, rows=rows: columns_of(batch, rows, sizes)  # type: ignore[misc]


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arithmetic", action="store_true", help="the roofline alone, without a GPU")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.arithmetic:
        for row in arithmetic():
            print(json.dumps(row))
        return
    if not torch.cuda.is_available():
        parser.error("there is no GPU; use --arithmetic for what the roofline allows")
    torch.manual_seed(0)
    about = provenance(card=torch.cuda.get_device_name(), cuda=torch.version.cuda, rounds=ROUNDS, keep=KEEP)
    found = {name: work() for name, work in measured()}
    record = {"about": about, "measured": found, "arithmetic": arithmetic()}
    print(json.dumps(record, indent=1))
    write_record(record, args.out)


if __name__ == "__main__":
    main()
