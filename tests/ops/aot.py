"""Compile every Triton kernel ahead of time, without a GPU, and report the resources that each one needs.

    python -m tests.ops.aot --out tests/ops/budget.json

Registers and spills are read from the log of ptxas, shared memory from Triton.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vlmprune.ops.column_sums_triton import BLOCK_M, BLOCK_N, SPLITS, columns_kernel, statistics_kernel
from vlmprune.ops.gather_triton import LARGEST_ROW, compact_kernel
from vlmprune.ops.redistribution_triton import BLOCK_M as EDITED_M
from vlmprune.ops.redistribution_triton import BLOCK_N as EDITED_N
from vlmprune.ops.redistribution_triton import redistribute_kernel
from vlmprune.ops.scores_triton import tile
from vlmprune.ops.top_k import LARGEST_SPAN
from vlmprune.ops.top_k_triton import top_k_kernel
from vlmprune.ops.top_k_triton import warps as ranking_warps

ARCHITECTURES = (80, 90)
STATES = ("hidden", "cos", "sin", "query", "key", "value", "output")
ALIGNED = {"D", "DR", "DK", "DV", *(f"{state}_{axis}" for state in STATES for axis in "abghst")}


@dataclass(frozen=True)
class Variant:
    """A kernel for certain types and sizes. `types`: of its arguments, by name; integers are i32 where not named.

    `constants`: constexpr arguments, and those that Triton's launcher would make constant because they are 1.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int = 4


def _attention(dtype: str, width: int, **constants: Any) -> dict[str, Any]:
    precision = "tf32x3" if dtype == "fp32" else "tf32"
    block = max(16, triton.next_power_of_2(width))
    plain = {"D": width, "MASK": 0, "CAUSAL": True, "CAPPED": False, "WINDOWED": False, "PRECISION": precision}
    return {**plain, "BLOCK_D": block, "query_d": 1, "key_d": 1, **constants}


def _scores(dtype: str) -> dict[str, str]:
    floats = dict.fromkeys(("scaling", "softcap"), "fp32")
    return {"query": f"*{dtype}", "key": f"*{dtype}", "rows": "*i64", "mask": f"*{dtype}", **floats}


def variants() -> list[Variant]:
    """Every kernel in the types and sizes that models have; bf16 stands for fp16, whose code is the same."""
    found = []
    for dtype in ("bf16", "fp16", "fp32"):
        states = dict.fromkeys(("hidden", "cos", "sin", "out_hidden", "out_cos", "out_sin"), f"*{dtype}")
        whole = dict.fromkeys(("position_ids", "out_position_ids", "index", "inner"), "*i64")
        constants = {
            "ROTARY_AXES": 1, "POSITION_AXES": 1, "BLOCK": LARGEST_ROW, "BLOCK_R": 128,
            "hidden_d": 1, "cos_d": 1, "sin_d": 1, "position_ids_s": 1,
        }  # fmt: skip
        found.append(Variant(f"compact {dtype}", compact_kernel, states | whole, constants))
    for dtype, width, masked in (("bf16", 80, False), ("bf16", 128, False), ("bf16", 128, True), ("fp32", 128, False)):
        types = _scores(dtype) | {"part_max": "*fp32", "part_sum": "*fp32"} | ({"mask": "*u8"} if masked else {})
        tiles = tile(dtype == "fp32", BLOCK_N)
        warps = tiles.pop("num_warps")
        constants = _attention(dtype, width, MASK=2 if masked else 0, PARTS=SPLITS, BLOCK_M=BLOCK_M, **tiles)
        name = f"{dtype} {width}{' masked' if masked else ''}"
        found.append(Variant(f"statistics {name}", statistics_kernel, types, constants, warps))
        types |= {"weight": "*fp32", "out": "*fp32"}
        found.append(Variant(f"columns {name}", columns_kernel, types, constants | {"WEIGHTED": True}, warps))
    for dtype in ("bf16", "fp32"):
        types = _scores(dtype) | {"output": f"*{dtype}", "value": f"*{dtype}", "sinks": "*u8", "visual": "*u8"}
        types |= dict.fromkeys(("p", "rho", "gate"), "fp32")
        tiles = tile(dtype == "fp32", EDITED_N)
        warps = tiles.pop("num_warps")
        constants = _attention(dtype, 128, output_d=1, value_d=1, BLOCK_M=EDITED_M, **tiles)
        found.append(Variant(f"redistribute {dtype}", redistribute_kernel, types, constants, warps))
    types = dict.fromkeys(("positions", "starts", "counts", "firsts", "out"), "*i64") | {"scores": "*fp32"}
    for block in (4096, LARGEST_SPAN):
        constants = {"BLOCK": block, "stride": 1}
        found.append(Variant(f"top_k {block}", top_k_kernel, types, constants, ranking_warps(block)))
    return found


def compiled(variant: Variant, architecture: int) -> dict[str, int]:
    """Compile to a cubin: registers per thread, shared memory in bytes, spilled bytes, and size.

    Args:
        architecture: compute capability times 10, as 80 or 90.
    """
    kernel = variant.kernel
    signature = {
        name: "constexpr" if name in variant.constants else variant.types.get(name, "i32") for name in kernel.arg_names
    }
    # As the launcher specialises: memory is aligned to 16 bytes, and widths and strides of states are multiples of 16.
    aligned = [["tt.divisibility", 16]]
    attributes = {
        (i,): aligned
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or (name in ALIGNED and signature[name] == "i32")
    }
    source = ASTSource(kernel, signature, variant.constants, attributes)
    log = io.StringIO()
    with triton.knobs.compilation.scope(), triton.knobs.nvidia.scope(), redirect_stdout(log):
        triton.knobs.compilation.always_compile = True  # a kernel out of the cache comes without the log
        triton.knobs.nvidia.dump_ptxas_log = True
        options = {"enable_fp_fusion": True, "num_warps": variant.warps}
        built = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    output = log.getvalue()
    registers = re.search(r"Used (\d+) registers", output)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", output)
    assert registers is not None and len(spills) == 2, output
    return {
        "registers": int(registers[1]),
        "shared": built.metadata.shared,
        "spills": sum(map(int, spills)),
        "cubin": len(built.asm["cubin"]),
    }


def version() -> str:
    """Triton's major and minor version: another compiler, another budget."""
    return ".".join(triton.__version__.split(".")[:2])


def report() -> dict[str, dict[str, dict[str, int]]]:
    """What every variant needs on every architecture."""
    return {
        variant.name: {f"sm_{architecture}": compiled(variant, architecture) for architecture in ARCHITECTURES}
        for variant in variants()
    }


def main() -> None:
    """Print the report, and write it as the budget of this version of Triton."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="enter it into this file of budgets")
    args = parser.parse_args()
    found = report()
    for name, needs in found.items():
        print(f"{name:24}", *(f"{arch} {need}" for arch, need in needs.items()))
    if args.out:
        budget = {
            name: {arch: {k: need[k] for k in ("registers", "shared", "spills")} for arch, need in needs.items()}
            for name, needs in found.items()
        }
        budgets = json.loads(args.out.read_text()) if args.out.is_file() else {}
        budgets[version()] = budget
        args.out.write_text(json.dumps(budgets, indent=1, sort_keys=False) + "\n")


if __name__ == "__main__":
    main()
