"""The interface of an aggregator, and which sentences stay. Pure: texts and numbers, no model.

Sentences are identified by their index into the list passed in, so that none can be misquoted and a missing one is
noticed. Source: Patch Matters (arXiv 2504.06666), section "Aggregate".
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import VlmpruneError
from .divide import Box

SIMILAR, CONTRADICTORY, UNIQUE = "similar", "contradictory", "unique"
IMAGE = "image"  # the region that stands for the whole image


class AggregatorError(VlmpruneError):
    """An aggregator gave no usable answer, however often it was asked."""


@dataclass(frozen=True)
class Similar:
    """Equivalent sentences of two or more samples, and one sentence for all of them."""

    text: str
    members: tuple[int, ...]


@dataclass(frozen=True)
class Grouping:
    """Every sentence of several samples in exactly one of the three kinds."""

    similar: tuple[Similar, ...] = ()
    contradictory: tuple[tuple[int, ...], ...] = ()
    unique: tuple[int, ...] = ()

    def problem(self, count: int, *, first: int = 0) -> str | None:
        """What is wrong with it for `count` sentences, or None; the message counts them from `first`."""
        sets = [*(one.members for one in self.similar), *self.contradictory]
        short = next((members for members in sets if len(members) < 2), None)
        if short is not None:
            return f"a similar or contradictory set holds fewer than two sentences: {[i + first for i in short]}"
        if any(not one.text.strip() for one in self.similar):
            return "a similar set has an empty text"
        return index_errors([*(i for members in sets for i in members), *self.unique], count, first)


@dataclass(frozen=True)
class Rewrite:
    """One sentence of a rewritten text, and the sentences it says."""

    text: str
    sources: tuple[int, ...]


@dataclass(frozen=True)
class Fusion:
    """A rewritten text, and what was left out with the reason."""

    sentences: tuple[Rewrite, ...]
    dropped: tuple[tuple[int, str], ...] = ()

    def problem(self, count: int, *, first: int = 0) -> str | None:
        """What is wrong with it for `count` sentences, or None; the message counts them from `first`."""
        said = {i for one in self.sentences for i in one.sources}
        dropped = [i for i, _ in self.dropped]
        if any(not one.text.strip() for one in self.sentences):
            return "a sentence is empty"
        if any(not one.sources for one in self.sentences):
            return "a sentence names no source"
        if any(not reason.strip() for _, reason in self.dropped):
            return "a sentence is dropped without a reason"
        both = sorted(said.intersection(dropped))
        if both:
            return f"sentence {both[0] + first} is said and dropped"
        return index_errors([*said, *dropped], count, first)


def index_errors(used: Iterable[int], count: int, first: int) -> str | None:
    """What is wrong with a list of indices that must name each of `count` sentences once, or None."""
    times = Counter(used)
    errors = [
        *(f"there is no sentence {i + first}" for i in sorted(times) if i not in range(count)),
        *(f"sentence {i + first} is left out" for i in range(count) if i not in times),
        *(f"sentence {i + first} is used more than once" for i in sorted(times) if times[i] > 1),
    ]
    return errors[0] if errors else None


@dataclass(frozen=True)
class Candidate:
    """A sentence offered to the fusion: its region, the region's box in fractions of the image, its best score."""

    text: str
    region: str
    box: Box
    score: float | None = None


class Aggregator(Protocol):
    """Groups, rewrites and fuses sentences. `calls` counts the generative calls made so far."""

    calls: int

    def group(self, samples: Sequence[Sequence[str]]) -> Grouping:
        """Sort the sentences of several samples (indices run through all of them in order)."""
        ...

    def merge(self, sentences: Sequence[str]) -> Sequence[Rewrite]:
        """Rewrite as one text; every sentence is said at least once."""
        ...

    def fuse(self, candidates: Sequence[Candidate]) -> Fusion:
        """The caption from the sentences of all regions; every candidate is said or dropped with a reason."""
        ...

    def objects(self, caption: str, classes: Sequence[str]) -> Sequence[str]:
        """The classes that the caption mentions."""
        ...


@dataclass(frozen=True)
class SentenceVerdict:
    """What was decided about one sentence at one stage."""

    stage: str
    kept: bool
    reason: str
    label: str | None = None
    score: float | None = None


def to_score(grouping: Grouping) -> list[int]:
    """The sentences whose fit to the image decides about them."""
    return sorted([*(i for members in grouping.contradictory for i in members), *grouping.unique])


def choose(
    grouping: Grouping, scores: dict[int, float], *, stage: str, above: float = 0.3, filtering: bool = True
) -> dict[int, SentenceVerdict]:
    """Keep similar sentences, the best of each contradictory set if it scores above `above`, and such unique ones.

    Of equal scores the first sentence wins. Without `filtering` all stay, with their kind and score recorded.

    Returns:
        A verdict for every sentence.
    """
    verdicts = {
        i: SentenceVerdict(stage, True, f"said by {len(one.members)} descriptions", SIMILAR)
        for one in grouping.similar
        for i in one.members
    }
    rivals = {i: members for members in grouping.contradictory for i in members}
    for i in to_score(grouping):
        members = rivals.get(i, ())
        label = CONTRADICTORY if members else UNIQUE
        if not filtering:
            kept, reason = True, "filter off"
        elif members and i != min(members, key=lambda j: (-scores[j], j)):
            kept, reason = False, "contradicts a sentence that fits the image better"
        else:
            kept = scores[i] > above
            praise = f"the best of {len(members)} that contradict" if members else "fits"
            reason = f"{praise if kept else 'does not fit'}: score {scores[i]:.3f} {'>' if kept else '<='} {above:g}"
        verdicts[i] = SentenceVerdict(stage, kept, reason, label, scores.get(i))
    return verdicts
