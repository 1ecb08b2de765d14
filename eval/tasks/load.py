"""A task's questions, read whole before anything is asked: what is usable, what is not, and a hash of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmprune.errors import VlmpruneError

from .base import Sample, Task, incomplete
from .readers import Bad, BadRow
from .source import Source


@dataclass
class Data:
    """The questions in order, what could not be used, and sha256 over all ids, prompts and truths, and which
    files it was read from."""

    samples: list[Sample] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    sha256: str = ""
    source: str = ""


def unusable(sample: Sample) -> str | None:
    """Why a record cannot hold a sample, if so; values that are no number (an empty cell of a table) become null."""
    sample.meta.update({name: None for name, value in sample.meta.items() if value != value})
    try:
        json.dumps([sample.id, sample.prompt, sample.truth, sample.meta], ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError) as error:
        return f"it holds what no JSON text can ({str(error)[:80]})"
    return None


def load(task: Task, root: Path, *, limit: int | None = None, strict: bool = False, **where: Any) -> Data:
    """Read a task.

    Args:
        root: the folder that holds one folder per task. limit: stop after so many usable questions; of a task whose
            units count whole, those that it cuts are finished. strict: raise at the first thing that is wrong. where:
            where else the data is (`Source`).
    Raises:
        VlmpruneError: a file is missing; with `strict` anything else too.
    """
    data, seen, content = Data(), set(), hashlib.sha256()
    groups: set[str] = set()

    def full() -> bool:
        return limit is not None and len(data.samples) >= limit

    def note(bad: Bad) -> None:
        if strict:
            raise VlmpruneError(
                f"The data of {task.name!r} has a fault at {bad.where}: {bad.why}; mend it or leave out --strict."
            )
        data.bad.append(bad)

    try:
        for one in task.samples(root, Source(**where)):
            if full() and not (isinstance(one, Sample) and one.group in groups):
                continue  # the members of a unit may stand anywhere in a file
            if isinstance(one, Bad):
                note(one)
            elif why := unusable(one):
                note(Bad(ascii(one.id)[1:-1], why))
            elif one.id in seen:
                note(Bad(one.id, "the id was used by an earlier question; the first one counts"))
            else:
                seen.add(one.id)
                groups.add(one.group)
                data.samples.append(one)
                content.update(json.dumps([one.id, one.prompt, one.truth], ensure_ascii=False).encode())
            if full() and not task.whole:
                break
    except BadRow as error:
        note(Bad(task.name, str(error)))
    if not data.samples and not data.bad:
        note(Bad(task.name, "the files hold no question"))
    if strict and task.whole:
        there = [{"group": one.group, "meta": one.meta} for one in data.samples]
        for unit, (found, wanted) in incomplete(there).items():
            note(Bad(unit, f"{found} of its {wanted} questions are there, and it counts only whole"))
    data.sha256, data.source = content.hexdigest(), task.source
    return data
