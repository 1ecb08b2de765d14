"""What a user will gain, predicted: the README's table, by the arithmetic of `vlmprune plan`."""

from vlmprune.accounting.hardware import hardware
from vlmprune.harness.format import percent
from vlmprune.harness.plan_rows import llava_7b, planned

from . import markdown

VISUAL, KEEPS = (576, 2880), (0.5, 0.25, 0.1)
SHARES = {"prefill_flops": "prefill FLOPs", "prefill": "prefill time", "kv_bytes": "KV cache"}
COLUMNS = ("visual tokens", "keep", *SHARES.values(), "answer of 128 tokens", "requests that fit")


def table() -> str:
    """Markdown: a 7B model on an H100, tokens dropped before layer 2 (FastV), relative to the unpruned model."""
    lines = []
    for visual in VISUAL:
        made = planned(
            llava_7b(), None, hardware("h100"), [("fastv", keep) for keep in KEEPS], None,
            visual=visual, text=64, new=128, dtype="bf16",
        )  # fmt: skip
        full, *rows = made["rows"]
        for row in rows:
            shares = (percent(row[name], full[name]) for name in SHARES)
            more = row["requests"] / full["requests"]
            lines.append([f"{visual:,}", row["keep"], *shares, f"{row['speed_up']:.2f}x", f"{more:.1f}x"])
    return markdown.table(COLUMNS, lines)
