"""What one question gives: both answers, the small model's, what was looked at, and the result in one sentence.

Shapes: V visual tokens of an image.
"""

from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from ...accounting.scores import sureness
from ...api import Answer
from ...flow.locate import ImageSpan
from ...harness.format import milliseconds
from ...inputs.video import Clip

CLEAR = 1.5  # from one run a side, which shows no noise, smaller ratios of times count as none
SAID = 1.05  # the least that is called faster or slower


@dataclass(frozen=True)
class Small:
    """The small model alone: answer, confidence, consistency, and SGL's ranking: `importance` [V] on its own `span`."""

    text: str
    confidence: float
    consistency: float
    seconds: float
    importance: Tensor
    span: ImageSpan

    @property
    def sure(self) -> float:
        """SGL's S, what `exit_at` is compared with."""
        return sureness(self.confidence, self.consistency)


@dataclass(frozen=True)
class Progress:
    """Both answers so far by "unpruned" and "pruned", the seconds of each, and why they may mean nothing.

    `running`: which is being written, "" when both have ended.
    """

    texts: dict[str, str]
    seconds: dict[str, float]
    running: str
    outside: str


@dataclass(frozen=True)
class AskResult:
    """The result of one question.

    `attention`: by decoder layer [V], of the unpruned large model. `budgets`: by fraction, bool [V], what the method
    would keep. `gain`: how many times as fast the pruned side is, None where the times of `runs` runs overlap.
    `outside`: why the answers mean nothing for the bundled pair, or "".
    """

    image: Image.Image | Clip
    question: str
    method: Any
    unpruned: Answer
    pruned: Answer
    small: Small | None
    attention: dict[int, Tensor]
    notes: list[str]
    budgets: dict[float, Tensor] = field(default_factory=dict)
    gain: float | None = None
    runs: int = 1
    outside: str = ""

    @property
    def span(self) -> ImageSpan:
        """The image's visual tokens and which of them were kept."""
        return self.pruned.report.images[0][0]

    @property
    def layers(self) -> int:
        return len(self.unpruned.report.layer_lengths)

    @property
    def exited(self) -> bool:
        """Whether the small model answered alone."""
        return bool(self.pruned.report.exited and self.pruned.report.exited[0])

    def alive(self, layer: int) -> int:
        """How many visual tokens a decoder layer sees."""
        report, full = self.pruned.report, self.unpruned.report
        gone = full.layer_lengths[layer] - report.layer_lengths[layer]
        return max(0, full.visual_tokens[0] - gone)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable, in the words of `vlmprune ask --json`."""
        record: dict[str, Any] = {
            side: {"text": answer.text, "report": answer.report.to_dict()}
            for side, answer in (("unpruned", self.unpruned), ("pruned", self.pruned))
        }
        if self.small is not None:
            record["small"] = {name: getattr(self.small, name) for name in ("text", "confidence", "consistency")}
        return record | {"notes": self.notes}


def in_a_sentence(run: AskResult, truth: str = "") -> str:
    """What pruning changed and saved; `truth` is the right answer, where it is known."""
    before, after = run.unpruned.report, run.pruned.report
    if run.pruned.text == run.unpruned.text:
        answer = "Same answer."
    elif truth and run.unpruned.text == truth:
        answer = f"Pruning makes the answer wrong: {run.pruned.text!r} instead of {truth!r}."
    else:
        answer = f"Another answer: {run.pruned.text!r} instead of {run.unpruned.text!r}."
    tokens = change(before.visual_tokens[0], after.kept_tokens[0], "tokens")
    flops = change(before.prefill_flops, after.prefill_flops + (after.guide_flops or 0), "FLOPs")
    if run.exited:
        tokens = "The small model was sure and answered alone: no visual token reached the large one"
    return f"{answer} {tokens}, {flops}, {speed(run)}."


def change(full: float, part: float, what: str) -> str:
    """A saving, or what came on top, in percent."""
    if not full or part == full:
        return f"as many {what}"
    return f"{abs(1 - part / full):.0%} {'fewer' if part < full else 'more'} {what}".replace("%", " %")


def speed(run: AskResult) -> str:
    """How much faster, if the runs show it; otherwise why not."""
    if run.gain is not None and run.gain >= SAID:
        return f"{run.gain:.1f}x faster"
    after = run.pruned.report
    if (guide := after.seconds.get("guide", 0.0)) > 0.25 * after.seconds["total"]:
        why = f"the small model, which runs first, took {milliseconds(guide)} of {milliseconds(after.seconds['total'])}"
    elif run.runs == 1:
        why = "a single run shows none"
    elif run.gain is None:
        why = f"the times of {run.runs} runs of each side overlap"
    else:
        tokens = run.unpruned.report.visual_tokens[0]
        why = f"with {tokens:,} visual tokens in a small model, most of the time goes elsewhere"
    slower = "" if run.gain is None or 1 / run.gain < SAID else f" ({1 / run.gain:.1f}x slower)"
    return f"no time saved{slower}: {why}"
