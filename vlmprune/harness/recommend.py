"""Which row of a comparison to use: the cheapest without a measurable loss, and what so few questions cannot show."""

from __future__ import annotations

from collections.abc import Sequence

from .compared_row import BLIND, SMALL, ComparedRow

TOLERATED = 0.01  # accuracy that a recommended row may lose, measurable or not
BY_CHANCE = ("random", "uniform")  # look at nothing
DEAR = "fastv-oracle"  # runs the whole model first
MOSTLY = 0.75  # of the questions must be answered faster for a row to be called so
FEW = 30  # independent questions below which a recommendation is a first impression


def harmless(row: ComparedRow) -> bool:
    """Whether a row loses nothing that can be measured, and next to nothing in its numbers."""
    return row.difference is not None and not row.loses and row.difference >= -TOLERATED


def recommended(rows: Sequence[ComparedRow]) -> ComparedRow | None:
    """The cheapest harmless row by FLOPs, the guide's included; of equal ones the more accurate."""
    unpruned, *others = rows
    if not unpruned.accuracy:
        return None
    usable = [row for row in others if row.method not in (SMALL, BLIND, *BY_CHANCE, DEAR) and harmless(row)]
    usable = [row for row in usable if row.flops < unpruned.flops]
    return min(usable, key=lambda row: (row.flops, -(row.accuracy or 0)), default=None)


def in_words(rows: Sequence[ComparedRow], independent: int) -> str:
    """The recommendation with its reason, and what weakens it.

    Args:
        independent: how many clusters of questions there are.
    """
    unpruned, row = rows[0], recommended(rows)
    if unpruned.accuracy is None:
        return "No recommendation: it is not known which answer is right; give a file of questions that says so."
    if not unpruned.accuracy:
        return (
            "No recommendation: the unpruned model answers no question right, so nothing can be lost; look at its "
            "answers, and whether another scorer fits them."
        )
    if row is None:
        pruned = [one for one in rows[1:] if one.difference is not None and one.flops < unpruned.flops]
        best = max(pruned, key=lambda one: (one.difference or 0, -one.flops), default=None)
        least = "" if best is None else f" (the least: {best.label}, {points(best.difference)})"
        return f"No recommendation: no method at these budgets is without loss{least}; try a larger keep."
    return " ".join([f"{row.label}: {reason(row, unpruned)}", *doubts(rows, row, independent)])


def reason(row: ComparedRow, unpruned: ComparedRow) -> str:
    """Why this row, and how sure that is."""
    speed_up = (row.speed_up or 1.0) if (row.faster or 0.0) >= MOSTLY else 1.0
    time = f"{speed_up:.1f} times as fast" if speed_up >= 1.05 else "no faster on this machine"
    if not row.lost + row.gained:
        change = "no answer scored otherwise"
    elif row.low is None:
        change = points(row.difference)
    else:
        change = f"{points(row.difference)}, 95 % interval {100 * row.low:+.1f} to {100 * (row.high or 0):+.1f}"
    return (
        f"{100 * (1 - row.flops / unpruned.flops):.0f} % fewer FLOPs, {time}, no measurable loss on {row.questions} "
        f"questions ({change}); a loss below {100 * (row.visible_loss or 0):.0f} points cannot be seen with so many."
    )


def doubts(rows: Sequence[ComparedRow], row: ComparedRow, independent: int) -> list[str]:
    """What a reader should know before trusting it."""
    said = []
    if independent < FEW:
        said.append(f"{independent} independent questions give a first impression only.")
    cheap = [one for one in rows if one.method in BY_CHANCE and harmless(one) and one.flops <= 1.02 * row.flops]
    if cheap:
        said.append(
            f"{cheap[0].label}, which looks at nothing, is as right: these questions hardly tell methods apart."
        )
    for one in rows:
        if one.method == SMALL and harmless(one):
            said.append(f"The small model alone is as right ({one.accuracy:.3f}).")
        if one.method == BLIND and harmless(one):
            said.append(f"The model is as right without the image ({one.accuracy:.3f}): the questions can be guessed.")
    return said


def points(difference: float | None) -> str:
    """A difference of accuracies in points of a hundred."""
    return f"{100 * (difference or 0):+.1f} points"
