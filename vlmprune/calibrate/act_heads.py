"""The head selection of ACT: every (layer, head) alone against none, on the same questions.

The paper keeps the heads in which calibration helps; its code holds only the finished lists.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from ..accounting.scores import exact_match
from ..api import PrunedModel, unwrap_peft, wrap
from ..errors import VlmpruneError
from ..families import family_of
from ..hf.hooks import HANDLE
from ..methods.act import ActEditor
from ..methods.none import Unpruned

if TYPE_CHECKING:
    from ..methods.act import ACT

Score = Callable[[str, Any], float]
Head = tuple[int, int]


def calibrate(
    method: ACT,
    model: Any,
    data: Iterable[tuple[Any, str, Any]],
    processor: Any,
    path: str | Path | None,
    score: Score | None,
    generation: dict[str, Any],
) -> ACT:
    """`ACT.calibrate`, which see; a wrapped model is off during it and wrapped again at the end."""
    handle = model if isinstance(model, PrunedModel) else None
    if handle is not None:
        model, processor = handle.model, processor if processor is not None else handle.processor
    if processor is None:
        raise VlmpruneError("calibrate() asks the model questions; pass processor=, the model's processor.")
    questions = list(data)
    if not questions:
        raise VlmpruneError("The calibration data are empty; pass (image, question, answers) triples.")
    for number, sample in enumerate(questions):
        if not isinstance(sample, tuple | list) or len(sample) != 3:
            raise VlmpruneError(
                f"Sample {number} of the calibration data is {sample!r:.60}; make every one (image, question, answers)."
            )
    plain = unwrap_peft(model)
    every = ActEditor(replace(method, heads=None), family_of(plain), plain)
    heads = [(layer, head) for layer, numbers in every.heads.items() for head in numbers]
    generation = {"max_new_tokens": 16, "do_sample": False, **generation}

    def ask(tried: Any) -> float:
        with wrap(model, tried, processor=processor) as pruned:
            answers = [pruned.ask(image, question, **generation).text for image, question, _ in questions]
        scores = [(score or exact_match)(text, right) for text, (_, _, right) in zip(answers, questions, strict=True)]
        return sum(scores) / len(scores)

    ledger = Ledger(path, identity(method, plain, questions))
    screen = Console(stderr=True)
    # Off, and so not in the way of the wraps to come; its own comes back afterwards.
    handle: PrunedModel | None = plain.__dict__.get(HANDLE)
    off = nullcontext() if handle is None else handle.off()
    with off, Progress(console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("calibrating heads", total=1 + len(heads))
        base = ledger.get(None, partial(ask, Unpruned()))
        bar.advance(task)
        gains: dict[Head, float] = {}
        for head in heads:
            gains[head] = ledger.get(head, partial(ask, replace(method, heads=(head,)))) - base
            bar.advance(task)
    return replace(method, heads=tuple(head for head, gain in gains.items() if gain > 0))


def identity(method: ACT, model: Any, questions: Sequence[Any]) -> dict[str, Any]:
    """What a run must have in common with the one it goes on from."""
    return {
        "beta": method.beta,
        "threshold": method.threshold,
        "model": model.config.model_type,
        "layers": model.config.get_text_config().num_hidden_layers,
        "questions": [question for _, question, _ in questions],
    }


class Ledger:
    """Scores by head, in a JSON file that is written whole after each, or in memory.

    Raises:
        VlmpruneError: the file cannot be read, or belongs to another run.
    """

    def __init__(self, path: str | Path | None, run: dict[str, Any]) -> None:
        self.path, self.run = Path(path) if path is not None else None, run
        self.scores: dict[str, float] = {}
        if self.path is None or not self.path.exists():
            return
        try:
            record = json.loads(self.path.read_text())
            same, self.scores = record["run"] == run, dict(record["scores"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise VlmpruneError(
                f"{str(self.path)!r} is no calibration file ({error}); name another one or remove it."
            ) from None
        if not same:
            raise VlmpruneError(
                f"{str(self.path)!r} was made with another model, other questions or other options; name another file."
            )

    def get(self, head: Head | None, measure: Callable[[], float]) -> float:
        """A score that is known, or measured now."""
        key = "none" if head is None else f"{head[0]}.{head[1]}"
        if key not in self.scores:
            self.scores[key] = measure()
            if self.path is not None:
                # Beside it and moved into place: a run stopped while writing leaves the older file whole.
                part = self.path.with_name(self.path.name + ".part")
                part.write_text(json.dumps({"run": self.run, "scores": self.scores}, indent=2) + "\n")
                os.replace(part, self.path)
        return self.scores[key]
