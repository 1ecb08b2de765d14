"""What a comparison on own questions found: rows with accuracy and cost, changed answers, tables, a recommendation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, median
from typing import Any

from ..accounting.scores import plain
from ..errors import VlmpruneError
from .compared_row import BLIND, CAPTION, COLUMNS, COST_CAPTION, SCORES, ComparedRow, cells
from .gallery import write_gallery
from .own_data import OwnQuestion, clusters
from .recommend import in_words, recommended
from .stats import paired, standard_error

# The standard normal's 97.5 % and 80 % quantiles: a loss of so many standard errors is seen four times out of five.
SEEN = 1.96 + 0.84
LEAST = 6  # clusters that must all lose before p, two-sided, is below 0.05: 2 / 2**6


@dataclass(frozen=True)
class Comparison:
    """Methods on a user's own questions.

    `rows`: the unpruned model's first. `lines[row][question]`: each answer with what it cost, or an `error`. `failed`:
    questions that not every row could answer and that no row counts, with the reason.
    """

    rows: Sequence[ComparedRow]
    questions: Sequence[OwnQuestion]
    lines: Sequence[Sequence[Mapping[str, Any]]]
    about: Mapping[str, Any]
    failed: Mapping[str, str]

    @property
    def scored(self) -> bool:
        """Whether every question has a right answer; else rows have an answer in place of an accuracy."""
        return all(one.answers for one in self.questions)

    @property
    def columns(self) -> list[str]:
        """The headings of the table."""
        return [*COLUMNS[:2], *(SCORES if self.scored else ["answer"]), *COLUMNS[2:]]

    @cached_property
    def changed(self) -> list[dict[str, Any]]:
        """Pruned answers in other words than the unpruned model's: those that lost first, then the gains."""
        found = []
        for question, one in enumerate(self.questions):
            before = self.lines[0][question].get("answer")
            for row, lines in zip(self.rows[1:], self.lines[1:], strict=True):
                after = lines[question].get("answer")
                if before is None or after is None or plain(before) == plain(after):
                    continue
                if row.method == BLIND or one.where in self.failed:
                    continue
                found.append({
                    "where": one.where, "question": one.question, "answers": list(one.answers), "method": row.method,
                    "keep": row.keep, "before": before, "after": after, "score_before": one.score(before),
                    "score_after": one.score(after),
                })  # fmt: skip
        return sorted(found, key=lambda one: one["score_after"] - one["score_before"] or math.inf)

    @cached_property
    def recommended(self) -> ComparedRow | None:
        """The row to use, None where none can be recommended."""
        return recommended(self.rows)

    @cached_property
    def recommendation(self) -> str:
        """Which row to use and why, in a sentence or two, with what this many questions cannot show."""
        return in_words(self.rows, self.about["clusters"])

    def table(self, *, short: bool = False) -> list[list[str]]:
        """The cells of each row, under `columns`; `short`: FLOPs and bytes in percent alone."""
        return [cells(row, self.rows[0], len(self.columns), short=short) for row in self.rows]

    def to_markdown(self) -> str:
        """The table in Markdown, the recommendation, and what the numbers mean."""
        escaped = [[cell.replace("|", "\\|") for cell in line] for line in self.table()]
        heading = [name.replace("\n", " ") for name in self.columns]
        lines = [heading, ["---"] * 2 + ["---:"] * (len(heading) - 2), *escaped]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return "\n\n".join([table, self.recommendation, *self.notes, self.caption, self.circumstances]) + "\n"

    __str__ = _repr_markdown_ = to_markdown

    @property
    def notes(self) -> list[str]:
        """Rows that do not run and questions that no row counts, with the reasons."""
        rows = [f"{row.label} does not run: {row.error}" for row in self.rows if row.error]
        return rows + [f"{where} is left out of every row: {why}" for where, why in self.failed.items()]

    @property
    def caption(self) -> str:
        """What the columns mean."""
        return CAPTION if self.scored else COST_CAPTION

    @property
    def circumstances(self) -> str:
        """Model, machine and settings in a line."""
        return "; ".join(f"{name}: {value}" for name, value in self.about.items() if value is not None)

    def to_html(self, path: Any) -> Path:
        """Write a gallery, one file that needs nothing else: images, what was kept, every answer.

        Raises:
            VlmpruneError: it cannot be written.
        """
        return write_gallery(self, Path(path).expanduser())

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable: everything but the images."""
        return {
            "about": dict(self.about),
            "rows": [asdict(row) for row in self.rows],
            "recommendation": self.recommendation,
            "changed": self.changed,
            "failed": dict(self.failed),
        }


def summarise(
    questions: Sequence[OwnQuestion],
    runs: Sequence[tuple[str, str | None, Mapping[str, Any]]],
    lines: Sequence[Sequence[Mapping[str, Any]]],
    about: Mapping[str, Any],
) -> Comparison:
    """Rows from answers.

    Args:
        runs: name, budget and options of each row. lines: per row, per question.
    Raises:
        VlmpruneError: no question was answered by the unpruned model.
    """
    works = [any("answer" in line for line in row) for row in lines]
    if not works[0]:
        raise VlmpruneError(f"the model answered none of the questions: {lines[0][0]['error']}")
    failed = {
        one.where: str(row[at]["error"])
        for at, one in enumerate(questions)
        for row, any_there in zip(lines, works, strict=True)
        if any_there and "error" in row[at]
    }
    counted = [at for at, one in enumerate(questions) if one.where not in failed]
    if not counted:
        raise VlmpruneError(f"no question was answered by every row, the first since {next(iter(failed.values()))}")
    groups = clusters([questions[at] for at in counted])
    scored = all(one.answers for one in questions)
    chosen = [[row[at] for at in counted] for row in lines]
    scores = [
        [questions[at].score(line["answer"]) for at, line in zip(counted, row, strict=True)] if there and scored else []
        for row, there in zip(chosen, works, strict=True)
    ]
    rows = []
    for (name, keep, options), row, own, there in zip(runs, chosen, scores, works, strict=True):
        if not there:
            rows.append(ComparedRow(name, keep, options, error=str(row[0]["error"])))
            continue
        versus = {} if not rows else against(row, own, chosen[0], scores[0], groups)
        rows.append(ComparedRow(name, keep, options, **sums(row, own, groups), **versus))
    return Comparison(rows, questions, lines, about, failed)


def sums(row: Sequence[Mapping[str, Any]], scores: Sequence[float], groups: Sequence[int]) -> dict[str, Any]:
    """A row's accuracy and costs."""
    several = len(set(groups)) > 1
    stages = sorted({stage for line in row for stage in line["seconds"]})
    costs = {name: mean(line[name] for line in row) for name in (
        "visual_tokens", "kept_tokens", "lm_tokens", "layer_avg_tokens", "guide_flops", "kv_bytes",
    )}  # fmt: skip
    return {
        "questions": len(row),
        "accuracy": mean(scores) if scores else None,
        "standard_error": standard_error((scores, None), groups) if scores and several else None,
        "answer": row[0]["answer"] if len(row) == 1 else None,
        **costs,
        "flops": mean(line["prefill_flops"] + line["guide_flops"] for line in row),
        "seconds": median(line["seconds"]["total"] for line in row),
        "stages": {stage: median(line["seconds"].get(stage, 0.0) for line in row) for stage in stages},
    }


def against(
    row: Sequence[Mapping[str, Any]],
    scores: Sequence[float],
    unpruned: Sequence[Mapping[str, Any]],
    before: Sequence[float],
    groups: Sequence[int],
) -> dict[str, Any]:
    """A row against the unpruned one, question by question."""
    ratios = [
        other["seconds"]["total"] / max(own["seconds"]["total"], 1e-9) for own, other in zip(row, unpruned, strict=True)
    ]
    changed = sum(plain(a["answer"]) != plain(b["answer"]) for a, b in zip(row, unpruned, strict=True))
    costs = {"speed_up": median(ratios), "faster": mean(ratio > 1 for ratio in ratios), "changed": changed}
    if not scores:
        return costs
    found = paired((scores, None), (before, None), groups)
    changes = [own - other for own, other in zip(scores, before, strict=True)]
    known = math.isfinite(found.low)  # one cluster says nothing about others
    return costs | {
        "difference": found.difference,
        "low": found.low if known else None,
        "high": found.high if known else None,
        "p": found.p,
        "visible_loss": min(1.0, max(SEEN * standard_error((changes, None), groups), LEAST / len(set(groups)))),
        "lost": sum(change < 0 for change in changes),
        "gained": sum(change > 0 for change in changes),
    }
