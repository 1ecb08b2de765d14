"""The README's sentences about speed, from the records of this folder (`python -m eval.pages` puts them there)."""

from __future__ import annotations

from typing import Any

from eval.markdown import paragraph


def overhead(record: dict[str, Any]) -> str:
    """What wrapping and probing cost."""
    ratio = record["ratio"]
    generic = [f"{one['ratio']['wrapped']:.3f} (`{name}`)" for name, one in record.get("generic", {}).items()]
    others = f", with the generic adapter {' and '.join(generic)}" if generic else ""
    return paragraph(
        f"Medians of {record['rounds']} interleaved rounds, as ratios to the plain forward: wrapping, keeping all "
        f"but one of 900 visual tokens and unwrapping {ratio['wrapped']:.3f}{others}; the probe in one layer "
        f"{ratio['probed']:.3f}; the plain forward a second time {ratio['plain_again']:.3f}, which is the noise."
    )


def imports(record: dict[str, Any]) -> str:
    """What importing costs."""
    return paragraph(
        "`import vlmprune` loads neither torch nor transformers "
        f"({record['seconds']['import vlmprune']:.2f} processor seconds); the first `vlmprune.wrap` takes "
        f"{record['vlmprune.wrap over its parts']:.2f} times what the parts of both that it needs take (`python -m "
        "eval.speed.imports`, [record](../eval/speed/results/imports.json))."
    )


def var(record: dict[str, Any]) -> str:
    """VAR beside plain SDPA and a naive one."""
    prefill, decode, memory = (record[name]["ratio"] for name in ("prefill", "decode", "memory"))
    return paragraph(
        f"Medians of {record['rounds']} interleaved rounds: VAR {prefill['var']:.2f} in prefill, {decode['var']:.2f} "
        f"in a decode step, {memory['var']:.2f} in memory, of plain SDPA's. A naive eager VAR: "
        f"{prefill['eager_var']:.1f}, {decode['eager_var']:.2f} and {memory['eager_var']:.1f}; its decode step runs "
        "no fused call first."
    )


def prefill(record: dict[str, Any]) -> str:
    """How time follows FLOPs over all points, and what keeping nearly everything costs."""
    cut = [row for row in record["rows"] if row["setting"].partition(",")[0].endswith("%")]
    most = {long: max(row["over"] for row in cut if (row["tokens"] >= 600) == long) for long in (True, False)}
    nearly = [row["share"] - 1 for row in record["rows"] if row["setting"].startswith("all but one")]
    again = [row["share"] - 1 for row in record["rows"] if row["setting"] == "none again"]
    saved = [-row["growth"] for row in record["memory"] if row["setting"].startswith("10%")]
    moved = [row["growth"] for row in record["memory"] if row["setting"].startswith("all but one")]
    text = (
        f"Medians of {record['about']['rounds']} interleaved rounds: over the {len(cut)} points at keep 50 to 5 % "
        f"the fraction of prefill time is at most {most[True]:.2f} times the fraction of FLOPs with 600 tokens or "
        f"more left, and at most {most[False]:.2f} times with fewer. Keeping all but one token per image costs "
        f"between {100 * min(nearly):.0f} and {100 * max(nearly):.0f} %"
    )
    if again:
        text += f"; the unpruned model a second time, {100 * min(again):.0f} to {100 * max(again):.0f} %"
    text += f". Peak memory at 10 % of 2,880 tokens falls by {min(saved):.0f} to {max(saved):.0f} MiB; at all but one "
    text += f"token it moves by {min(moved):.0f} to {max(moved):+.0f} MiB, in both directions."
    return paragraph(text)
