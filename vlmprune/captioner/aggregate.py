"""The interface of an aggregator, and which sentences stay. Pure: texts and numbers, no model.

Sentences are identified by their index into the list passed in, so that none can be misquoted and a missing one is
noticed. Source: Patch Matters (arXiv 2504.06666), section "Aggregate".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import VlmpruneError
from .divide import Box

SIMILAR, CONTRADICTORY, UNIQUE = "similar", "contradictory", "unique"


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

    def problem(self, count: int) -> str | None:
        """What is wrong with it for `count` sentences, or None."""
        sets = [*(one.members for one in self.similar), *self.contradictory]
        short = [list(members) for members in sets if len(members) < 2]
        if short:
            return f"a similar or contradictory set holds fewer than two sentences: {short[0]}"
        if any(not one.text.strip() for one in self.similar):
            return "a similar set has an empty text"
        return index_errors([*(i for members in sets for i in members), *self.unique], range(count), once=True)


@dataclass(frozen=True)
class Rewrite:
    """One sentence of a rewritten text, and the sentences it says."""

    text: str
    sources: tuple[int, ...]


@dataclass(frozen=True)
class Fusion:
    """The final text, and what was left out with the reason."""

    sentences: tuple[Rewrite, ...]
    dropped: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A sentence offered to the fusion: its region, the region's box in fractions of the image, its best score."""

    text: str
    region: str
    box: Box
    score: float | None = None


IMAGE = "image"  # the region that stands for the whole image


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


def index_errors(used: Iterable[int], known: Collection[int], *, once: bool) -> str | None:
    """What is wrong with a list of sentence numbers that must name all of `known`; `once`: none of them twice."""
    used = list(used)
    unknown = sorted(set(used) - set(known))
    if unknown:
        return f"there is no sentence {unknown[0]}"
    missing = sorted(set(known) - set(used))
    if missing:
        return f"sentence {missing[0]} is left out"
    twice = sorted({i for i in used if used.count(i) > 1}) if once else []
    return f"sentence {twice[0]} is used more than once" if twice else None


def problem_of_rewrites(sentences: Sequence[Rewrite], count: int) -> str | None:
    """What is wrong with a rewriting of `count` sentences, or None."""
    return is_empty(sentences) or index_errors((i for one in sentences for i in one.sources), range(count), once=False)


def problem_of_fusion(fusion: Fusion, count: int) -> str | None:
    """What is wrong with a fusion of `count` sentences, or None."""
    if any(not reason.strip() for _, reason in fusion.dropped):
        return "a sentence is dropped without a reason"
    said = {i for one in fusion.sentences for i in one.sources}
    dropped = [i for i, _ in fusion.dropped]
    both = sorted(said & set(dropped))
    if both:
        return f"sentence {both[0]} is said and dropped"
    return is_empty(fusion.sentences) or index_errors([*said, *dropped], range(count), once=True)


def is_empty(sentences: Sequence[Rewrite]) -> str | None:
    """What a sentence lacks, its text or its sources, or None."""
    if any(not one.text.strip() for one in sentences):
        return "a sentence is empty"
    return "a sentence names no source" if any(not one.sources for one in sentences) else None


@dataclass(frozen=True)
class SentenceVerdict:
    """What was decided about one sentence at one stage."""

    stage: str
    label: str | None
    score: float | None
    kept: bool
    reason: str


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
    verdicts: dict[int, SentenceVerdict] = {}

    def judge(i: int, label: str, praise: str, *, beaten: bool = False) -> None:
        if not filtering:
            kept, why = True, "filter off"
        elif beaten:
            kept, why = False, "contradicts a sentence that fits the image better"
        else:
            kept, why = scores[i] > above, reason(scores[i], above, praise)
        verdicts[i] = SentenceVerdict(stage, label, scores.get(i), kept, why)

    for one in grouping.similar:
        for i in one.members:
            verdicts[i] = SentenceVerdict(stage, SIMILAR, None, True, f"said by {len(one.members)} descriptions")
    for members in grouping.contradictory:
        best = min(members, key=lambda i: (-scores[i], i)) if filtering else None
        for i in members:
            judge(i, CONTRADICTORY, f"the best of {len(members)} that contradict", beaten=i != best)
    for i in grouping.unique:
        judge(i, UNIQUE, "fits")
    return verdicts


def reason(score: float, above: float, praise: str) -> str:
    """Why a scored sentence stays or goes."""
    passed = score > above
    return f"{praise if passed else 'does not fit'}: score {score:.3f} {'>' if passed else '<='} {above:g}"
