"""Answers questions: the same object runs in this process, in each of several, and in each actor of Ray's pool."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vlmprune.cli.measure import Contender, backend
from vlmprune.cli.models import Models, load_models
from vlmprune.errors import VlmpruneError
from vlmprune.flow.score import lattice_cells
from vlmprune.report import Report

from .settings import BLIND, SMALL, Run, Settings
from .tasks.base import Sample, Task
from .tasks.load import Data, load
from .tasks.registry import task_class

LATTICE = 12  # kept tokens are counted on 12 x 12 cells of the picture, whatever the model's grid
HASHED_VALUES = 4096  # of every weight; a retrained model differs in all of them


class Worker:
    """Holds what runs share: the models once, every task's data once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._data: dict[str, tuple[Task, Data]] = {}
        self._contenders: dict[Run, Contender] = {}
        self._hashes: dict[int, str] = {}

    @cached_property
    def models(self) -> Models:
        settings = self.settings
        return load_models(settings.model, settings.guide, trust_remote_code=settings.trust_remote_code)

    def data(self, name: str) -> tuple[Task, Data]:
        """A task and its questions."""
        if name not in self._data:
            settings = self.settings
            task = task_class(name)(boxes=settings.boxes)
            data = load(task, Path(settings.data), hub=settings.hub, limit=settings.limit, strict=settings.strict)
            self._data[name] = task, data
        return self._data[name]

    def contender(self, run: Run) -> Contender:
        """The model and method of a run.

        Raises:
            VlmpruneError: there is no small model where one is needed.
        """
        if run not in self._contenders:
            models = self.models
            model, processor = models.model, models.processor
            if run.method == SMALL:
                if models.small is None:
                    raise VlmpruneError(f"The row {SMALL!r} needs a small model beside --model; name one with --guide.")
                model, processor = models.small, models.small_processor
            method = self.settings.method(run, models)
            self._contenders[run] = Contender(run.method, run.keep or "", model, processor, method)
        return self._contenders[run]

    def identity(self, run: Run) -> dict[str, Any]:
        """What must not change between the parts of a run."""
        task, _ = self.data(run.task)
        contender, models = self.contender(run), self.models
        if id(contender.model) not in self._hashes:
            self._hashes[id(contender.model)] = weights_hash(contender.model)
        described = contender.method.describe()
        return {
            "task": run.task,
            "method": run.method,
            "keep": run.keep,
            "options": {k: v for k, v in described.items() if k != "name"},
            "model": models.small_name if run.method == SMALL else models.name,
            "weights": self._hashes[id(contender.model)],
            "guide": models.small_name if "guide" in described else None,
            "backend": backend(contender.model),
            "max_new_tokens": self.settings.max_new_tokens or task.max_new_tokens,
            "batch_size": self.settings.batch_size,
            "boxes": self.settings.boxes,
        }

    def batches(self, run: Run) -> list[list[int]]:
        """The questions' numbers in batches, the same however the work is dealt out."""
        count, size = len(self.data(run.task)[1].samples), self.settings.batch_size
        return [list(range(at, min(at + size, count))) for at in range(0, count, size)]

    def answer(self, run: Run, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The record lines of one batch; a picture that cannot be opened gives a line with `error`.

        Raises:
            VlmpruneError: with `strict`, a picture that cannot be opened.
        """
        task, data = self.data(run.task)
        lines: dict[int, dict[str, Any]] = {}
        usable, pictures = [], []
        for number in numbers:
            sample = data.samples[number]
            try:
                pictures.append(sample.picture())
                usable.append(number)
            except VlmpruneError as error:
                if self.settings.strict:
                    raise
                lines[number] = {"id": sample.id, "prompt_sha256": sha(sample.prompt), "error": str(error)}
        if usable:
            samples = [data.samples[number] for number in usable]
            shown: list[Any] = [None] * len(pictures) if run.method == BLIND else pictures
            contender = self.contender(run)
            contender.answers.clear()
            contender.reports.clear()
            contender.run(
                shown,
                [sample.prompt for sample in samples],
                record=True,
                max_new_tokens=self.settings.max_new_tokens or task.max_new_tokens,
            )
            for at, (number, sample) in enumerate(zip(usable, samples, strict=True)):
                text = contender.answers[0][at]
                report = slim(contender.reports[0], at) | {"answer_tokens": self._tokens(contender, text)}
                lines[number] = self._line(
                    task, sample, text, hashlib.sha256(pictures[at].tobytes()).hexdigest(), report
                )
        return [lines[number] for number in numbers]

    def _tokens(self, contender: Contender, text: str) -> int:
        """Length of an answer, its end included; from its text, since processors differ in what they return."""
        tokenizer = getattr(contender.processor, "tokenizer", contender.processor)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1

    def _line(self, task: Task, sample: Sample, text: str, picture: str, report: dict[str, Any]) -> dict[str, Any]:
        parsed = task.read(sample, text)
        return {
            "id": sample.id,
            "group": sample.group or sample.id,
            "prompt_sha256": sha(sample.prompt),
            "picture_sha256": picture[:16],
            "answer": text,
            "parsed": parsed,
            "score": task.score(sample, parsed),
            "meta": sample.meta,
            "report": report,
        }


def sha(text: str) -> str:
    """The first 16 digits of a text's sha256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights_hash(model: Any) -> str:
    """A hash of every weight's name, shape and some 4,096 evenly spaced values: seconds for 7B weights, not minutes."""
    total = hashlib.sha256()
    for name, weight in model.state_dict().items():
        flat = weight.detach().flatten()
        values = flat[:: max(1, flat.numel() // HASHED_VALUES)].float().cpu().numpy()
        total.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + values.tobytes())
    return total.hexdigest()[:16]


def slim(report: Report, sample: int) -> dict[str, Any]:
    """One sample's part of a batch's report, without what can be large.

    Sums over the batch (FLOPs, bytes, seconds) are shared out evenly. `cells`: kept and all visual tokens by the cell
    of a 12 x 12 lattice over the picture.
    """
    whole = report.to_dict()
    size = len(report.visual_tokens)
    out: dict[str, Any] = {}
    for name, value in whole.items():
        if value is None or name in ("images", "layer_lengths", "method", "notes"):
            continue
        if isinstance(value, list):
            out[name] = value[sample] if len(value) == size else value
        elif name == "seconds":
            out[name] = {stage: round(spent / size, 6) for stage, spent in value.items()}
        elif isinstance(value, int | float) and ("flops" in name or "bytes" in name):
            out[name] = value / size
        else:
            out[name] = value
    kept, every = [0] * LATTICE**2, [0] * LATTICE**2
    for span in report.images[sample]:
        cells = lattice_cells(span, LATTICE, LATTICE).tolist()
        chosen = set(span.positions.tolist() if span.kept is None else span.kept.tolist())
        for position, cell in zip(span.positions.tolist(), cells, strict=True):
            if cell >= 0:
                every[cell] += 1
                kept[cell] += position in chosen
    return out | {"cells": {"kept": kept, "all": every}}
