"""What SGL keeps of the bundled pair's accuracy: every method at equal layer-averaged retention, in one run.

    python -m eval.sgl.study --questions 250 --out eval/sgl/results/study.json      # 250 of each of eight families

Questions are the test split's. The guide and the oracle run once per batch for every row that ranks by them
(`eval.shared`), so that a row costs only its own model; seconds are therefore not measured here but in
`eval.speed.sgl`. The exit's threshold comes from `eval.sgl.calibrate`, which sees the validation split only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

import vlmprune
from eval.provenance import provenance, write_record
from eval.shared import BatchCache
from vlmprune.accounting.report import Report
from vlmprune.accounting.scores import exact_match, sureness
from vlmprune.harness.baselines import EXIT_AT, accuracy, scored_families
from vlmprune.harness.measure import MethodRun, backend
from vlmprune.methods.registry import make_method
from vlmprune.tiny.questions import benchmark

RETENTION = (0.64, 0.50, 0.35, 0.18, 0.09, 0.05)
BATCH = 32
NEW_TOKENS = 4  # the longest short answer has two words and its end
SHORT = tuple(scored_families())


@dataclass(frozen=True)
class StudyRow:
    """One setting: a method with its budget and depth, listed under a layer-averaged retention or a share of tokens."""

    name: str
    keep: float
    layer: int
    at: tuple[float, ...]  # the retention points of table 1 that it stands for
    entering: tuple[float, ...]  # the shares of tokens entering the LM of table 2


def rows(layers: int) -> list[StudyRow]:
    """Every method at every retention R = K/L + (1 - K/L) r it can reach."""
    out = []
    for name in ("random", "uniform", "downsample"):
        out += [StudyRow(name, r, 0, (r,), (r,)) for r in RETENTION]
    for retention in RETENTION:
        for depth in (2, 1):  # the paper's K, or where that is too deep the one before
            if (keep := share(retention, depth, layers)) is not None:
                out.append(StudyRow("fastv", keep, depth, (retention,), ()))
                break
        depth = next(k for k in (2, 1, 0) if (r := share(retention, k, layers)) is not None and int(r * layers) >= k)
        for name in ("fastv-oracle", "sgl"):
            keep = share(retention, depth, layers)
            assert keep is not None
            out.append(StudyRow(name, keep, depth, (retention,), (retention,) if depth == 0 else ()))
            if depth:
                out.append(StudyRow(name, retention, 0, (), (retention,)))
    return out


def share(retention: float, depth: int, layers: int) -> float | None:
    """The budget that gives a layer-averaged retention when tokens go before layer `depth`."""
    keep = (retention - depth / layers) / (1 - depth / layers)
    return keep if keep > 0.005 else None


def runs_of(table: list[StudyRow], large: Any, small: Any, processor: Any) -> dict[str, MethodRun]:
    """A run for each row, and for the unpruned large and small model."""
    none = vlmprune.Unpruned()
    runs = {"none": MethodRun(large, processor, none), "small alone": MethodRun(small, processor, none)}
    for row in table:
        guide = {"guide": small} if row.name == "sgl" else {}
        runs[key(row)] = MethodRun(large, processor, make_method(row.name, keep=row.keep, layer=row.layer, **guide))
    return runs


@dataclass
class WorkerResult:
    """What one worker found: per row how right each answer was and the report of each batch; per question the rest."""

    families: list[str]
    sure: list[float]
    right: dict[str, list[float]]
    reports: dict[str, list[Report]]


def work(number: int, worker: int, workers: int) -> WorkerResult:
    """All rows on every `workers`-th batch of `number` questions of each family."""
    torch.set_num_threads(1)
    large, small, processor = vlmprune.load_tiny()
    asked = [(family, scene, question) for family in SHORT for scene, question in benchmark(family, number, "test")]
    random.Random(0).shuffle(asked)
    table = rows(len(large.model.language_model.layers))
    runs, cache = runs_of(table, large, small, processor), BatchCache()
    first_sgl = next(key(row) for row in table if row.name == "sgl")
    out = WorkerResult([], [], defaultdict(list), defaultdict(list))
    starts = range(worker * BATCH, len(asked), workers * BATCH)
    for at in track(starts, "batches", disable=worker > 0):
        part = asked[at : at + BATCH]
        cache.batch(at)
        out.families += [family for family, _, _ in part]
        images, questions = [scene.image() for _, scene, _ in part], [question.text for _, _, question in part]
        for name, one in runs.items():
            texts, report = cache.answer(one, images, questions, max_new_tokens=NEW_TOKENS)
            out.right[name] += [exact_match(a, question.answer) for a, (*_, question) in zip(texts, part, strict=True)]
            out.reports[name].append(report)
            if name == first_sgl:
                assert report.confidence is not None and report.consistency is not None, "SGL measures both"
                out.sure += [sureness(*pair) for pair in zip(report.confidence, report.consistency, strict=True)]
    return out


def run(number: int, exit_at: float, workers: int) -> dict[str, Any]:
    """Share the batches out, and make the records."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        shares = list(pool.map(work, [number] * workers, range(workers), [workers] * workers))
    families = [family for found in shares for family in found.families]
    sure = [value for found in shares for value in found.sure]
    right = {name: [hit for found in shares for hit in found.right[name]] for name in shares[0].right}
    reports = {name: [one for found in shares for one in found.reports[name]] for name in shares[0].reports}
    large, _, _ = vlmprune.load_tiny()
    table = rows(len(large.model.language_model.layers))
    records = [record(row, right, reports, families, sure, exit_at) for row in table]
    plain = [base(name, right[name], families) for name in ("none", "small alone")]
    about = provenance(
        model="the bundled pair",
        backend=backend(large),
        split="test",
        questions=len(families),
        families=list(SHORT),
        exit_at=exit_at,
        random_seed=0,
    )
    return {"about": about, "rows": plain + records}


def key(row: StudyRow) -> str:
    """What a row is filed under."""
    return f"{row.name} {row.keep:.4f} {row.layer}"


def base(name: str, hits: list[float], families: list[str]) -> dict[str, Any]:
    """Accuracy, its standard error, and the families'."""
    per = {f: sum(h for h, g in zip(hits, families, strict=True) if g == f) / families.count(f) for f in SHORT}
    return {"name": name, **accuracy(hits), "families": per}


def record(
    row: StudyRow,
    right: dict[str, list[float]],
    reports: dict[str, list[Report]],
    families: list[str],
    sure: list[float],
    exit_at: float,
) -> dict[str, Any]:
    """A row's numbers; for SGL also with exits, and split by whether the small model was right."""
    hits, seen = right[key(row)], MethodRun(None, None, None, reports=reports[key(row)])
    out = base(row.name, hits, families) | {
        "keep": row.keep,
        "layer": row.layer,
        "at_retention": list(row.at),
        "at_entering": list(row.entering),
        **{name: seen.mean(name) for name in ("lm_tokens", "layer_avg_tokens", "retention")},
        "prefill_flops_share": seen.total("prefill_flops") / seen.total("prefill_flops_full"),
    }
    if row.name in ("sgl", "fastv-oracle", "random"):
        small = right["small alone"]
        for state, wanted in (("small_right", 1.0), ("small_wrong", 0.0)):
            chosen = [h for h, s in zip(hits, small, strict=True) if s == wanted]
            out[state] = {"questions": len(chosen), "accuracy": sum(chosen) / len(chosen)}
    if row.name == "sgl":
        gone = [s >= exit_at for s in sure]
        mixed = [s if g else h for h, s, g in zip(hits, right["small alone"], gone, strict=True)]
        out["with_exit"] = base("sgl + exit", mixed, families) | {"exits": sum(gone) / len(gone)}
    return out


def main() -> None:
    """Run and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=250, help="of each family")
    parser.add_argument("--exit-at", type=float, default=EXIT_AT)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    start = time.time()
    result = run(args.questions, args.exit_at, args.workers)
    result["about"]["seconds"] = round(time.time() - start)
    write_record(result, args.out)


if __name__ == "__main__":
    main()
