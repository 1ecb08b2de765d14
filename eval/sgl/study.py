"""What SGL keeps of the bundled pair's accuracy: every method at equal layer-averaged retention, in one run.

    python -m eval.sgl.study --choose fastv --out eval/sgl/results/fastv_layers.json      # validation questions only
    python -m eval.sgl.study --choose diversity --out eval/sgl/results/diversity.json     # these too
    torchrun --nproc-per-node 2 -m eval.sgl.study --out eval/sgl/results/study.json

Questions, records, sharing of the guide's run and going on after a kill are those of `eval.grid`; here methods are
compared at equal cost instead of at equal `keep`. Seconds are measured in `eval.speed.sgl`. Whatever is free is chosen
on validation scenes: the layer from which FastV drops tokens and the exponent of guided diversity by the first two
commands, the exit's threshold by `eval.sgl.calibrate`, the adaptive budgets' fraction by `eval.sgl.top_p`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from demos.tiny_vlm.questions import SCORED
from eval.exits import BAD_INPUT
from eval.plots import prefill_flops
from eval.provenance import provenance, write_record
from eval.run import evaluate
from eval.settings import DIVERSE, DIVERSE_EXIT, SGL_EXIT, SHORTCUTS, SMALL, Run, Settings
from eval.sgl.top_p import BUDGETS, bounds
from vlmprune.errors import VlmpruneError
from vlmprune.harness.format import note
from vlmprune.harness.models import quiet
from vlmprune.harness.stats import paired, standard_error

RETENTION = (0.64, 0.50, 0.35, 0.18, 0.09, 0.05)
LAYERS = 6  # of the bundled large model
QUESTIONS = 2112  # of the test split
CHOICES = {"fastv": 400, "diversity": 960}  # what is chosen here, and on how many questions of the validation split
EXPONENTS = (0.5, 1.0, 2.0)
# Run's name -> the page's.
NAMES = {
    SMALL: "small alone",
    SGL_EXIT: "sgl + exit",
    DIVERSE: "sgl + diversity",
    DIVERSE_EXIT: "sgl + diversity + exit",
    **dict(zip(SHORTCUTS, ("sgl, guide_steps=1", "sgl, guide pruned"), strict=True)),
}
ADAPTIVE = "sgl + diversity + top-p"
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class StudyRow:
    """A method with its budget and depth, listed under a layer-averaged retention or a fraction of tokens."""

    method: str
    keep: float | None = None
    layer: int = 0
    at: tuple[float, ...] = ()  # the retention points of table 1 that it stands for
    entering: tuple[float, ...] = ()  # the fractions of tokens entering the LM of table 2

    def run(self, task: str) -> Run:
        """The same for the harness."""
        if self.keep is None:
            return Run(task, self.method, None, None)
        return Run(task, self.method, f"{self.keep:.6g}", str(self.layer))


@dataclass(frozen=True)
class StudySettings(Settings):
    """Settings whose runs are listed one by one."""

    listed: tuple[Run, ...] = ()

    def runs(self) -> Iterator[Run]:
        yield from self.listed


def fraction(retention: float, depth: int, layers: int = LAYERS) -> float | None:
    """The budget r that gives a layer-averaged retention R = K/L + (1 - K/L) r when tokens go before layer K."""
    keep = (retention - depth / layers) / (1 - depth / layers)
    return keep if keep > 0.005 else None


def fastv_candidates() -> list[StudyRow]:
    """Every layer from which FastV can reach a retention; it reads attention, so it cannot drop before layer 1."""
    return [
        StudyRow("fastv", keep, depth, (retention,))
        for retention in RETENTION
        for depth in range(1, LAYERS)
        if (keep := fraction(retention, depth)) is not None
    ]


def depth_of(retention: float) -> int:
    """The paper's rule K = int(keep x L), or the next shallower K that can give this retention."""
    return next(k for k in (2, 1, 0) if (r := fraction(retention, k)) is not None and int(r * LAYERS) >= k)


def diversity_candidates() -> list[StudyRow]:
    """Guided diversity with every exponent at the small budgets."""
    return [
        StudyRow(f"sgl+diversity={exponent:g}", fraction(at, depth_of(at)), depth_of(at), (at,))
        for exponent in EXPONENTS
        for at in BUDGETS
    ]


def adaptive(budgets: Mapping[str, Mapping[str, float]]) -> list[StudyRow]:
    """Guided diversity whose images keep as many tokens as they need, on average the budget."""
    out = []
    for name, chosen in budgets.items():
        budget = float(name)
        floor, keep = bounds(budget)
        method = f"{DIVERSE}+top_p={chosen['top_p']:g}+floor={floor:g}"
        out.append(StudyRow(method, keep, 0, () if depth_of(budget) else (budget,), (budget,)))
    return out


def rows(fastv_layers: Mapping[str, int]) -> list[StudyRow]:
    """Every fixed budget of the study; `fastv_layers` says FastV's layer for each retention that it can reach."""
    out = [StudyRow(name) for name in ("none", SMALL, "blind")]
    out += [StudyRow(name, r, 0, (r,), (r,)) for name in ("random", "uniform", "downsample") for r in RETENTION]
    out += [one for one in fastv_candidates() if fastv_layers.get(f"{one.at[0]:g}") == one.layer]
    for retention in RETENTION:
        depth = depth_of(retention)
        for name in ("fastv-oracle", "sgl", SGL_EXIT, DIVERSE, DIVERSE_EXIT, *SHORTCUTS):
            out.append(StudyRow(name, fraction(retention, depth), depth, (retention,), () if depth else (retention,)))
            if depth and name not in SHORTCUTS:
                out.append(StudyRow(name, retention, 0, (), (retention,)))
    return out


def summaries(table: Sequence[StudyRow], task: str, limit: int, folder: Path) -> list[dict[str, Any]] | None:
    """Answer what is open; every row's summary, or None while another process has questions left."""
    listed = tuple(row.run(task) for row in table)
    whole = StudySettings((task,), (), (), str(folder), limit=limit, batch_size=32, share=True, listed=listed)
    with quiet():
        evaluate(whole)
    if not whole.finished():
        return None
    return [json.loads((whole.folder(run) / "summary.json").read_text()) for run in listed]


def chosen_exponent(table: Sequence[StudyRow], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The method with the best mean accuracy over the budgets, and what all of them gave."""
    tried: dict[str, dict[str, float]] = {}
    for row, one in zip(table, found, strict=True):
        tried.setdefault(row.method, {})[f"{row.at[0]:g}"] = one["value"]
    return {"method": max(tried, key=lambda name: mean(tried[name].values())), "tried": tried}


def chosen(table: Sequence[StudyRow], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For each retention the layer with the best accuracy, the shallower of equals, and what all of them gave."""
    tried: dict[str, dict[int, float]] = {}
    for row, one in zip(table, found, strict=True):
        tried.setdefault(f"{row.at[0]:g}", {})[row.layer] = one["value"]
    return {"layers": {at: max(layers, key=lambda k: (layers[k], -k)) for at, layers in tried.items()}, "tried": tried}


CHOSEN = {"fastv": chosen, "diversity": chosen_exponent}


def records(table: Sequence[StudyRow], found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows for the page: accuracy, costs with the guide's, and paired differences from `none` and from SGL."""
    none, small = found[0], found[1]
    out = []
    for row, one in zip(table, found, strict=True):
        if one["units"]["ids_sha256"] != none["units"]["ids_sha256"] or one["bad_count"]:
            raise VlmpruneError(f"The row {row.run('').name!r} lacks questions that others have; run the study again.")
        sgl = next(
            (s for r, s in zip(table, found, strict=True) if r.method == "sgl" and set(r.at) & set(row.at)), None
        )
        costs, whole = one["costs"], none["costs"]
        out.append(
            {
                "name": ADAPTIVE if "+top_p=" in row.method else NAMES.get(row.method, row.method),
                "keep": row.keep,
                "layer": row.layer,
                "at_retention": list(row.at),
                "at_entering": list(row.entering),
                "accuracy": one["value"],
                **{name: costs[name] for name in ("lm_tokens", "layer_avg_tokens")},
                "flops_share": (prefill_flops(one) or 0) / whole["prefill_flops"],
                "kv_share": costs["kv_bytes"] / whole["kv_bytes"],
                "exits": costs.get("exited_share"),
                "standard_error": standard_error(ratio(one)),
                "vs_none": paired(ratio(one), ratio(none)).record(),
                "vs_small": paired(ratio(one), ratio(small)).record(),
                **({} if sgl is None else {"vs_sgl": paired(ratio(one), ratio(sgl)).record()}),
                **parts(one["scores"], small["scores"]),
            }
        )
    return out


def ratio(summary: Mapping[str, Any]) -> tuple[list[float], list[float] | None]:
    """A run's units, which are scenes: each has one question."""
    return summary["units"]["above"], summary["units"]["below"]


def parts(scores: Sequence[float], small: Sequence[float]) -> dict[str, Any]:
    """Accuracy by family, and by whether the small model alone was right, each with its standard error."""
    names = SCORED  # they take turns

    def of(chosen: Sequence[float]) -> dict[str, Any]:
        mean = sum(chosen) / max(1, len(chosen))
        return {"questions": len(chosen), "accuracy": mean, "standard_error": standard_error((chosen, None))}

    by_family = {name: of(scores[at :: len(names)]) for at, name in enumerate(names)}
    return {
        "families": {name: one["accuracy"] for name, one in by_family.items()},
        "family_errors": {name: one["standard_error"] for name, one in by_family.items()},
        "small_right": of([mine for mine, other in zip(scores, small, strict=True) if other == 1]),
        "small_wrong": of([mine for mine, other in zip(scores, small, strict=True) if other == 0]),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Choose, or run the study; bad input is one line on stderr and status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.sgl.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--choose", choices=CHOICES, help="pick this on validation questions")
    parser.add_argument("--limit", type=int, help="only the first N questions")
    parser.add_argument("--records", type=Path, default=Path("runs/sgl_study"), help="what is finished, to go on from")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    task, limit = ("scenes-validation", CHOICES[args.choose]) if args.choose else ("scenes", QUESTIONS)
    try:
        if args.choose:
            table = fastv_candidates() if args.choose == "fastv" else diversity_candidates()
        else:
            choices = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in ("fastv_layers", "top_p")}
            table = [*rows(choices["fastv_layers"]["layers"]), *adaptive(choices["top_p"]["budgets"])]
        found = summaries(table, task, args.limit or limit, args.records)
        if found is None:
            return 0  # the process that finishes last writes the record
        about = provenance(
            model="the bundled pair", backend=found[0]["backend"], questions=found[0]["questions"], task=task
        )
        if args.choose:
            write_record({"about": about, **CHOSEN[args.choose](table, found)}, args.out)
        else:
            about |= {"exit_at": StudySettings((), (), (), "").exit_at, "chosen_on_validation": choices}
            write_record({"about": about, "rows": records(table, found)}, args.out)
    except VlmpruneError as error:
        note(str(error))
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
