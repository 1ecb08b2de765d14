"""From the samples of every patch to one caption: within patches, between adjacent ones, and all together.

Knows no model: it asks an aggregator and a matcher and records the provenance of every sentence. Source: Patch Matters
(arXiv 2504.06666), section "Aggregate". Unlike the published code, a rejected sentence is never shown to the aggregator
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .aggregate import (
    IMAGE,
    Aggregator,
    AggregatorError,
    Candidate,
    Grouping,
    Rewrite,
    SentenceVerdict,
    choose,
    problem_of_fusion,
    problem_of_rewrites,
    to_score,
)
from .config import CaptionConfig
from .divide import QUADRANTS, Box, adjacent_pairs, hull
from .divide import Patch as Part
from .provenance import Provenance
from .text import sentences as sentences_of

Score = Callable[[Sequence[tuple[Box, str]]], list[float]]  # pairs of a box in pixels and a sentence -> fit, 0..1
WITHIN, BETWEEN, FUSION, GLOBAL = "within patch", "between patches", "fusion", "whole image"


@dataclass
class Region:
    """A patch, or several merged into one: its name, its box, and the numbers of the sentences that go on."""

    name: str
    box: Box
    live: list[int]
    patches: tuple[str, ...] = ()


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
    def image(self) -> Box:
        return (0.0, 0.0, float(self.size[0]), float(self.size[1]))

    def run(
        self, whole: str, parts: Sequence[Part], samples: Sequence[Sequence[str]]
    ) -> tuple[list[int], list[Region]]:
        """The numbers of the final sentences in order, and the regions they came from, the whole image first.

        Args:
            whole: the caption of the whole image. parts: the four spatial patches, and the semantic one if there is
                one. samples: for each part its descriptions; samples of a part stay with it.
        """
        regions = self.within(parts, samples)
        glob = self.describe_image(whole, [one for one in regions if one.name not in QUADRANTS])
        spatial = self.between([one for one in regions if one.name in QUADRANTS], parts)
        return self.fuse([*spatial, glob]), [glob, *spatial]

    # -- within ------------------------------------------------------------------------------------------------

    def within(self, parts: Sequence[Part], samples: Sequence[Sequence[str]]) -> list[Region]:
        """Group, score, filter and merge the samples of each patch; every patch's statements are scored together."""
        numbers = [
            [self._write(text, part.name, part.box, k) for k, text in enumerate(texts)]
            for part, texts in zip(parts, samples, strict=True)
        ]
        groupings = [self._group(own) for own in numbers]
        flats = [[n for sample in own for n in sample] for own in numbers]
        self._measure(
            (part.box, flat[i])
            for part, flat, grouping in zip(parts, flats, groupings, strict=True)
            for i in to_score(grouping)
        )
        regions = []
        for part, flat, grouping in zip(parts, flats, groupings, strict=True):
            live = self._filter(flat, grouping, [part.box] * len(flat), WITHIN, part.name, part.box)
            regions.append(Region(part.name, part.box, self._merge(live, part.name, part.box), (part.name,)))
        return regions

    def _write(self, text: str, patch: str, box: Box, sample: int) -> list[int]:
        """Enter the sentences of one sample; a word-for-word repetition within it is entered and dropped."""
        numbers: dict[str, int] = {}
        for sentence in sentences_of(text):
            number = self.provenance.add(sentence, patch, box, sample=sample)
            key = sentence.casefold()
            if key in numbers:
                self.provenance.drop(number, WITHIN, "said before in the same description")
            else:
                numbers[key] = number
        return list(numbers.values())

    def _group(self, samples: Sequence[Sequence[int]]) -> Grouping:
        count = sum(map(len, samples))
        if not count:
            return Grouping()
        grouping = self.aggregator.group([self.provenance.texts(sample) for sample in samples])
        self._insist("group", grouping.problem(count))
        return grouping

    def _measure(self, wanted: Iterable[tuple[Box, int]]) -> None:
        """Score what has not been scored yet."""
        if not self.config.filter:
            return
        pairs = [(box, self.provenance[number].text) for box, number in wanted]
        pairs = [pair for pair in dict.fromkeys(pairs) if pair not in self._scores]
        self._scores.update(zip(pairs, self.score(pairs), strict=True))

    def _filter(
        self,
        flat: Sequence[int],
        grouping: Grouping,
        boxes: Sequence[Box],
        stage: str,
        name: str,
        box: Box,
        rewritten: Callable[[Sequence[int], int], None] = lambda old, new: None,
    ) -> list[int]:
        """Decide about the sentences `flat`, each looked up in its box; returns those that go on.

        Similar ones go on as one rewriting, which is passed to `rewritten`.
        """
        scores = {}
        for i in to_score(grouping):
            known = self._scores.get((boxes[i], self.provenance[flat[i]].text))
            if known is not None:
                scores[i] = known
        verdicts = choose(grouping, scores, stage=stage, above=self.config.keep_score, filtering=self.config.filter)
        for i, verdict in verdicts.items():
            self.provenance.judge(flat[i], verdict)
        standing = {i: flat[i] for i, verdict in verdicts.items() if verdict.kept}
        for one in grouping.similar:
            members = [flat[i] for i in one.members]
            new = self.provenance.add(one.text, name, box, sources=members)
            rewritten(members, new)
            standing |= dict.fromkeys(one.members, new)
        return list(dict.fromkeys(standing[i] for i in sorted(standing)))

    def _merge(self, live: Sequence[int], name: str, box: Box) -> list[int]:
        """Rewrite the sentences that are left as one text; a sentence left as it was keeps its number."""
        if len(live) < 2:
            return list(live)
        rewrites = self.aggregator.merge(self.provenance.texts(live))
        self._insist("merge", problem_of_rewrites(rewrites, len(live)))
        return self._enter(rewrites, live, name, box)

    def _enter(self, rewrites: Sequence[Rewrite], numbers: Sequence[int], name: str, box: Box) -> list[int]:
        """The numbers of rewritten sentences, whose sources are indices into `numbers`."""
        entered = []
        for one in rewrites:
            sources = [numbers[i] for i in one.sources]
            same = len(sources) == 1 and self.provenance[sources[0]].text == one.text
            entered.append(sources[0] if same else self.provenance.add(one.text, name, box, sources=sources))
        return entered

    # -- the whole image ---------------------------------------------------------------------------------------

    def describe_image(self, whole: str, semantic: Sequence[Region]) -> Region:
        """The caption of the whole image, enriched by the semantic patch where there is one."""
        own = self._write(whole, IMAGE, self.image, 0)
        for other in semantic:
            grouping = self._group([own, other.live])
            flat = [*own, *other.live]
            count = len(own)
            contradictory = {i for members in grouping.contradictory for i in members}

            # The image's own sentences are about all of it, and so is whatever they contradict.
            boxes = [self.image if i < count or i in contradictory else other.box for i in range(len(flat))]
            unchecked = set() if self.config.check_global else set(grouping.unique) & set(range(count))
            self._measure((boxes[i], flat[i]) for i in to_score(grouping) if i not in unchecked)
            self._trust([flat[i] for i in sorted(unchecked)])
            checked = Grouping(
                grouping.similar, grouping.contradictory, tuple(i for i in grouping.unique if i not in unchecked)
            )
            live = self._filter(flat, checked, boxes, GLOBAL, IMAGE, self.image)
            own = self._merge([*(flat[i] for i in sorted(unchecked)), *live], IMAGE, self.image)
        if not semantic and self.config.check_global:
            grouping = Grouping(unique=tuple(range(len(own))))
            self._measure((self.image, number) for number in own)
            own = self._filter(own, grouping, [self.image] * len(own), GLOBAL, IMAGE, self.image)
        elif not semantic:
            self._trust(own)
        return Region(IMAGE, self.image, own)

    def _trust(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            verdict = SentenceVerdict(GLOBAL, None, None, True, "the whole image's own, not checked")
            self.provenance.judge(number, verdict)

    # -- between -----------------------------------------------------------------------------------------------

    def between(self, regions: Sequence[Region], parts: Sequence[Part]) -> list[Region]:
        """Compare adjacent patches that overlap much, then merge those that are connected.

        All pairs are filtered before anything is merged, and a sentence rejected in one pair is gone from every other.
        Patches chained by a shared one (A-B and B-C) become one region, so that none of B's sentences goes on twice.
        """
        spatial = [part for part in parts if part.name in QUADRANTS]
        pairs = adjacent_pairs(spatial, above=self.config.patch_iou) if len(spatial) == len(QUADRANTS) else []
        lists = [list(region.live) for region in regions]
        for a, b in pairs:
            self._compare(lists, a, b, spatial)
        merged = []
        for members in components(len(regions), pairs):
            if len(members) == 1:
                region = regions[members[0]]
                merged.append(Region(region.name, region.box, lists[members[0]], region.patches))
                continue
            name = " + ".join(regions[i].name for i in members)
            box = hull(regions[i].box for i in members)
            live = list(dict.fromkeys(n for i in members for n in lists[i]))
            patches = tuple(p for i in members for p in regions[i].patches)
            merged.append(Region(name, box, self._merge(live, name, box), patches))
        return merged

    def _compare(self, lists: list[list[int]], a: int, b: int, parts: Sequence[Part]) -> None:
        """Group, score and filter the sentences of two patches; changes every list a decision concerns."""
        shared = set(lists[a]) & set(lists[b])  # already one sentence for both
        own, other = ([n for n in lists[i] if n not in shared] for i in (a, b))
        if not own or not other:
            return
        both = hull((parts[a].box, parts[b].box))
        flat = [*own, *other]
        grouping = self._group([own, other])
        contradictory = {i for members in grouping.contradictory for i in members}

        # A sentence rewritten from several patches is about their hull, which its entry knows.
        boxes = [both if i in contradictory else self.provenance[number].box for i, number in enumerate(flat)]

        def replace_everywhere(old: Sequence[int], new: int) -> None:
            for numbers in lists:
                numbers[:] = dict.fromkeys(new if n in old else n for n in numbers)

        self._measure((boxes[i], flat[i]) for i in to_score(grouping))
        name = f"{parts[a].name} + {parts[b].name}"
        going = self._filter(flat, grouping, boxes, BETWEEN, name, both, replace_everywhere)
        gone = set(flat) - set(going)
        for numbers in lists:
            numbers[:] = [n for n in numbers if n not in gone]

    # -- all together ------------------------------------------------------------------------------------------

    def fuse(self, regions: Sequence[Region]) -> list[int]:
        """One caption from the regions; the whole image comes last and counts least."""
        width, height = self.size
        numbers, candidates = [], []
        for region in regions:
            x0, y0, x1, y1 = region.box
            box = (x0 / width, y0 / height, x1 / width, y1 / height)
            for number in region.live:
                numbers.append(number)
                text, score = self.provenance[number].text, self.provenance.best_score(number)
                candidates.append(Candidate(text, region.name, box, score))
        if not numbers:
            return []
        fusion = self.aggregator.fuse(candidates)
        self._insist("fuse", problem_of_fusion(fusion, len(candidates)))
        for i, reason in fusion.dropped:
            self.provenance.drop(numbers[i], FUSION, reason)
        return self._enter(fusion.sentences, numbers, IMAGE, self.image)

    def _insist(self, task: str, problem: str | None) -> None:
        """No aggregator, a user's own one included, may lose a sentence."""
        if problem is not None:
            name = type(self.aggregator).__name__
            raise AggregatorError(f"{name}.{task}() returned what cannot be used ({problem}); correct the aggregator.")


def components(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The indices 0..count-1 in groups that the pairs connect, each ascending, in order of their first."""
    label = list(range(count))
    for a, b in pairs:
        low, high = sorted((label[a], label[b]))
        label = [low if one == high else one for one in label]
    return [[i for i in range(count) if label[i] == one] for one in dict.fromkeys(label)]
