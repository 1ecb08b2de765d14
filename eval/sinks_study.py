"""Does the bundled pair have attention sinks, where, and what do VAR and ACT change on held-out questions?

    python -m eval.sinks_study --questions 2000 --out eval/results/sinks_study.json

Sinks are looked for in the first `--prompts` questions of the test split. Then every variant answers the same test
questions as the model as it is, same backend, and answers are compared pair by pair. Nothing is tuned on test
questions: ACT's heads come from the validation split. The small model has two layers, in which neither method acts.

The same command again goes on where a killed one stopped: finished batches and ACT's scores lie in `--records`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import vlmprune
from eval import markdown
from eval.provenance import provenance, write_record
from eval.record import Record
from eval.shared import BatchCache
from eval.tasks.scenes import in_turns
from vlmprune.accounting.scores import plain
from vlmprune.flow.sinks import separation
from vlmprune.harness.format import note
from vlmprune.harness.measure import MethodRun
from vlmprune.harness.models import weights_hash
from vlmprune.harness.stats import Paired, p_value, paired, standard_error
from vlmprune.inputs.chat import prepare

SEED = 0
BATCH = 16
SETTINGS = {"max_new_tokens": 12}
KEEP = 0.25
APART = 125_000  # scenes of one family never meet those of another


def sinks(model: Any, processor: Any, prompts: list[tuple[Any, str]], tau: float | None) -> dict[str, Any]:
    """Sink dimensions and counts over several prompts; means are per prompt."""
    reports = [vlmprune.find_sinks(model, tau=tau, **prepare(processor, *prompt)) for prompt in prompts]
    samples = [report.samples[0] for report in reports]
    values = torch.cat([sample.phi[2:].flatten() for sample in samples])
    spread = separation(values, reports[0].tau)
    kinds = Counter(sink.kind for sample in samples for sink in sample.secondary)

    def mean(rows: list[list[int]]) -> list[float]:
        return [sum(column) / len(rows) for column in zip(*rows, strict=True)]

    return {
        "tau": reports[0].tau,
        "sink_dims": list(reports[-1].dims),
        "phi": {"below_half_tau": spread.bulk, "between": spread.between, "from_tau": spread.sinks},
        "phi_highest": float(torch.stack([sample.phi.max() for sample in samples]).max()),
        "phi_of_the_first_token": mean([sample.phi[:, 0].tolist() for sample in samples]),
        "visual_sinks_a_layer": mean([[len(found) for found in sample.visual_sinks] for sample in samples]),
        "text_sinks_a_layer": mean([[len(found) for found in sample.text_sinks] for sample in samples]),
        "gated_heads_a_layer": mean([[len(found) for found in sample.gated_heads] for sample in samples]),
        "primary_norms": mean([sample.norms.tolist() for sample in samples]),
        "alike_by_cosine": {kind: number / len(samples) for kind, number in kinds.items()},
    }


def reachable_tau(model: Any, processor: Any, prompts: list[tuple[Any, str]]) -> float | None:
    """The largest tau, in steps of 5 % down from the model's own, at which any sink dimension is found."""
    tau = sinks(model, processor, prompts[:1], None)["tau"]
    for step in range(20):
        lower = tau * (1 - 0.05 * step)
        if sinks(model, processor, prompts[:1], lower)["sink_dims"]:
            return lower
    return None


def answers(runs: dict[str, MethodRun], batches: list[Any], record: Record) -> tuple[dict[str, list[str]], Any]:
    """Each run's greedy answer to every question, and its prefill FLOPs; all answer a batch in turn."""
    shared, start, made = BatchCache(), time.monotonic(), 0
    for number, (images, questions) in enumerate(batches):
        shared.batch(number)
        lines = []
        for name, run in runs.items():
            if f"{name}/{number}" not in record.done:
                given, report = shared.answer(run, images, questions, **SETTINGS)
                flops = report.prefill_flops + (report.guide_flops or 0)
                lines.append({"id": f"{name}/{number}", "answers": given, "flops": flops})
        if lines:
            record.append(lines)
            made += 1
            left = (time.monotonic() - start) / made * (len(batches) - number - 1) / 60
            note(f"batch {number + 1} of {len(batches)}, about {left:.0f} min left")
    whole = {name: [record.done[f"{name}/{at}"] for at in range(len(batches))] for name in runs}
    said = {name: [plain(one) for line in own for one in line["answers"]] for name, own in whole.items()}
    return said, {name: sum(line["flops"] for line in own) for name, own in whole.items()}


def row(base: list[str], new: list[str], truths: list[str]) -> dict[str, Any]:
    """Accuracy, and the answers that changed against the model as it is, for better and for worse."""
    before = [a == t for a, t in zip(base, truths, strict=True)]
    after = [a == t for a, t in zip(new, truths, strict=True)]
    gained = sum(b and not a for a, b in zip(before, after, strict=True))
    lost = sum(a and not b for a, b in zip(before, after, strict=True))
    return {
        "accuracy": sum(after) / len(truths),
        "changed_answers": sum(a != b for a, b in zip(base, new, strict=True)),
        "gained": gained,
        "lost": lost,
    }


def changed(one: Mapping[str, Any], questions: int) -> Paired:
    """A row minus `none`, from its counts: a question was gained, lost or neither, and no two share a scene."""
    gained, lost = one["gained"], one["lost"]
    same = [0.0] * (questions - gained - lost)
    return paired(([1.0] * gained + [0.0] * lost + same, None), ([0.0] * gained + [1.0] * lost + same, None))


def study(questions: int, prompts: int, calibration: int, folder: Path) -> dict[str, Any]:
    """Everything, for the record; what is finished lies in `folder`."""
    large, small, processor = vlmprune.load_tiny()
    identity = {"weights": [weights_hash(large), weights_hash(small)], "questions": questions, "seed": SEED,
                "calibration": calibration}  # fmt: skip
    done = Record(folder, identity, option="--records")
    asked = list(in_turns(questions, "test", apart=APART))
    batches = [
        ([scene.image() for scene, _ in part], [question.text for _, question in part])
        for part in (asked[at : at + BATCH] for at in range(0, questions, BATCH))
    ]
    truths = [plain(question.answer) for _, question in asked]
    looked_at = [pair for images, texts in batches for pair in zip(images, texts, strict=True)][:prompts]
    found = {name: sinks(model, processor, looked_at, None) for name, model in (("large", large), ("small", small))}
    lower = reachable_tau(large, processor, looked_at)
    data = [(scene.image(), one.text, one.answer) for scene, one in in_turns(calibration, "validation")]
    heads = vlmprune.ACT().calibrate(large, data, processor=processor, path=folder / "act.json")
    variants: dict[str, Any] = {
        "none": vlmprune.Unpruned(),
        "var": vlmprune.VAR(),
        "act, all heads": vlmprune.ACT(),
        "act, calibrated heads": heads,
    }
    if found["large"]["sink_dims"]:
        variants["fastv"] = vlmprune.FastV(keep=KEEP)
        variants["fastv, exclude_sinks"] = vlmprune.FastV(keep=KEEP, exclude_sinks=True)
    elif lower is not None:  # there is nothing to exclude; what the next best thing would do
        found["large, lower tau"] = sinks(large, processor, looked_at, lower)
        variants["var, lower tau"] = vlmprune.VAR(tau=lower)
    for method in (vlmprune.Random(keep=KEEP), vlmprune.Uniform(keep=KEEP), vlmprune.Downsample(keep=KEEP)):
        variants[method.name] = method
    runs = {name: MethodRun(large, processor, method) for name, method in variants.items()}
    runs["small alone"] = MethodRun(small, processor, vlmprune.Unpruned())
    said, flops = answers(runs, batches, done)
    rows = {
        name: {
            "method": run.method.describe(),
            "flops_share": flops[name] / flops["none"],
            **row(said["none"], said[name], truths),
        }
        for name, run in runs.items()
    }
    return {"questions": questions, "prompts": prompts, "calibration_questions": calibration, "sinks": found,
            "lower_tau": lower, "rows": rows}  # fmt: skip


def table(record: dict[str, Any]) -> str:
    """Markdown, for `eval/sinks.md`."""
    columns = ("method", "prefill FLOPs", "accuracy", "against none", "p", "answers changed", "gained", "lost")
    lines, n = [], record["questions"]
    for name, one in record["rows"].items():
        hits, change = round(one["accuracy"] * n), changed(one, n)
        error = standard_error(([1.0] * hits + [0.0] * (n - hits), None))
        cost = f"{one['flops_share']:.1%}" if "flops_share" in one else ""
        counts = (str(one[k]) for k in ("changed_answers", "gained", "lost"))
        accuracy = f"{one['accuracy']:.4f} ± {error:.4f}"
        lines.append([name, cost, accuracy, markdown.points(change.record()), p_value(change.p), *counts])
    return markdown.table(columns, lines)


def existence(record: dict[str, Any]) -> str:
    """Whether the pair has sinks, for `eval/sinks.md`."""
    large, small = record["sinks"]["large"], record["sinks"]["small"]
    phi, first = large["phi"], large["phi_of_the_first_token"][1:]
    some = [count for count in large["visual_sinks_a_layer"] if count]
    gates = ", ".join(f"{count:.1f}" for count in large["gated_heads_a_layer"])
    return markdown.paragraph(
        f"In the large model dimensions {' and '.join(map(str, large['sink_dims']))} stand out, and phi reaches the "
        f"threshold (tau {large['tau']:.1f}) at {min(some):.0f} to {max(some):.0f} of 196 visual tokens of the layers "
        f"where it does: background as a whole, not a few tokens. {phi['between']:,} tokens lie between tau / 2 and "
        f"tau, beside {phi['from_tau']:,} above, so there are no two separate heaps, which a report of `find_sinks` "
        f"says. Phi of the first token is {min(first):.1f} to {max(first):.1f} from layer 1 on. Heads that pass "
        f"VAR's gate, by layer: {gates}. The small model has {len(small['sink_dims'])} sink dimensions."
    )


def findings(record: dict[str, Any]) -> str:
    """What the methods change; better or worse is said only where the interval excludes zero and p is below .05."""
    said = []
    for name, one in record["rows"].items():
        if name in ("none", "random", "uniform", "downsample", "small alone"):
            continue
        change = changed(one, record["questions"])
        sure = change.excludes_zero and change.p < 0.05
        word = ("better" if change.difference > 0 else "worse") if sure else "no different"
        said.append(
            f"`{name}` is {word}: {markdown.points(change.record())} points, p {p_value(change.p)}; {one['gained']} "
            f"answers gained, {one['lost']} lost."
        )
    return markdown.bullets(said)


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--prompts", type=int, default=100, help="how many of them are looked at for sinks")
    parser.add_argument("--calibration", type=int, default=200, help="validation questions for ACT's heads")
    parser.add_argument("--records", type=Path, default=Path("runs/sinks"), help="what is finished, to go on from")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    record = study(args.questions, args.prompts, args.calibration, args.records)
    record["provenance"] = provenance(attention="sdpa", model="the bundled pair", seed=SEED, split="test")
    print(json.dumps(record, indent=2))
    write_record(record, args.out)


if __name__ == "__main__":
    main()
