"""One row of a comparison on own questions: a method at a budget, how right it is and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .format import amount, milliseconds
from .stats import p_value

UNPRUNED, SMALL, BLIND = "none", "small alone", "no image"
FLOOR = ("random", "uniform", "downsample")  # rows of every table: what a method has to beat
SIGNIFICANT = 0.05
COLUMNS = (
    "method", "keep", "tokens\ninto LM", "layer\naverage", "prefill\nFLOPs", "of them\nguide", "KV cache",
    "median\ntime",
)  # fmt: skip
SCORES = ("accuracy", "p", "lost /\ngained")  # behind the first two columns
COST_CAPTION = "FLOPs: with the guide's"
CAPTION = (
    "accuracy ± standard error, clustered by image; p: paired permutation test against none, not corrected for the "
    f"number of rows; lost, gained: answers that scored lower or higher than unpruned; {COST_CAPTION}"
)


@dataclass(frozen=True)
class ComparedRow:
    """One method at one budget over all questions that every row answered; costs are means a question.

    `difference`: accuracy minus the unpruned model's, with its 95 % interval `low` to `high` and its `p`; None for the
    unpruned model, and as `accuracy` where no answer is known to be right. `answer`: that of the one question, where
    there is one. `visible_loss`: the smallest loss that this many questions show. `changed`: answers in other words.
    `flops`: of the prompt, the guide's included. `seconds`: the median; `speed_up`: the median over the questions of
    the unpruned seconds by its own, and `faster` the fraction of questions in which it was. `error`: why there are no
    answers.
    """

    method: str
    keep: str | None
    options: Mapping[str, Any]
    questions: int = 0
    answer: str | None = None
    accuracy: float | None = None
    standard_error: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    visible_loss: float | None = None
    changed: int = 0
    lost: int = 0
    gained: int = 0
    visual_tokens: float = 0
    kept_tokens: float = 0
    lm_tokens: float = 0
    layer_avg_tokens: float = 0
    flops: float = 0
    guide_flops: float = 0
    kv_bytes: float = 0
    seconds: float = 0
    speed_up: float | None = None
    faster: float | None = None
    stages: Mapping[str, float] | None = None
    error: str | None = None

    @property
    def label(self) -> str:
        """Method and budget in words."""
        return self.method if self.keep is None else f"{self.method} at {self.keep}"

    @property
    def loses(self) -> bool:
        """Whether it is measurably worse than the unpruned model."""
        return self.p is not None and self.p < SIGNIFICANT and (self.difference or 0) < 0


def cells(row: ComparedRow, unpruned: ComparedRow, width: int, *, short: bool = False) -> list[str]:
    """A row as text in `width` columns; `short`: FLOPs and bytes of pruned rows in percent alone."""
    if row.error is not None:
        return [row.method, row.keep or "", "does not run", *[""] * (width - 3)]

    def part(value: float, whole: float, unit: str = "") -> str:
        if not value or not whole:
            return "-"
        percent = f"{value / whole:.1%}" if row is not unpruned else ""
        return percent if percent and short else f"{amount(value, unit)} {f'({percent})' if percent else ''}".rstrip()

    return [
        row.method,
        row.keep or "",
        *(scores(row) if row.accuracy is not None else [row.answer or ""]),
        f"{row.lm_tokens:.1f}",
        f"{row.layer_avg_tokens:.1f}",
        part(row.flops, unpruned.flops),
        part(row.guide_flops, unpruned.flops),
        part(row.kv_bytes, unpruned.kv_bytes, "B"),
        milliseconds(row.seconds),
    ]


def scores(row: ComparedRow) -> list[str]:
    """Under `SCORES`."""
    spread = "" if row.standard_error is None else f" ± {row.standard_error:.3f}"
    fate = ["", ""] if row.p is None else [p_value(row.p), f"{row.lost} / {row.gained}"]
    return [f"{row.accuracy:.3f}{spread}", *fate]
