"""A long answer in a plan: the cache whole, cut after the prompt, pruned before it, or read in part."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..accounting.answer import Way, answer_cost
from ..accounting.hardware import Hardware
from ..accounting.model_sizes import model_size
from ..accounting.roofline import ModelSize
from ..flow.select import check_keep, count_for
from ..methods.kv.delta import BREAK_EVEN, Delta
from .format import amount, table
from .plan_rows import Named, in_ms

NAMES: dict[Way, str] = {"uncut": "none", "delta": "delta", "cut": "cut", "pruned": "pruner"}


def planned_answer(
    config: Named,
    machine: Hardware,
    keeps: Sequence[float],
    *,
    visual: int | None,
    text: int,
    new: int,
    dtype: str,
    batch: int = 1,
    frames: int | None = None,
) -> dict[str, Any]:
    """What an answer of `new` tokens costs per request, under every cache method: JSON-serialisable; see `planned`.

    Raises:
        VlmpruneError: a budget or a config that cannot be planned.
    """
    budgets = [check_keep(keep) for keep in keeps]
    size = model_size(config[1], name=config[0], dtype=dtype, visual=visual, frames=frames)
    return answer_rows(size, machine, budgets, text=text, new=new, batch=batch)


def answer_rows(
    size: ModelSize, machine: Hardware, budgets: Sequence[float | int], *, text: int, new: int, batch: int
) -> dict[str, Any]:
    """The same of a model whose sizes are known."""
    rows: list[dict[str, Any]] = []

    def add(way: Way, buffer: bool, keep: float | int = 1.0) -> None:
        kept = count_for(keep, size.visual)
        found = answer_cost(size, machine, way, buffer=buffer, text=text, new=new, kept=kept, batch=batch)
        whole, token = (rows[0]["total"], rows[0]["token"]) if rows else (found.total, found.token)
        faster = {"faster": whole / found.total, "token_faster": token / found.token if found.token else 1.0}
        rows.append({"method": NAMES[way], "keep": str(keep), **asdict(found), **faster})

    add("uncut", False)
    add("uncut", True)
    add("delta", True)
    for keep in budgets:
        add("cut", False, keep)
        add("cut", True, keep)
        add("pruned", True, keep)
    delta = Delta()
    pages = delta.pages * delta.page
    return {"tokens": new, "rows": rows, "delta_reads": pages, "delta_from": BREAK_EVEN * pages}


def answer_table(made: dict[str, Any]) -> Any:
    """The rows for people."""
    title = f"An answer of {made['tokens']:,} tokens"
    heads = ("method", "keep", "moved", "KV prompt", "KV end", "prefill ms", "token ms", "faster", "total s", "faster")
    rows = table((*heads, "fit"), title=title)
    for row in made["rows"]:
        rows.add_row(
            row["method"] + ", buffer" * row["buffer"], row["keep"], f"{row['moved']:,.0f}",
            amount(row["kv_prompt"], "B"), amount(row["kv_end"], "B"), in_ms(row["prefill"]), in_ms(row["token"]),
            f"{row['token_faster']:.2f}x", f"{row['total']:.3g}", f"{row['faster']:.2f}x", f"{row['fit']:,}",
        )  # fmt: skip
    return rows


def answer_words(made: dict[str, Any]) -> list[str]:
    """What the table's words mean."""
    return [
        "moved: entries of keys and values that an average step copies, gathers or attends to in a layer. Without a",
        "buffer, transformers copies the cache in each step. cut: snapkv, vl-cache and the like, after the prompt;",
        f"pruner: as many tokens dropped before layer 0. delta reads {made['delta_reads']:,} entries where a layer",
        f"holds {made['delta_from']:,} or more, and all of fewer.",
    ]
