"""`vlmprune.compare`: methods and budgets on a user's own questions, with what each answers, costs and takes.

Every answer is appended to a record as soon as it is there, under a hash of everything that it depends on: a run that
was killed goes on, and one with another method or more questions answers only what is new.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..errors import VlmpruneError, checked
from .answer_book import AnswerBook
from .baselines import BUDGETS, WITH_EXIT, entries
from .compared_row import BLIND, FLOOR, SMALL, UNPRUNED
from .comparison import Comparison, summarise
from .kept_masks import masks
from .measure import MethodRun, backend
from .models import Models, make, options_of, weights_hash
from .own_data import OwnQuestion, clusters, read_questions
from .own_media import is_clip, sha256

USUAL = ("divprune", "fastv")  # of the command, where none is named; SGL too with a small model
TOKENS = 32  # of the longest answer
COSTS = ("lm_tokens", "layer_avg_tokens", "prefill_flops", "guide_flops", "kv_bytes")  # of a report; None is 0


@checked
def compare(
    model: Any,
    data: Any,
    methods: Any,
    *,
    processor: Any,
    guide: Any = None,
    keeps: Any = BUDGETS,
    guide_processor: Any = None,
    layer: float | None = None,
    scorer: str | None = None,
    seed: int = 0,
    max_new_tokens: int = TOKENS,
    out: Any = None,
    frames: int | None = None,
) -> Comparison:
    """Compare pruning methods on your own questions with the unpruned model and simple baselines.

    All rows answer each question in turns, after one unrecorded answer to warm up. Rows: the unpruned model ("none"),
    the small model alone, the model without the image, `random`, `uniform` and `downsample`, and `methods`.

    Args:
        model: a loaded image-text-to-text model. data: the path of a JSONL or CSV file, (image or path, question,
            answers) tuples, or dicts with `image` or `video`, `question`, `answers` and optional `choices`, `scorer`,
            `frames` and `fps`; paths are relative to the file. methods: names, which run at every budget of `keeps`,
            and method objects, which have their own. processor: the model's.
        guide: the small model of guided methods such as "sgl", also a row of its own. guide_processor: its processor
            where it is another. keeps: fractions of each image's visual tokens, or numbers of tokens. layer: where the
            named methods drop tokens. scorer: of questions that name none; "exact" unless given.
        seed: for methods that draw. max_new_tokens: of the longest answer. out: a folder for the answers, where the
            same call goes on after it was stopped. frames: how many of each clip are taken where its row does not say.
    Returns:
        The `Comparison`: rows, the answers that changed, a recommendation; `to_markdown()`, `to_html(path)`.
    Raises:
        VlmpruneError: bad data (then nothing was run), an unknown method, a bad option, a folder that cannot be used.
    """
    from ..api import PrunedModel, unwrap_peft

    def bare(one: Any) -> Any:
        return unwrap_peft(one.model if isinstance(one, PrunedModel) else one)

    questions = read_questions(data, scorer=scorer, frames=frames)
    asked = ComparedMethods(methods, keeps, guided=guide is not None, layer=layer, seed=seed)
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise VlmpruneError(f"max_new_tokens must be a whole number of 1 or more, got {max_new_tokens!r:.40}")
    models = Models(named(bare(model)), bare(model), processor)
    if guide is not None:
        small = bare(guide)
        models = Models(models.name, models.model, processor, named(small), small, guide_processor or processor)
    with AnswerBook(out) as book:
        return compared_on(questions, models, asked, max_new_tokens=max_new_tokens, book=book)


def named(model: Any) -> str:
    """What a loaded model calls itself: the name it was loaded by, or its class."""
    config = getattr(model, "config", None)
    return str(getattr(config, "_name_or_path", "") or type(model).__name__)


class ComparedMethods:
    """The methods and budgets of a comparison, checked as far as no model is needed.

    Args:
        guided: whether there is a small model.
    Raises:
        VlmpruneError: an unknown method, a bad budget or layer.
    """

    def __init__(self, methods: Any, keeps: Any, *, guided: bool, layer: float | None = None, seed: int = 0) -> None:
        from ..api import one_method

        given = list(methods) if isinstance(methods, list | tuple) else [methods]
        budgets = list(keeps) if isinstance(keeps, list | tuple) else [keeps]
        self.keeps = list({str(keep): keep for keep in budgets}.values())  # 1 is one token and 1.0 all of them
        if not self.keeps:
            raise VlmpruneError("keeps is empty; give at least one budget, for example (0.25,)")
        names = [one for one in given if isinstance(one, str) and one != UNPRUNED]
        self.names = list(dict.fromkeys([*FLOOR, *names]))
        self.made = [one_method(one, {}) for one in given if not isinstance(one, str)]
        self.layer, self.seed = layer, seed
        list(entries(self.names, self.keeps, None, layer=layer, seed=seed))
        for name in self.names:
            if not guided and "guide" in options_of(name.removesuffix(WITH_EXIT)):
                raise VlmpruneError(f"the method {name!r} needs a small model beside the large one; give a guide")

    def runs(self, models: Models) -> list[MethodRun]:
        """A run for each row; the unpruned model's is the first."""
        large, none = partial(MethodRun, models.model, models.processor), make("none")
        runs = [large(none, UNPRUNED)]
        if models.small is not None:
            runs.append(MethodRun(models.small, models.small_processor, none, SMALL))
        runs.append(large(none, BLIND))
        for name, keep, made in entries(self.names, self.keeps, models, layer=self.layer, seed=self.seed):
            runs.append(large(made, name, keep))
        for made in self.made:
            options = made.describe()
            runs.append(large(made, options["name"], str(options.get("keep", ""))))
        for at, run in enumerate(runs):  # objects may differ in options that are not in their name
            same = sum((one.name, one.keep) == (run.name, run.keep) for one in runs[:at])
            run.name += f" ({same + 1})" if same else ""
        return runs


@dataclass
class Turns:
    """Asks every question to every run; `lines[run][question]` is what came of it."""

    questions: Sequence[OwnQuestion]
    runs: Sequence[MethodRun]
    identities: Sequence[str]
    max_new_tokens: int
    book: AnswerBook
    repeats: int = 1
    lines: list[list[dict[str, Any]]] = field(default_factory=list)
    _warm: set[int] = field(default_factory=set)
    _shown: tuple[int, list[Any]] = (-1, [])

    def key(self, run: int, question: int) -> str:
        """What an answer depends on, as a hash."""
        one = self.questions[question]
        return sha256(json.dumps([self.identities[run], one.prompt, [shown.seen for shown in one.media]]).encode())

    def take(self, track: Callable[[Sequence[Any]], Iterable[Any]]) -> None:
        """Answer what is not in the book yet, question by question, the runs in turns."""
        keys = [[self.key(run, one) for one in range(len(self.questions))] for run in range(len(self.runs))]
        turns = itertools.product(range(len(self.questions)), range(self.repeats), range(len(self.runs)))
        failed: dict[str, dict[str, Any]] = {}
        given: dict[str, list[dict[str, Any]]] = {}
        for question, _, run in track([turn for turn in turns if keys[turn[2]][turn[0]] not in self.book.lines]):
            key = keys[run][question]
            if key in self.book.lines or key in failed:  # a question that stands there twice
                continue
            try:
                answers = given.setdefault(key, [])
                answers.append({"key": key, **self.answered(run, question)})
                if len(answers) == self.repeats:
                    self.book.add(sorted(answers, key=lambda one: one["seconds"]["total"])[self.repeats // 2])
            except CannotAnswer as error:
                failed[key] = {"error": str(error)}
        self.lines = [[failed.get(key) or self.book.lines[key] for key in row] for row in keys]

    def answered(self, number: int, question: int) -> dict[str, Any]:
        """The record of one answer.

        Raises:
            CannotAnswer: the method does not run on this model, the processor refuses the image, or memory is short.
        """
        import torch

        run, one = self.runs[number], self.questions[question]
        if self._shown[0] != question:
            self._shown = question, one.opened()
        images = self._shown[1]
        shown = None if run.name == BLIND else images if len(images) > 1 else images[0]
        try:
            for _ in range(1 if number in self._warm else 2):
                (answer,), report = run.answer([shown], [one.prompt], max_new_tokens=self.max_new_tokens)
                self._warm.add(number)
        except torch.OutOfMemoryError as error:
            raise CannotAnswer("the memory does not hold it; make the image smaller") from error
        except VlmpruneError as error:
            raise CannotAnswer(str(error)) from error
        return {
            "where": one.where, "method": run.name, "keep": run.keep or None,
            "question": one.question, "answer": answer,
            "visual_tokens": sum(report.visual_tokens), "kept_tokens": sum(report.kept_tokens),
            **{name: getattr(report, name) or 0 for name in COSTS},
            "exited": bool(report.exited and report.exited[0]),
            "seconds": {stage: round(spent, 6) for stage, spent in report.seconds.items()},
            "masks": masks(report, [] if shown is None else images),
        }  # fmt: skip


class CannotAnswer(VlmpruneError):
    """A row cannot answer a question; the others go on."""


def compared_on(
    questions: Sequence[OwnQuestion],
    models: Models,
    asked: ComparedMethods,
    *,
    max_new_tokens: int,
    book: AnswerBook,
    repeats: int = 1,
) -> Comparison:
    """Ask the questions that are not in the book yet, and sum up all answers; see `compare`.

    `repeats`: how often each is asked; the answer that took the median time counts.
    """
    from ..accounting.hardware import machine
    from ..calibrate.samples import progress
    from ..hf.hooks import HANDLE

    check_prompts(questions, models)
    runs = asked.runs(models)
    with ExitStack() as stack:
        for model in (models.model, models.small):
            if (handle := getattr(model, "__dict__", {}).get(HANDLE)) is not None:
                stack.enter_context(handle.off())  # the user's own method comes back afterwards
        turns = Turns(questions, runs, identities(models, runs, max_new_tokens), max_new_tokens, book, repeats)
        turns.take(partial(progress, what="comparing"))
    about = {
        "model": models.name,
        "small": models.small_name,
        "backend": backend(models.model),
        "questions": len(questions),
        "clusters": len(set(clusters(questions))),
        "scored": ", ".join(dict.fromkeys(one.scorer for one in questions if one.answers)) or None,
        "seed": asked.seed,
        "max_new_tokens": max_new_tokens,
        "time": f"of {repeats} answers to a question, all rows in turns" if repeats > 1 else None,
        "machine": machine(),
    }
    made = [(run.name, run.keep or None, run.method.describe()) for run in runs]
    return summarise(questions, made, turns.lines, about)


def check_prompts(questions: Iterable[OwnQuestion], models: Models) -> None:
    """Refuse, before anything is answered, a clip that a model takes none of, and a question that holds a token by
    which its prompts mark an image."""
    from ..inputs.placeholders import check_texts

    for one in questions:
        for name, processor in ((models.name, models.processor), (models.small_name, models.small_processor)):
            if processor is None:
                continue
            try:
                check_texts(processor, one.prompt)
                if any(is_clip(medium) for medium in one.media) and getattr(processor, "video_processor", None) is None:
                    raise VlmpruneError(
                        f"{name} takes no videos ({type(processor).__name__} reads none); ask about the clip's frames "
                        "as a list of images"
                    )
            except VlmpruneError as error:
                raise VlmpruneError(f"data, {one.where}: {error}" if one.where else str(error)) from None


def identities(models: Models, runs: Sequence[MethodRun], max_new_tokens: int) -> list[str]:
    """Of each run what its answers depend on beside the question."""
    from .. import __version__

    hashes = {
        id(one): [weights_hash(one), processor_hash(seen_through)]
        for one, seen_through in ((models.model, models.processor), (models.small, models.small_processor))
        if one is not None
    }
    found = []
    for run in runs:
        options = run.method.describe()
        guide = hashes[id(models.small)] if "guide" in options and models.small is not None else None
        known = [options, run.name == BLIND, hashes[id(run.model)], guide, backend(run.model)]
        found.append(json.dumps([*known, max_new_tokens, __version__], sort_keys=True))
    return found


def processor_hash(processor: Any) -> str:
    """Of what a processor makes of a prompt: the settings of its parts and its chat template."""
    parts = [processor, *(getattr(processor, name, None) for name in ("image_processor", "tokenizer"))]
    settings = [one.to_dict() for one in parts if hasattr(one, "to_dict")]
    templates = [getattr(one, "chat_template", None) for one in parts]
    return sha256(json.dumps([settings, templates], sort_keys=True, default=lambda one: type(one).__name__).encode())
