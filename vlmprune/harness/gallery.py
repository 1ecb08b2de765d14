"""The gallery of a comparison: one HTML file with every image, every answer, and what each method kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from ..accounting.scores import plain
from ..errors import VlmpruneError
from .compared_row import BLIND, ComparedRow
from .kept_masks import picture
from .own_data import OwnQuestion
from .record import write_text

MOST = 200  # questions shown; a page of more is slow to scroll on a phone


def write_gallery(found: Any, path: Path) -> Path:
    """Write a `Comparison` as one self-contained file.

    Raises:
        VlmpruneError: it cannot be written.
    """
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("gallery.html")
    text = template.render(page(found)).encode("utf-8", "replace").decode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise VlmpruneError(f"{str(path)!r} cannot be written ({error.strerror}); choose another place") from None
    return path


def page(found: Any) -> dict[str, Any]:
    """What the template shows."""
    pruned = [lines for row, lines in zip(found.rows, found.lines, strict=True) if row.method != BLIND]
    counts = [changes(pruned, at) for at in range(len(found.questions))]
    order = sorted(range(len(counts)), key=lambda at: -counts[at])[:MOST]  # stable: else in the data's order
    images: dict[str, dict[str, Any]] = {}
    return {
        "about": found.about,
        "caption": found.caption,
        "circumstances": found.circumstances,
        "headings": [heading.replace("\n", " ") for heading in found.columns],
        "notes": found.notes,
        "left_out": len(counts) - len(order),
        "recommendation": found.recommendation,
        "rows": [
            {"cells": cells, "best": row is found.recommended}
            for row, cells in zip(found.rows, found.table(), strict=True)
        ],
        "questions": [
            shown(found.questions[at], found.rows, [row[at] for row in found.lines], counts[at], images) for at in order
        ],
        "images": images,
    }


def changes(lines: Sequence[Sequence[Mapping[str, Any]]], at: int) -> int:
    """How many rows answered a question in other words than the first."""
    answers = [plain(row[at]["answer"]) for row in lines if "answer" in row[at]]
    return sum(answer != answers[0] for answer in answers[1:])


def shown(
    one: OwnQuestion,
    rows: Sequence[ComparedRow],
    lines: Sequence[Mapping[str, Any]],
    changed: int,
    images: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """A question with every row's answer; its images are added to `images` under the names of their classes."""
    names = [f"i{medium.seen}" for medium in one.media]
    try:
        for name, medium in zip(names, one.media, strict=True):
            if name not in images:
                images[name] = picture(medium.opened())
    except VlmpruneError:  # moved away since it was asked about
        names = []
    right = [one.options.get(answer, answer) for answer in one.answers]
    return {
        "where": one.where, "text": one.prompt, "right": " or ".join(dict.fromkeys(right)), "scorer": one.scorer,
        "changed": changed, "images": names,
        "rows": [card(one, row, line, names) for row, line in zip(rows, lines, strict=True)],
    }  # fmt: skip


def card(one: OwnQuestion, row: ComparedRow, line: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """One row's answer to a question, and what it kept of each image."""
    if "answer" not in line:
        return {"label": row.label, "answer": line["error"], "fate": "", "masks": [], "kept": ""}
    score = one.score(line["answer"]) if one.answers else None
    kept = f"{line['kept_tokens']} of {line['visual_tokens']} tokens kept" if line["visual_tokens"] else ""
    pruned = line["kept_tokens"] < line["visual_tokens"]
    masks = [(name, mask) for name, mask in zip(names, line["masks"], strict=False) if mask and pruned]
    if line["exited"]:
        masks, kept = [], "answered by the small model alone"
    return {
        "label": row.label,
        "answer": line["answer"] or "(nothing)",
        "fate": "" if score is None else {0.0: "wrong", 1.0: "right"}.get(score, f"{score:.2f}"),
        "masks": masks,
        "kept": kept,
    }
