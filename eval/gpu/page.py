"""The page of what a GPU showed, from the records in `results/` (`python -m eval.pages` puts it there)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eval.markdown import bullets, paragraph, table

RESULTS = Path(__file__).parent / "results"
ALONE = "its text alone"


def stage(name: str) -> dict[str, Any]:
    """A stage's record."""
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return record


def about(*names: str) -> str:
    """On what and from which commit these stages were recorded."""
    records = [stage(name)["about"] for name in names]
    first = records[0]
    commits = sorted({f"{one['commit'][:7]}{' (changed)' if one['dirty'] else ''}" for one in records})
    return (
        f"One {first['device']}, torch {first['torch']}, triton {first['triton']}, transformers "
        f"{first['transformers']}, seed {first['seed']}, commit {', '.join(commits)}"
    )


def checks() -> str:
    """What passed."""
    kernels, conformance, graphs = (stage(name) for name in ("kernels", "conformance", "graphs"))
    absent = sorted({one["error"].partition(" [")[0] for one in conformance["points"] if one["status"] == "absent"})

    def counted(record: dict[str, Any]) -> str:
        return ", ".join(f"{number} {status}" for status, number in record["counts"].items())

    return bullets(
        [
            f"Every Triton kernel against its naive twin, in bf16, fp16 and fp32: {counted(kernels)}.",
            "Pruned equals masked on four families, under each attention kernel, in fp32 and bf16, and VAR and FastV "
            f"their loops: {counted(conformance)} ({'; '.join(absent)}).",
            f"Captured in a CUDA graph and replayed with other inputs, bit by bit: {counted(graphs)}.",
            about("kernels", "conformance", "graphs") + ".",
        ]
    )


def speed() -> str:
    """Prefill, first token and decode of every setting, beside the text alone and the ideal."""
    record = stage("end_to_end")
    points = [one for one in record["points"] if "milliseconds" in one]
    plain = {one["point"].rpartition(": ")[0]: one for one in points if one["point"].endswith(": unwrapped")}
    alone = {title: one for one in points for title, _, name in [one["point"].rpartition(": ")] if name == ALONE}
    rows = []
    for one in points:
        title, _, name = one["point"].rpartition(": ")
        if "faster" not in one or name == ALONE:
            continue
        before, after = (
            [which["milliseconds"][key]["p50"] for key in ("prefill", "first_token")] for which in (plain[title], one)
        )
        most = [f"{alone[title]['faster']['prefill']:.2f}" if title in alone else ""] * bool(alone)
        rows.append(
            [
                title, name, *(f"{old:.0f} → {new:.0f}" for old, new in zip(before, after, strict=True)),
                f"{one['faster']['prefill']:.2f}", *most, f"{one['ideal_faster']:.2f}",
                f"{one['faster']['first_token']:.2f}", f"{one['faster']['decode_a_token']:.2f}",
            ]
        )  # fmt: skip
    heading = (
        "model and prompt", "setting", "prefill, ms", "first token, ms", "prefill × as fast",
        *["at most (text alone)"] * bool(alone), "by FLOPs", "first token ×", "decode ×",
    )  # fmt: skip
    cut = [one["point"].rpartition(":")[0] for one in record["points"] if one["status"] == "cut"]
    missing = [f"Not run, since the time was over: {'; '.join(cut)}."] if cut else []
    least = "" if alone else ", which this record does not have yet"
    said = (
        f"{about('end_to_end')}; random weights in bf16 on SDPA. Times are medians of interleaved rounds; how many "
        "times as fast is the median of what the two of one round came to, not the quotient of the medians. No prefill "
        f"is shorter than that of the prompt's text alone{least}."
    )
    return "\n\n".join([table(heading, rows), paragraph(" ".join([said, *missing]))])


def found() -> str:
    """What the numbers come to, in sentences."""
    points = {one["point"]: one for one in stage("end_to_end")["points"] if "milliseconds" in one}

    def prefill(title: str, name: str) -> float:
        return float(points[f"{title}: {name}"]["milliseconds"]["prefill"]["p50"])

    def alone(title: str) -> str:
        known = f"{title}: {ALONE}" in points
        return f", its text alone {prefill(title, ALONE):.0f} ms" if known else ""

    def faster(name: str, what: str = "prefill") -> float:
        return float(points[name]["faster"][what])

    short, long, many = (f"7B, batch {b}, {v} visual tokens" for b, v in ((1, 576), (1, 2880), (8, 2880)))
    best, kept = f"{many}: keep 10%, layer 0", "7B, overhead: keep V - 1, layer 0"
    texts = [
        "**A short prompt gains nothing there.** The 7B's prefill of 576 visual tokens takes "
        f"{prefill(short, 'unwrapped'):.0f} ms{alone(short)}: the GPU waits for the host to launch kernels, as many "
        "for few tokens as for many. Pruned to 10 % before layer 0 it takes "
        f"{prefill(short, 'keep 10%, layer 0'):.0f} ms.",
        f"**With 2,880 visual tokens** 10 % before layer 0 bring it from {prefill(long, 'unwrapped'):.0f} to "
        f"{prefill(long, 'keep 10%, layer 0'):.0f} ms, before layer 2 to {prefill(long, 'keep 10%, layer 2'):.0f}"
        f"{alone(long)}.",
        f"**A batch of 8** such prompts gives the device enough to do: pruned to 10 % before layer 0 its prefill is "
        f"{faster(best):.2f} times as fast, by FLOPs {points[best]['ideal_faster']:.2f}.",
        f"**The wrap itself** costs host time: keeping all but one of 576 tokens is {faster(kept):.2f} times as fast "
        f"in prefill and {faster(kept, 'decode_a_token'):.2f} in a decode step.",
        "**VAR** computes the attention map of every head that it edits; with all heads edited, the most there can be, "
        f"prefill is {faster('7B, VAR, 576 visual tokens: VAR'):.2f} times as fast at 576 tokens and "
        f"{faster('7B, VAR, 2880 visual tokens: VAR'):.2f} at 2,880, decode "
        f"{faster('7B, VAR, 576 visual tokens: VAR', 'decode_a_token'):.2f}.",
    ]
    return bullets(texts)


def kernels() -> str:
    """The kernels beside a copy, gathers and SDPA."""
    record = stage("bandwidth")
    rows = []
    for one in record["points"]:
        took = one.get("microseconds", {})
        if "compact" in took:
            rows.append([
                one["point"], _device_and_host(took["compact"]),
                f"four gathers {_device_and_host(took['four gathers'])}; a copy of as many bytes "
                f"{took['copy']['p50']:.0f}",
                f"{100 * one['of_copy_bandwidth']:.0f} % of the copy's bandwidth, {one['faster_than_gathers']:.2f} × "
                "the gathers",
            ])  # fmt: skip
        elif "triton" in took:
            rows.append([
                one["point"], _device_and_host(took["triton"]),
                f"PyTorch {_device_and_host(took['pytorch'])}; causal SDPA {took['sdpa']['p50']:.0f}",
                f"{100 * one['share_of_sdpa']:.0f} % of SDPA's time",
            ])  # fmt: skip
    copies, gathers = ([one[key] for one in record["points"] if key in one] for key in (
        "of_copy_bandwidth", "faster_than_gathers",
    ))  # fmt: skip
    sums = [one["share_of_sdpa"] for one in record["points"] if "share_of_sdpa" in one]
    ideals = [one for point in record["points"] for one in point.get("least", ())]
    device = record["about"]["device"].lower()
    least = [f", {100 * one['columns_over_sdpa']:.0f} by the roofline" for one in ideals if one["hardware"] in device]
    text = (
        f"{about('bandwidth')}. Microseconds on the device with a cold L2, in brackets what the host takes to hand it "
        "over; 3,000 tokens of 4,096 numbers in bf16, a quarter kept; 32 heads of 128. Wanted were 85 % of the copy's "
        f"bandwidth (there are {100 * min(copies):.0f} or more), three times the gathers at batch 1 ({gathers[0]:.2f}) "
        f"and 5 % of SDPA's time for the column sums ({100 * min(sums):.0f} at best{''.join(least[:1])})."
    )
    return "\n\n".join([table(("kernel", "Triton", "beside", "that is"), rows), paragraph(text)])


def _device_and_host(took: dict[str, float]) -> str:
    return f"{took['p50']:.0f} ({took['host_p50']:.0f})"
