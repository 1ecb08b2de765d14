"""From the samples of every patch to one caption: within patches, between adjacent ones, and all together.

Knows no model: it asks an aggregator and a matcher and records the provenance of every sentence. Source: Patch Matters
(arXiv 2504.06666), section "Aggregate". Unlike the published code, a rejected sentence is never shown to the aggregator
again.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from .aggregate import (
    IMAGE,
    Aggregator,
    AggregatorError,
    Candidate,
    Fusion,
    Grouping,
    Rewrite,
    SentenceVerdict,
    choose,
    to_score,
)
from .config import CaptionConfig
from .divide import QUADRANTS, Box, Patch, adjacent_pairs, hull
from .provenance import Provenance
from .text import sentences

Score = Callable[[Sequence[tuple[Box, str]]], list[float]]  # pairs of a box in pixels and a sentence -> fit, 0..1
WITHIN, BETWEEN, FUSION, GLOBAL = "within patch", "between patches", "fusion", "whole image"


@dataclass
class Region:
    """A patch, or several merged into one, and the numbers of the sentences that go on."""

    patches: tuple[Patch, ...]
    live: list[int]

    @property
    def patch(self) -> Patch:
        """The patches as one."""
        return Patch(" + ".join(one.name for one in self.patches), hull(one.box for one in self.patches))


@dataclass
class SortedSentences:
    """Sentences sorted into kinds, to be decided about at one stage.

    `about`: the patch that rewritten sentences describe; `numbers`: what the indices of `grouping` stand for; `pairs`:
    the box and the text by which each doubtful sentence is scored.
    """

    stage: str
    about: Patch
    numbers: list[int]
    grouping: Grouping
    pairs: dict[int, tuple[Box, str]]


@dataclass
class Hierarchy:
    """One image on its way to a caption."""

    size: tuple[int, int]
    config: CaptionConfig
    aggregator: Aggregator
    score: Score
    provenance: Provenance = field(default_factory=Provenance)
    _scores: dict[tuple[Box, str], float] = field(default_factory=dict)

    @property
    def image(self) -> Patch:
        return Patch(IMAGE, (0.0, 0.0, float(self.size[0]), float(self.size[1])))

    def run(self, whole: str, patches: Sequence[Patch]) -> tuple[list[int], list[Region]]:
        """The numbers of the final sentences in order, and the regions they came from, the whole image first.

        Args:
            whole: the caption of the whole image. patches: the four spatial ones, and the semantic one if there is one,
                with their samples.
        """
        regions = self.within(patches)
        spatial, semantic = regions[: len(QUADRANTS)], regions[len(QUADRANTS) :]
        image = self.describe_image(whole, semantic)
        merged = self.between(spatial)
        return self.fuse([*merged, image]), [image, *merged]

    # -- sentences of several descriptions ----------------------------------------------------------------------

    def _write(self, text: str, patch: Patch, sample: int) -> list[int]:
        """Enter the sentences of one sample; a word-for-word repetition within it is entered and dropped."""
        numbers: dict[str, int] = {}
        for sentence in sentences(text):
            number = self.provenance.add(sentence, patch, sample=sample)
            if numbers.setdefault(sentence.casefold(), number) != number:
                repeated = SentenceVerdict(WITHIN, False, "said before in the same description")
                self.provenance.judge(number, repeated)
        return list(numbers.values())

    def _compare(
        self, stage: str, about: Patch, samples: Sequence[Sequence[int]], trusted: Collection[int] = ()
    ) -> SortedSentences:
        """Group the sentences of several samples; unique ones that are `trusted` are left out of the decision.

        Contradictory sentences are scored in the box of `about`, unique ones in their own, which their entry knows.
        """
        numbers = [number for sample in samples for number in sample]
        grouping = Grouping(unique=tuple(range(len(numbers))))
        if sum(bool(sample) for sample in samples) > 1:  # somebody to agree or disagree with
            grouping = self.aggregator.group([self.provenance.texts(sample) for sample in samples])
            self._insist("group", grouping.problem(len(numbers)))
        grouping = replace(grouping, unique=tuple(i for i in grouping.unique if numbers[i] not in trusted))
        entries = {i: self.provenance[numbers[i]] for i in to_score(grouping)}
        alone = set(grouping.unique)
        pairs = {i: (entry.box if i in alone else about.box, entry.text) for i, entry in entries.items()}
        return SortedSentences(stage, about, numbers, grouping, pairs)

    def _measure(self, comparisons: Sequence[SortedSentences]) -> None:
        """Score what has not been scored yet, all of it together."""
        if self.config.filter:
            wanted = dict.fromkeys(pair for one in comparisons for pair in one.pairs.values())
            new = [pair for pair in wanted if pair not in self._scores]
            self._scores.update(zip(new, self.score(new), strict=True))

    def _decide(self, comparison: SortedSentences) -> dict[int, int | None]:
        """For each sentence the number it goes on as, its own or that of its rewriting; None where it is dropped."""
        self._measure([comparison])
        numbers, grouping = comparison.numbers, comparison.grouping
        scores = {i: self._scores[pair] for i, pair in comparison.pairs.items()} if self.config.filter else {}
        verdicts = choose(
            grouping, scores, stage=comparison.stage, above=self.config.keep_score, filtering=self.config.filter
        )
        fate: dict[int, int | None] = {}
        for i, verdict in verdicts.items():
            self.provenance.judge(numbers[i], verdict)
            fate[numbers[i]] = numbers[i] if verdict.kept else None
        for one in grouping.similar:
            members = [numbers[i] for i in one.members]
            fate |= dict.fromkeys(members, self.provenance.add(one.text, comparison.about, sources=members))
        return fate

    def _merge(self, live: Sequence[int], about: Patch) -> list[int]:
        """Rewrite the sentences that are left as one text; a sentence left as it was keeps its number."""
        if len(live) < 2:
            return list(live)
        fusion = Fusion(tuple(self.aggregator.merge(self.provenance.texts(live))))
        self._insist("merge", fusion.problem(len(live)))
        return self._enter(fusion.sentences, live, about)

    def _enter(self, rewrites: Sequence[Rewrite], numbers: Sequence[int], about: Patch) -> list[int]:
        """The numbers of rewritten sentences, whose sources are indices into `numbers`."""
        entered = []
        for one in rewrites:
            sources = [numbers[i] for i in one.sources]
            same = len(sources) == 1 and self.provenance[sources[0]].text == one.text
            entered.append(sources[0] if same else self.provenance.add(one.text, about, sources=sources))
        return entered

    # -- the steps -----------------------------------------------------------------------------------------------

    def within(self, patches: Sequence[Patch]) -> list[Region]:
        """Group, score, filter and merge the samples of each patch; every patch's sentences are scored together."""
        written = [[self._write(text, one, k) for k, text in enumerate(one.samples)] for one in patches]
        comparisons = [self._compare(WITHIN, *one) for one in zip(patches, written, strict=True)]
        self._measure(comparisons)
        regions = []
        for one in comparisons:
            live = passed_on(one.numbers, self._decide(one))
            regions.append(Region((one.about,), self._merge(live, one.about)))
        return regions

    def describe_image(self, whole: str, semantic: Sequence[Region]) -> Region:
        """The caption of the whole image, enriched by the semantic patch where there is one."""
        own = self._write(whole, self.image, 0)
        others = [number for region in semantic for number in region.live]
        fate = self._decide(self._compare(GLOBAL, self.image, [own, others], trusted=own))
        trusted = [number for number in own if number not in fate]
        for number in trusted:
            self.provenance.judge(number, SentenceVerdict(GLOBAL, True, "the whole image's own, not checked"))
        live = passed_on([*trusted, *own, *others], fate)
        return Region((self.image,), self._merge(live, self.image) if semantic else live)

    def between(self, regions: Sequence[Region]) -> list[Region]:
        """Compare adjacent patches that overlap much, then merge those that are connected.

        All pairs are filtered before anything is merged, and a sentence rejected in one pair is gone from every other.
        Patches chained by a shared one (A-B and B-C) become one region, so that none of B's sentences goes on twice.
        """
        pairs = adjacent_pairs([region.patch for region in regions], above=self.config.patch_iou)
        for pair in pairs:
            a, b = (regions[i] for i in pair)
            shared = set(a.live) & set(b.live)  # already one sentence for both
            samples = [[number for number in one.live if number not in shared] for one in (a, b)]
            if not all(samples):
                continue
            fate = self._decide(self._compare(BETWEEN, Region((*a.patches, *b.patches), []).patch, samples))
            for region in regions:
                region.live = passed_on(region.live, fate)
        merged = []
        for members in components(len(regions), pairs):
            region = Region(tuple(patch for i in members for patch in regions[i].patches), [])
            region.live = list(dict.fromkeys(number for i in members for number in regions[i].live))
            if len(members) > 1:
                region.live = self._merge(region.live, region.patch)
            merged.append(region)
        return merged

    def fuse(self, regions: Sequence[Region]) -> list[int]:
        """One caption from the regions; the whole image comes last and counts least."""
        width, height = self.size
        numbers, candidates = [], []
        for region in regions:
            x0, y0, x1, y1 = region.patch.box
            box = (x0 / width, y0 / height, x1 / width, y1 / height)
            for number in region.live:
                numbers.append(number)
                text, score = self.provenance[number].text, self.provenance.best_score(number)
                candidates.append(Candidate(text, region.patch.name, box, score))
        if not numbers:
            return []
        fusion = self.aggregator.fuse(candidates)
        self._insist("fuse", fusion.problem(len(candidates)))
        for i, reason in fusion.dropped:
            self.provenance.judge(numbers[i], SentenceVerdict(FUSION, False, reason))
        return self._enter(fusion.sentences, numbers, self.image)

    def _insist(self, task: str, problem: str | None) -> None:
        """No aggregator, a user's own one included, may lose a sentence."""
        if problem is not None:
            name = type(self.aggregator).__name__
            raise AggregatorError(f"{name}.{task}() returned what cannot be used ({problem}); correct the aggregator.")


def passed_on(numbers: Sequence[int], fate: dict[int, int | None]) -> list[int]:
    """What the sentences went on as; those that nothing was decided about stay."""
    found = (fate.get(number, number) for number in numbers)
    return list(dict.fromkeys(number for number in found if number is not None))


def components(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The indices 0..count-1 in groups that the pairs connect, each ascending, in order of their first."""
    label = list(range(count))
    for a, b in pairs:
        low, high = sorted((label[a], label[b]))
        label = [low if one == high else one for one in label]
    return [[i for i in range(count) if label[i] == one] for one in dict.fromkeys(label)]
