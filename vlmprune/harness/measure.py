"""Run several methods on the same prompts in turns, so that what slows the machine slows every one of them alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ..errors import VlmpruneError
from .format import milliseconds


@dataclass
class MethodRun:
    """A model under a method, and what came of its runs: one list of answers and one report per run."""

    model: Any
    processor: Any
    method: Any
    name: str = ""
    keep: str = ""
    answers: list[list[str]] = field(default_factory=list)
    reports: list[Any] = field(default_factory=list)

    def answer(self, images: Sequence[Any], questions: Sequence[str], **generation: Any) -> tuple[list[str], Any]:
        """The greedy answers to one batch and its report; an image that is None is left out of its prompt."""
        import vlmprune

        generation["do_sample"] = False
        with vlmprune.wrap(self.model, self.method, processor=self.processor) as pruned:
            if len(questions) == 1 and images[0] is not None:
                answers = [pruned.ask(images[0], questions[0], **generation).text]
            else:
                answers = _ask_batch(pruned, self.processor, images, questions, generation)
            return answers, pruned.report

    def seconds(self, stage: str = "total") -> float:
        """Median over the runs, per prompt."""
        return median(report.seconds.get(stage, 0.0) / len(report.visual_tokens) for report in self.reports)

    def typical(self) -> int:
        """The run whose total time is the median one (the later of the middle two)."""
        order = sorted(range(len(self.reports)), key=lambda run: self.reports[run].seconds["total"])
        return order[len(order) // 2]

    def total(self, name: str) -> float:
        """A report's number summed over the prompts of all runs; means over a batch are weighted by its size."""
        summed = name.startswith(("prefill_flops", "kv_bytes", "guide_flops"))
        return sum((getattr(r, name) or 0) * (1 if summed else len(r.visual_tokens)) for r in self.reports)

    def mean(self, name: str) -> float:
        """A report's number per prompt."""
        return self.total(name) / sum(len(report.visual_tokens) for report in self.reports)


def _ask_batch(
    pruned: Any, processor: Any, images: Sequence[Any], questions: Sequence[str], generation: dict[str, Any]
) -> list[str]:
    import torch

    from ..hf.arguments import to_device
    from ..inputs.chat import batched, user_turn

    talks = [
        user_turn([] if image is None else [image], question)
        for image, question in zip(images, questions, strict=True)
    ]
    inputs = to_device(pruned.model, batched(processor, talks))
    with torch.no_grad():
        out = pruned.generate(**inputs, **pruned.for_guide(lambda other: batched(other, talks)), **generation)
    new = out[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


def interleaved(
    runs: Sequence[MethodRun],
    batches: Sequence[tuple[Sequence[Any], Sequence[str]]],
    step: Callable[[], None] = lambda: None,
    **generation: Any,
) -> None:
    """Every run answers the first batch once unrecorded, to warm up; then all answer each batch in turn."""
    for number, batch in enumerate([batches[0], *batches]):
        for run in runs:
            answers, report = run.answer(*batch, **generation)
            if number > 0:
                run.answers.append(answers)
                run.reports.append(report)
            step()


def backend(model: Any) -> str:
    """What computed it: attention kernel, precision, device."""
    precision = str(model.dtype).removeprefix("torch.")
    return f"{getattr(model.config, '_attn_implementation', None) or 'eager'} attention, {precision}, {model.device}"


def stage_cell(run: MethodRun, stage: str) -> str:
    """A stage's median time, or a dash when it did not take place."""
    present = any(stage in report.seconds for report in run.reports)
    return milliseconds(run.seconds(stage)) if present else "-"


def at_least_one(option: str, value: int) -> int:
    """A count a user gave."""
    if value < 1:
        raise VlmpruneError(f"{option} {value} is too small; give 1 or more")
    return value
