"""The Triton kernels on a GPU: achieved bandwidth against a measured copy, against gathers, against eager attention.

Targets: compact reaches 85 % of the copy's bandwidth and is 3 times as fast as the five gathers at batch 1; column sums
take at most 5 % of the causal SDPA beside them. `--arithmetic` prints what the roofline allows, without a GPU.

    python -m eval.speed.kernels_gpu --out eval/speed/results/kernels_gpu.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.provenance import provenance, write_record
from vlmprune import VlmpruneError, kernels
from vlmprune.flow.compact import Compaction, compaction, gather_positions, gather_rows
from vlmprune.plan.hardware import HARDWARE

BATCHES = (1, 2, 4, 8)
LENGTH, WIDTH, HEADS, HEAD = 3000, 4096, 32, 128
KEEP, ROUNDS = 0.25, 100
TEXT_ROWS = (1, 64)  # FastV, SGL


def compact_bytes(batch: int, slots: int) -> int:
    """Read and written: bf16 hidden states, cos and sin, 8-byte positions and mask."""
    return 2 * batch * slots * (2 * WIDTH + 2 * 2 * HEAD + 8 + 8)


def columns_bytes(batch: int) -> int:
    """Keys in bf16, once from memory (the second pass finds them in the L2), and the sums of every head."""
    return batch * LENGTH * HEADS * (2 * HEAD + 4)


def sdpa_flops(batch: int) -> int:
    """Causal attention of the whole prompt."""
    return 2 * batch * HEADS * LENGTH * LENGTH * HEAD


def arithmetic() -> list[dict[str, Any]]:
    """Least microseconds on each machine of the table, by roofline."""
    slots = int(LENGTH * KEEP)
    return [
        {
            "hardware": machine.name,
            "batch": batch,
            "compact_us": 1e6 * machine.seconds(0, compact_bytes(batch, slots)),
            "columns_us": 1e6 * machine.seconds(0, columns_bytes(batch)),
            "sdpa_us": 1e6 * machine.seconds(sdpa_flops(batch), 0),
            "columns_over_sdpa": columns_bytes(batch) / machine.bandwidth * machine.flops / sdpa_flops(batch),
        }
        for machine in HARDWARE.values()
        for batch in BATCHES
    ]


def times(work: Callable[[], Any]) -> dict[str, float]:
    """p20, p50 and p80 in microseconds, each run timed by events with a cold L2."""
    scratch = torch.empty(1 << 26, dtype=torch.int32, device="cuda")  # 256 MiB, several times any L2
    for _ in range(10):
        work()
    taken = []
    for _ in range(ROUNDS):
        scratch.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(end) * 1000)
    found = torch.tensor(taken).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
    return dict(zip(("p20", "p50", "p80"), found, strict=True))


def ragged(batch: int) -> Compaction:
    """A quarter of every row, less by a few tokens from row to row."""
    keep = torch.zeros(batch, LENGTH, dtype=torch.bool, device="cuda")
    for row in range(batch):
        keep[row, torch.randperm(LENGTH, device="cuda")[: int(LENGTH * KEEP) - row]] = True
    return compaction(keep)


def compaction_of(batch: int) -> dict[str, Any]:
    """One launch against five gathers and against a copy of as many bytes."""
    chosen = ragged(batch)
    hidden = torch.randn(batch, LENGTH, WIDTH, device="cuda", dtype=torch.bfloat16)
    turns = tuple(torch.randn(batch, LENGTH, HEAD, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    positions = torch.arange(LENGTH, device="cuda").expand(batch, -1).contiguous()
    mask = torch.ones_like(positions)
    moved = compact_bytes(batch, chosen.index.shape[1])
    source = torch.empty(moved // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def one() -> Any:
        return kernels.compact(hidden, chosen.index, chosen.real, rotary=turns, positions=positions, mask=mask)

    def five() -> list[Tensor]:
        parts = [gather_rows(part, chosen.index) for part in (hidden, *turns)]
        return [*parts, gather_positions(positions, chosen.index), gather_positions(mask, chosen.index) * chosen.real]

    got = one()
    for a, b in zip((got.hidden, *got.rotary, got.positions, got.mask), five(), strict=True):
        if a is None or not torch.equal(a, b):
            raise VlmpruneError("The kernel and the gathers differ, so nothing is timed; run the tests on this GPU.")
    flat = (chosen.index + torch.arange(batch, device="cuda")[:, None] * LENGTH).flatten()
    ways = {
        "compact": one,
        "five gathers": five,
        "index_select of hidden states": lambda: hidden.view(-1, WIDTH).index_select(0, flat),
        "copy": lambda: target.copy_(source),
    }
    taken = {name: times(work) for name, work in ways.items()}
    median = {name: one["p50"] for name, one in taken.items()}
    return {
        "batch": batch,
        "microseconds": taken,
        "bytes": moved,
        "of_copy_bandwidth": median["copy"] / median["compact"],
        "faster_than_gathers": median["five gathers"] / median["compact"],
    }


def columns_of(batch: int, rows: int) -> dict[str, Any]:
    """Column sums of the last rows, in Triton, in PyTorch, and out of the whole map, beside causal SDPA."""
    query, key, value = (torch.randn(batch, HEADS, LENGTH, HEAD, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    chosen = torch.arange(LENGTH - rows, LENGTH, device="cuda").expand(batch, -1).contiguous()

    def run() -> Tensor:
        return kernels.column_sums(query, key, chosen, scaling=HEAD**-0.5)

    def eager() -> Tensor:
        scores = (query @ key.transpose(-1, -2)).float() * HEAD**-0.5
        scores = scores.masked_fill(torch.ones(LENGTH, LENGTH, device="cuda").triu(1).bool(), float("-inf"))
        return scores.softmax(-1)[:, :, -rows:].sum(dim=(1, 2))

    kernels.use("torch")
    wanted = run()
    taken = {"pytorch": times(run)}
    kernels.use("auto")
    if not torch.allclose(run(), wanted, rtol=1e-3, atol=1e-3):
        raise VlmpruneError("The kernel and PyTorch differ, so nothing is timed; run the tests on this GPU.")
    taken["triton"] = times(run)
    taken["sdpa"] = times(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True))
    if batch == 1:
        taken["eager map"] = times(eager)
    return {
        "batch": batch,
        "rows": rows,
        "microseconds": taken,
        "share_of_sdpa": taken["triton"]["p50"] / taken["sdpa"]["p50"],
    }


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
    record = {
        "about": about,
        "compact": [compaction_of(batch) for batch in BATCHES],
        "columns": [columns_of(batch, rows) for batch in BATCHES for rows in TEXT_ROWS],
        "arithmetic": arithmetic(),
    }
    print(json.dumps(record, indent=1))
    write_record(record, args.out)


if __name__ == "__main__":
    main()
