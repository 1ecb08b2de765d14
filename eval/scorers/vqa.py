"""VQA accuracy (Antol et al., ICCV 2015): ten human answers, leave-one-out averaging, the official normalisation.

One difference from the 2015 script is on purpose: that script leaves answers alone where all ten people agree, so a
model's "Yes." is wrong against ten times "yes". The evaluation server normalises always, and so does this.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(value) for value, word in enumerate(_WORDS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _misspelt(words: str) -> dict[str, str]:
    """The official table from its right-hand side: every spelling with exactly one apostrophe left out."""
    table = {}
    for word in words.split():
        for at, letter in enumerate(word):
            if letter == "'":
                table[word[:at] + word[at + 1 :]] = word
    return table


CONTRACTIONS = _misspelt(_CONTRACTED)


def normalise(answer: str) -> str:
    """Lower case, no articles, digits for the words zero to ten, the official treatment of punctuation."""
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    text = answer
    number = _COMMA_IN_NUMBER.search(answer) is not None
    for mark in _PUNCTUATION:
        # Inside a word ("red/green") a mark becomes a space, at its edge or in "1,000" it goes.
        at_an_edge = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if at_an_edge or number else " ")
    text = _FULL_STOP.sub("", text)
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """Mean over the people of min(1, matches among the others / 3): 0..1.

    Args:
        truths: the human answers, ten in VQAv2, VizWiz and TextVQA; a single one is compared with itself.
    """
    given, people = normalise(answer), [normalise(truth) for truth in truths]
    if len(people) == 1:
        return float(given == people[0])
    matches = people.count(given)
    left_out = [matches - (person == given) for person in people]
    return sum(min(1.0, others / 3) for others in left_out) / len(people)
