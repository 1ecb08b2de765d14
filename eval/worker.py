"""Answers questions: the same object runs in this process, in each of several, and in each actor of Ray's pool."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from vlmprune.accounting.report import Report
from vlmprune.errors import PromptError, VlmpruneError
from vlmprune.flow.locate import ImageSpan
from vlmprune.flow.score import lattice_cells
from vlmprune.harness.measure import MethodRun, backend
from vlmprune.harness.models import Models, load_models, weights_hash
from vlmprune.harness.parse import number
from vlmprune.inputs.placeholders import check_texts
from vlmprune.inputs.video import Clip

from .frames import FewerFrames
from .scorers.boxes import resized
from .settings import BLIND, SMALL, VIDEO_BASELINES, Run, Settings
from .shared import BatchCache
from .tasks.base import Sample, Task
from .tasks.load import Data, load
from .tasks.registry import task_class

LATTICE = 12  # kept tokens are counted on 12 x 12 cells of the image, whatever the model's grid
SCORERS = 2  # goes up where an answer may be scored otherwise than before; records then score theirs again
# What the record of an answered question has.
LINE = frozenset({"id", "group", "prompt_sha256", "answer", "parsed", "score", "meta", "report"})


class Worker:
    """Holds what runs share: the models once, every task's data once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._data: dict[str, tuple[Task, Data]] = {}
        self._method_runs: dict[Run, MethodRun] = {}
        self._hashes: dict[int, str] = {}
        self._fewer: FewerFrames | None = None
        self._shared = BatchCache()

    @cached_property
    def models(self) -> Models:
        settings = self.settings
        return load_models(settings.model, settings.guide, trust_remote_code=settings.trust_remote_code)

    def seen_size(self, task: Task, processor: Any) -> None:
        """Tell a task in which size of an image the boxes of this model are."""
        task.seen_size = lambda size: size
        if self.settings.boxes != "resized" and not type(processor).__name__.startswith("Qwen2_5_VL"):
            return
        try:
            images: Any = processor.image_processor
            factor = int(images.patch_size * images.merge_size)
            least, most = (
                int(images.size[edge] or images.size[pixels])
                for edge, pixels in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels"))
            )
        except (AttributeError, KeyError, TypeError):
            raise VlmpruneError(
                f"--boxes {self.settings.boxes} is for processors that resize images as Qwen2.5-VL's does, and "
                f"{type(processor).__name__} does not; give pixels or thousandths."
            ) from None
        task.seen_size = partial(resized, factor=factor, least=least, most=most)

    def data(self, name: str) -> tuple[Task, Data]:
        """A task and its questions."""
        if name not in self._data:
            settings = self.settings
            task = task_class(name)(boxes=settings.boxes, reading=settings.reading)
            data = load(task, Path(settings.data), limit=settings.limit, strict=settings.strict, **settings.where)
            self._data[name] = task, data
        return self._data[name]

    def method_run(self, run: Run) -> MethodRun:
        """The model and method of a run.

        Raises:
            VlmpruneError: there is no small model where one is needed.
        """
        if run not in self._method_runs:
            models = self.models
            model, processor = models.model, models.processor
            if run.method == SMALL:
                if models.small is None:
                    raise VlmpruneError(f"The row {SMALL!r} needs a small model beside --model; name one with --guide.")
                model, processor = models.small, models.small_processor
            method = self.settings.method(run, models)
            self._method_runs[run] = MethodRun(model, processor, method, run.method, run.keep or "")
        return self._method_runs[run]

    def identity(self, run: Run) -> dict[str, Any]:
        """What must not change between the parts of a run."""
        task, _ = self.data(run.task)
        method_run, models = self.method_run(run), self.models
        if id(method_run.model) not in self._hashes:
            self._hashes[id(method_run.model)] = weights_hash(method_run.model)
        described = method_run.method.describe()
        return {
            "task": run.task,
            "method": run.method,
            "keep": run.keep,
            "options": {k: v for k, v in described.items() if k != "name"},
            "model": models.small_name if run.method == SMALL else models.name,
            "weights": self._hashes[id(method_run.model)],
            "guide": models.small_name if "guide" in described else None,
            "backend": backend(method_run.model),
            "max_new_tokens": self.settings.max_new_tokens or task.max_new_tokens,
            "batch_size": self.settings.batch_size,
            "boxes": self.settings.boxes,
            "share": self.settings.share,
            "reading": self.settings.reading,
            "dataset": self.settings.dataset,
            "config": self.settings.config,
            "split": self.settings.split,
            "scorers": SCORERS,
        } | ({"frames": self.frames(task)} if task.frames is not None else {})

    def frames(self, task: Task) -> int | None:
        """How many frames of a video are shown, None of images."""
        return task.frames and (self.settings.frames or task.frames)

    def _shown(self, run: Run, media: Any) -> Any:
        """An image or clip as the run's row shows it.

        Raises:
            VlmpruneError: a baseline that cannot come down to its budget.
        """
        if run.method == BLIND:
            return None
        if run.method not in VIDEO_BASELINES:
            return media
        if self._fewer is None:
            self._fewer = FewerFrames(self.models.model, self.models.processor)
        return self._fewer.shown(media, run.method, None if run.keep is None else number(run.keep, "--keep"))

    def batches(self, run: Run) -> list[list[int]]:
        """The questions' numbers in batches, the same however the work is dealt out."""
        count, size = len(self.data(run.task)[1].samples), self.settings.batch_size
        return [list(range(at, min(at + size, count))) for at in range(0, count, size)]

    def answer(self, run: Run, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The record lines of one batch; an unreadable image or question gives a line with `error`.

        Raises:
            VlmpruneError: with `strict`, an image that cannot be opened or that the model's processor refuses, or a
                question that holds an image's token.
        """
        task, data = self.data(run.task)
        if not self.settings.share:
            self._shared = BatchCache()
        self._shared.batch((run.task, *numbers))
        lines: dict[int, dict[str, Any]] = {}
        usable, images, shown = [], [], []
        for at in numbers:
            sample = data.samples[at]
            try:
                for processor in (self.models.processor, self.models.small_processor):
                    if processor is not None:  # of both, so that all runs answer the same questions
                        check_texts(processor, sample.prompt)
                media = self._shared.once(at, partial(sample.load, self.frames(task)))
                shown.append(self._shown(run, media))
                images.append(media)
                usable.append(at)
            except VlmpruneError as error:
                if self.settings.strict:
                    raise
                lines[at] = self._failed(sample, error)
        if usable:
            samples = [data.samples[at] for at in usable]
            method_run = self.method_run(run)
            answer = method_run.answer
            if self.settings.share and run.method not in (BLIND, *VIDEO_BASELINES):
                answer = partial(self._shared.answer, method_run)
            prompts = [sample.prompt for sample in samples]
            longest = self.settings.max_new_tokens or task.max_new_tokens
            try:
                texts, report = answer(shown, prompts, max_new_tokens=longest)
            except PromptError as error:
                if self.settings.strict:
                    raise
                if len(numbers) > 1:  # one of them is to blame
                    return [line for at in numbers for line in self.answer(run, [at])]
                return [self._failed(samples[0], error)]
            reports = slim(report)
            self.seen_size(task, method_run.processor)
            for place, (at, sample) in enumerate(zip(usable, samples, strict=True)):
                own = reports[place] | {"answer_tokens": self._tokens(method_run, texts[place])}
                digest = self._shared.once(f"sha256 of {at}", partial(digest_of, images[place]))
                lines[at] = self._line(task, sample, texts[place], digest, own)
        return [lines[at] for at in numbers]

    def _failed(self, sample: Sample, error: VlmpruneError) -> dict[str, Any]:
        return {"id": sample.id, "prompt_sha256": sha(sample.prompt), "error": str(error)}

    def _tokens(self, method_run: MethodRun, text: str) -> int:
        """Length of an answer, its end included; from its text, since processors differ in what they return."""
        tokenizer = getattr(method_run.processor, "tokenizer", method_run.processor)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1

    def rescored(self, run: Run, samples: Mapping[str, Sample], line: dict[str, Any]) -> dict[str, Any]:
        """A line of an earlier record with its answer read and scored as today."""
        if "error" in line:
            return line
        task, _ = self.data(run.task)
        self.seen_size(task, self.method_run(run).processor)
        sample = samples[line["id"]]
        parsed = task.read(sample, line["answer"])
        return {**line, "parsed": parsed, "score": task.score(sample, parsed)}

    def _line(self, task: Task, sample: Sample, text: str, digest: str, report: dict[str, Any]) -> dict[str, Any]:
        parsed = task.read(sample, text)
        return {
            "id": sample.id,
            "group": sample.group or sample.id,
            "prompt_sha256": sha(sample.prompt),
            "picture_sha256": digest[:16],
            "answer": text,
            "parsed": parsed,
            "score": task.score(sample, parsed),
            "meta": sample.meta,
            "report": report,
        }


def digest_of(media: Any) -> str:
    """sha256 of an image's pixels, or of all frames' of a clip."""
    found = hashlib.sha256()
    for image in media.frames if isinstance(media, Clip) else [media]:
        found.update(image.tobytes())
    return found.hexdigest()


def sha(text: str) -> str:
    """The first 16 digits of a text's sha256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def slim(report: Report) -> list[dict[str, Any]]:
    """Each sample's part of a batch's report, without what can be large.

    Sums over the batch (FLOPs, bytes, seconds) are shared out evenly. `cells`: kept and all visual tokens by the cell
    of a 12 x 12 lattice over the image. Of videos, which have thousands of tokens, how many of each frame were kept
    stands instead of which.
    """
    size = len(report.visual_tokens)
    same: dict[str, Any] = {}
    each: list[dict[str, Any]] = [{} for _ in range(size)]
    for name in (field.name for field in fields(report)):
        value = getattr(report, name)
        if value is None or name in ("images", "layer_lengths", "method", "notes"):
            continue
        if isinstance(value, list):
            for sample, own in zip(each, value, strict=True):
                sample[name] = own.tolist() if isinstance(own, torch.Tensor) else own
        elif name == "seconds":
            same[name] = {stage: round(spent / size, 6) for stage, spent in value.items()}
        elif "flops" in name or "bytes" in name:
            same[name] = value / size
        else:
            same[name] = value
    for sample, spans in zip(each, report.images, strict=True):
        if videos := [span for span in spans if span.kind == "video"]:
            sample.pop("kept"), sample.pop("rows", None)
            sample["frames_kept"] = [span.frames_kept for span in videos]
    return [same | own | {"cells": cells_of(spans)} for own, spans in zip(each, report.images, strict=True)]


def cells_of(spans: Sequence[ImageSpan]) -> dict[str, list[int]]:
    """Kept and all visual tokens of a sample by the cell that they lie in."""
    kept, every = (torch.zeros(LATTICE**2, dtype=torch.long) for _ in range(2))
    for span in spans:
        cells = lattice_cells(span, LATTICE, LATTICE)
        every += torch.bincount(cells[cells >= 0], minlength=LATTICE**2)
        kept += torch.bincount(cells[(cells >= 0) & span.stays], minlength=LATTICE**2)
    return {"kept": kept.tolist(), "all": every.tolist()}
