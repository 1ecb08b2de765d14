"""Aggregation sentence by sentence, by what the words say: no language model, the same every time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

from .aggregate import IMAGE, Candidate, Fusion, Grouping, Rewrite, Similar
from .text import GENERAL, Lexicon, Statement, singular, words


@dataclass
class WordAggregator:
    """Two sentences are about one thing when the lexicon matches them; sentences of one sample never are.

    A description names no object twice, so within a sample every sentence starts its own thing; each sentence of the
    next sample joins the thing it agrees with most, one at most. A thing whose sentences nowhere conflict is similar
    (two samples or more) or unique; one whose sentences conflict is contradictory. `merge` leaves sentences as they
    are; `fuse` names each thing once, and believes a region before the whole image, then the higher score.
    """

    lexicon: Lexicon = GENERAL
    calls: int = field(default=0, init=False, compare=False)

    def group(self, samples: Sequence[Sequence[str]]) -> Grouping:
        """Sort the sentences of several samples (indices run through all of them in order)."""
        texts = [text for sample in samples for text in sample]
        said = [self.lexicon.read(text) for text in texts]
        things: list[list[int]] = []
        at = 0
        for sample in samples:
            self._join(things, range(at, at + len(sample)), said)
            at += len(sample)
        similar, contradictory, unique = [], [], []
        for members in things:
            if len(members) == 1:
                unique += members
            elif any((self.lexicon.compare(said[i], said[j]) or (0, 1))[1] for i, j in combinations(members, 2)):
                contradictory.append(tuple(members))
            else:
                fullest = min(members, key=lambda i: (-len(said[i].properties) - len(said[i].rest), i))
                similar.append(Similar(texts[fullest], tuple(members)))
        return Grouping(tuple(similar), tuple(contradictory), tuple(unique))

    def _join(self, things: list[list[int]], sample: range, said: list[Statement]) -> None:
        """Add a sample's sentences to the things they are about, the surest matches first, one sentence a thing."""
        offers = []
        for i in sample:
            for number, members in enumerate(things):
                found = [self.lexicon.compare(said[i], said[j]) for j in members]
                if all(found):
                    agree, conflict = (sum(pair[k] for pair in found if pair) / len(members) for k in (0, 1))
                    offers.append((conflict - agree, i, number))
        placed: dict[int, int] = {}
        for _, i, number in sorted(offers):
            if i not in placed and number not in placed.values():
                placed[i] = number
                things[number].append(i)
        things += [[i] for i in sample if i not in placed]

    def merge(self, sentences: Sequence[str]) -> list[Rewrite]:
        """The sentences as they are."""
        return [Rewrite(text, (i,)) for i, text in enumerate(sentences)]

    def fuse(self, candidates: Sequence[Candidate]) -> Fusion:
        """Each thing once, in the order of the candidates."""
        said = [self.lexicon.read(one.text) for one in candidates]

        def rank(i: int) -> tuple[bool, float, int]:
            # A sentence of several samples is kept without a score: it counts as certain.
            score = candidates[i].score
            return candidates[i].region == IMAGE, -(1.0 if score is None else score), i

        taken: list[int] = []
        dropped: list[tuple[int, str]] = []
        for i in sorted(range(len(candidates)), key=rank):
            others = (j for j in taken if candidates[j].region != candidates[i].region)
            same = next((j for j in others if self.lexicon.compare(said[i], said[j]) is not None), None)
            if same is None:
                taken.append(i)
            else:
                dropped.append((i, f"region {candidates[same].region!r} already names it: {candidates[same].text!r}"))
        return Fusion(tuple(Rewrite(candidates[i].text, (i,)) for i in sorted(taken)), tuple(sorted(dropped)))

    def objects(self, caption: str, classes: Sequence[str]) -> list[str]:
        """The classes whose name the caption holds, plural or singular."""
        spoken = [singular(word) for word in words(caption)]

        def named(name: str) -> bool:
            parts = [singular(word) for word in words(name)]
            return bool(parts) and any(spoken[i : i + len(parts)] == parts for i in range(len(spoken)))

        return [name for name in classes if named(name)]
