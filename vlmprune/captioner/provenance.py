"""Provenance of every sentence: where it came from, every verdict on it, why it was kept or dropped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .aggregate import SentenceVerdict
from .divide import Box


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
        """JSON-serialisable; the class goes by the name of `class`."""
        return {
            "number": self.number,
            "text": self.text,
            "patch": self.patch,
            "box": list(self.box),
            "sample": self.sample,
            "sources": list(self.sources),
            "class": self.label,
            "score": self.score,
            "kept": self.kept,
            "reason": self.reason,
            "verdicts": [vars(verdict) for verdict in self.verdicts],
        }


@dataclass
class Provenance:
    """Every sentence of one caption, by number."""

    entries: list[Sentence] = field(default_factory=list)

    def __getitem__(self, number: int) -> Sentence:
        return self.entries[number]

    def add(self, text: str, patch: str, box: Box, *, sample: int | None = None, sources: Iterable[int] = ()) -> int:
        """Add a sentence; returns its number."""
        self.entries.append(Sentence(len(self.entries), text, patch, box, sample, tuple(sources)))
        return len(self.entries) - 1

    def judge(self, number: int, verdict: SentenceVerdict) -> None:
        """Add a verdict on a sentence."""
        entry = self.entries[number]
        self.entries[number] = replace(entry, verdicts=(*entry.verdicts, verdict))

    def drop(self, number: int, stage: str, reason: str) -> None:
        """Drop a sentence for another reason than its class."""
        entry = self.entries[number]
        self.judge(number, SentenceVerdict(stage, entry.label, entry.score, False, reason))

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
        reached: set[int] = set()
        waiting = list(final)
        while waiting:
            number = waiting.pop()
            if number not in reached:
                reached.add(number)
                waiting += self.entries[number].sources
        users: dict[int, list[int]] = {}
        for entry in self.entries:
            for source in entry.sources:
                users.setdefault(source, []).append(entry.number)
        closed = [self._closed(entry, reached, users) for entry in self.entries]
        lost = [entry.number for entry in closed if not entry.reason]
        if lost:
            raise RuntimeError(f"sentences {lost} were lost without a reason; this is a bug in vlmprune")
        return closed

    def _closed(self, entry: Sentence, reached: set[int], users: dict[int, list[int]]) -> Sentence:
        kept = entry.number in reached
        verdicts = entry.verdicts
        decisive = [v for v in verdicts if v.kept == kept]
        reason = decisive[-1].reason if decisive else "in the caption" if kept else ""
        if not kept and not decisive:
            # It went into another sentence, and that one was dropped.
            reason = next((self._drop_reason(user, users) for user in users.get(entry.number, ())), "")
        score = next((v.score for v in reversed(verdicts) if v.score is not None), None)
        # The class of the decision that counts; a sentence dropped by the fusion keeps the class it had.
        label = next((v.label for v in (*reversed(decisive), *reversed(verdicts)) if v.label), None)
        return replace(entry, kept=kept, reason=reason, label=label, score=score)

    def _drop_reason(self, number: int, users: dict[int, list[int]]) -> str:
        dropped = [v for v in self.entries[number].verdicts if not v.kept]
        if dropped:
            return f"rewritten as sentence {number}, dropped: {dropped[-1].reason}"
        return next((self._drop_reason(user, users) for user in users.get(number, ())), "")
