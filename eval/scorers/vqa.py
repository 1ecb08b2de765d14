"""VQA accuracy (Antol et al., ICCV 2015): ten human answers, leave-one-out averaging, the official normalisations.

VQAv2 and VizWiz normalise as the VQA script does, TextVQA as M4C's processor does, which drops commas and splits `'s`
first. The VQA script exists in two versions: an earlier one normalises every answer, a later one leaves it as it is
where all ten people agree, so that a model's "Yes." is wrong against ten times "yes". This is the earlier rule; the
later one is `unanimous_as_is`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmprune.accounting.scores import agreement

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_STOPS = 32  # both scripts pass re.UNICODE, which is 32, where re.sub takes its count
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


CONTRACTIONS = _misspelt(_CONTRACTED) | {"somebody'd": "somebodyd"}  # the one that goes the other way


def normalise(answer: str) -> str:
    """Lower case, no articles, digits for the words zero to ten, the official treatment of punctuation."""
    text = without_punctuation(on_one_line(answer))
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def without_punctuation(answer: str) -> str:
    """The script's treatment of punctuation alone."""
    text = answer
    number = _COMMA_IN_NUMBER.search(answer) is not None
    for mark in _PUNCTUATION:
        # Inside a word ("red/green") a mark becomes a space, at its edge or in "1,000" it goes.
        at_an_edge = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if at_an_edge or number else " ")
    return _FULL_STOP.sub("", text, count=_MOST_STOPS)


def on_one_line(text: str) -> str:
    """Line breaks and tabs as spaces, none around it."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def textvqa_normalise(answer: str) -> str:
    """M4C's normalisation (Hu et al., CVPR 2020), TextVQA's: "new york,ny" stays one word, "nokia's" becomes two."""
    return normalise(answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def vqa_accuracy(answer: str, truths: Sequence[str], *, unanimous_as_is: bool = False) -> float:
    """Mean over the people of min(1, matches among the others / 3): 0..1.

    Args:
        truths: the human answers, ten in VQAv2 and VizWiz; a single one is compared with itself. unanimous_as_is:
            where all agree nothing is normalised, as in the later version of the script.
    """
    if unanimous_as_is and len({on_one_line(truth) for truth in truths}) == 1:
        return agreement(on_one_line(answer), [on_one_line(truth) for truth in truths])
    return agreement(normalise(answer), [normalise(truth) for truth in truths])


def textvqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """The same mean with TextVQA's normalisation."""
    return agreement(textvqa_normalise(answer), [textvqa_normalise(truth) for truth in truths])
