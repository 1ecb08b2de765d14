"""Run several methods on the same prompts in turns, so that a busy machine slows all of them alike."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass
class MethodRun:
    """A model with a method and the results of its runs: one list of answers and one report per run."""

    model: Any
    processor: Any
    method: Any
    name: str = ""
    keep: str = ""
    answers: list[list[str]] = field(default_factory=list)
    reports: list[Any] = field(default_factory=list)
    error: str = ""  # why there are no answers

    def answer(self, images: Sequence[Any], questions: Sequence[str], **generation: Any) -> tuple[list[str], Any]:
        """Greedy answers to one batch and its report; an image of None is left out of its prompt."""
        import torch

        import vlmprune

        from ..hf.arguments import to_device
        from ..inputs.chat import batched, user_turn

        generation["do_sample"] = False
        with vlmprune.wrap(self.model, self.method, processor=self.processor) as pruned, torch.no_grad():
            if len(questions) == 1 and images[0] is not None:
                return [pruned.ask(images[0], questions[0], **generation).text], pruned.report
            asked = zip(images, questions, strict=True)
            talks = [user_turn([] if image is None else [image], question) for image, question in asked]
            inputs = to_device(pruned.model, batched(self.processor, talks))
            out = pruned.generate(**inputs, **pruned.for_guide(lambda other: batched(other, talks)), **generation)
            new = out[:, inputs["input_ids"].shape[1] :]
            texts = self.processor.batch_decode(new, skip_special_tokens=True)
            return [text.strip() for text in texts], pruned.report

    def seconds(self, stage: str = "total") -> float:
        """Median over the runs, per prompt."""
        return median(report.seconds.get(stage, 0.0) / len(report.visual_tokens) for report in self.reports)

    def typical(self) -> tuple[list[str], Any]:
        """Answers and report of the run whose total time is the median one (the later of the middle two)."""
        found = sorted(zip(self.answers, self.reports, strict=True), key=lambda run: run[1].seconds["total"])
        return found[len(found) // 2]

    def total(self, name: str) -> float:
        """A report's number summed over the prompts of all runs; means over a batch are weighted by its size."""
        summed = name.startswith(("prefill_flops", "kv_bytes", "guide_flops"))
        return sum((getattr(r, name) or 0) * (1 if summed else len(r.visual_tokens)) for r in self.reports)

    def mean(self, name: str) -> float:
        """A report's number per prompt."""
        return self.total(name) / sum(len(report.visual_tokens) for report in self.reports)


def interleaved(
    runs: Sequence[MethodRun],
    batches: Sequence[tuple[Sequence[Any], Sequence[str]]],
    track: Callable[[Sequence[Any]], Iterable[Any]] = iter,
    **generation: Any,
) -> None:
    """Every run answers the first batch once unrecorded, to warm up; then all answer each batch in turn.

    `track` shows the progress of an iteration, as `rich.progress.track` does.
    """
    turns = itertools.product(enumerate([batches[0], *batches]), runs)
    for (number, batch), run in track(list(turns)):
        answers, report = run.answer(*batch, **generation)
        if number > 0:
            run.answers.append(answers)
            run.reports.append(report)


def faster(one: MethodRun, other: MethodRun) -> float | None:
    """How many times as fast the other is, by medians; None where the runs of the two overlap in time."""
    first, second = ([report.seconds["total"] for report in run.reports] for run in (one, other))
    if min(first) <= max(second) and min(second) <= max(first):
        return None
    return median(first) / median(second)


def backend(model: Any) -> str:
    """Attention kernel, precision and device of a model."""
    precision = str(model.dtype).removeprefix("torch.")
    return f"{getattr(model.config, '_attn_implementation', None) or 'eager'} attention, {precision}, {model.device}"
