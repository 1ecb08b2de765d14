"""Provenance of every sentence: where it came from, every verdict on it, why it was kept or dropped."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .aggregate import SentenceVerdict
from .divide import Box, Patch


@dataclass(frozen=True)
class Sentence:
    """One sentence with its provenance.

    `patch`: the patch or region it describes, `box` that one's box in pixels; `sample`: which sample it comes from,
    None for one rewritten from others, whose numbers are `sources`; `label`: its class (similar, contradictory or
    unique, None where it was never grouped), `score`: its fit to the image, None where it was never scored; `kept`:
    whether its content is in the caption, itself or rewritten; `reason`: why; `verdicts`: all, in order.
    """

    number: int
    text: str
    patch: str
    box: Box
    sample: int | None = None
    sources: tuple[int, ...] = ()
    label: str | None = None
    score: float | None = None
    kept: bool = False
    reason: str = ""
    verdicts: tuple[SentenceVerdict, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The fields; the class goes by the name of `class`."""
        return {"class" if name == "label" else name: value for name, value in asdict(self).items()}


@dataclass
class Provenance:
    """Every sentence of one caption, by number."""

    entries: list[Sentence] = field(default_factory=list)

    def __getitem__(self, number: int) -> Sentence:
        return self.entries[number]

    def add(self, text: str, patch: Patch, *, sample: int | None = None, sources: Iterable[int] = ()) -> int:
        """Add a sentence about a patch; returns its number."""
        self.entries.append(Sentence(len(self.entries), text, patch.name, patch.box, sample, tuple(sources)))
        return len(self.entries) - 1

    def judge(self, number: int, verdict: SentenceVerdict) -> None:
        """Add a verdict on a sentence."""
        entry = self.entries[number]
        self.entries[number] = replace(entry, verdicts=(*entry.verdicts, verdict))

    def texts(self, numbers: Sequence[int]) -> list[str]:
        return [self.entries[number].text for number in numbers]

    def best_score(self, number: int) -> float | None:
        """The latest score of a sentence, or the lowest among those it was rewritten from; None: never scored."""
        entry = self.entries[number]
        own = [v.score for v in entry.verdicts if v.score is not None]
        if own:
            return own[-1]
        inherited = [score for score in map(self.best_score, entry.sources) if score is not None]
        return min(inherited) if inherited else None

    def close(self, final: Iterable[int]) -> list[Sentence]:
        """All sentences with their fate, once the numbers of the final ones are known.

        Raises:
            RuntimeError: a sentence is neither in the caption nor dropped for a reason, which would be a bug here.
        """
        reached = set(final)
        passed_down: dict[int, str] = {}  # why what a sentence was rewritten as is not in the caption
        closed = []
        for entry in reversed(self.entries):  # a sentence's sources come before it
            kept = entry.number in reached
            decisive = [v for v in entry.verdicts if v.kept == kept]
            if kept:
                reached.update(entry.sources)
                reason = decisive[-1].reason if decisive else "in the caption"
            else:
                reason = decisive[-1].reason if decisive else passed_down.get(entry.number, "")
                why = f"rewritten as sentence {entry.number}, dropped: {reason}" if decisive else reason
                passed_down.update(dict.fromkeys(entry.sources, why))
            if not reason:
                raise RuntimeError(f"sentence {entry.number} was lost without a reason; this is a bug in vlmprune")
            score = next((v.score for v in reversed(entry.verdicts) if v.score is not None), None)
            # The class of the decision that counts; a sentence dropped by the fusion keeps the class it had.
            label = next((v.label for v in (*reversed(decisive), *reversed(entry.verdicts)) if v.label), None)
            closed.append(replace(entry, kept=kept, reason=reason, label=label, score=score))
        return closed[::-1]
