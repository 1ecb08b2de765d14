"""Scorers of own questions on answers as models write them, degenerate ones among them."""

from __future__ import annotations

import itertools
import random

import pytest

from eval.scorers.vqa import vqa_accuracy
from vlmprune.harness.scorers import LETTERS, SCORERS, anls, read_choice, vqa

NOTHING = ["", " ", ".", "?!", "\n", "I do not know"]


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("answer", NOTHING)
def test_an_answer_that_says_nothing_is_wrong(name: str, answer: str) -> None:
    assert SCORERS[name](answer, ["7"]) == SCORERS[name](answer, ["12", "red"]) == 0


@pytest.mark.parametrize(
    ("name", "answer", "truths", "score"),
    [
        ("exact", "Red.", ["red"], 1),
        ("exact", " dark  RED ", ["blue", "Dark red"], 1),
        ("exact", "The red one", ["red"], 0),
        ("exact", "cafe\u0301", ["caf\u00e9"], 1),  # the accent as a sign of its own
        ("exact", "\uff13", ["3"], 1),  # a full-width digit
        ("contains", "It is a dark red.", ["dark red"], 1),
        ("contains", "A concatenation", ["cat"], 0),
        ("contains", "Redder", ["red"], 0),
        ("contains", "\u8fd9\u662f\u732b\u7684\u7167\u7247", ["\u732b"], 1),  # Chinese puts no spaces between words
        ("contains", "1,234 (C++)", ["c++"], 1),
        ("number", "There are three circles.", ["3"], 1),
        ("number", "3.0", ["3"], 1),
        ("number", "There are 3, and one is red", ["3"], 1),
        ("number", "Between 3 and 5", ["3"], 0),
        ("number", "1,234 people", ["1234"], 1),
        ("number", "-3 degrees", ["3"], 0),
        ("number", "v3", ["3"], 0),
        ("number", "30", ["3"], 0),
        ("number", "about 2.5e3", ["2500"], 1),
    ],
)
def test_answers(name: str, answer: str, truths: list[str], score: float) -> None:
    assert SCORERS[name](answer, truths) == score


def edits(a: str, b: str) -> int:
    """Levenshtein's distance by its definition."""
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return edits(a[1:], b[1:])
    return 1 + min(edits(a[1:], b), edits(a, b[1:]), edits(a[1:], b[1:]))


def test_anls_is_one_less_the_edits_by_the_length() -> None:
    rng = random.Random(0)
    for _ in range(500):
        answer, *truths = ("".join(rng.choices("ab ", k=rng.randint(1, 6))) for _ in range(3))
        near = []
        for truth in truths:
            a, b = (" ".join(text.split()) for text in (answer, truth))
            near.append(1 - edits(a, b) / max(len(answer), len(truth)))
        assert anls(answer.upper(), truths) == pytest.approx(max(near) if max(near) >= 0.5 else 0)


def test_vqa_is_the_mean_over_nine_of_ten_people() -> None:
    rng = random.Random(0)
    for _ in range(500):
        people = rng.choices(["red", "blue", "2", "dark red", "none"], k=10)
        given = rng.choice(["red", "The Red!", "two", "dark-red", "a blue.", "0", "green", ""])
        meant = {"The Red!": "red", "two": "2", "dark-red": "dark red", "a blue.": "blue", "0": "none"}.get(
            given, given
        )
        nine = [min(1, sum(one == meant for one in some) / 3) for some in itertools.combinations(people, 9)]
        assert vqa(given, people) == pytest.approx(sum(nine) / 10)
        assert vqa(given, people) == pytest.approx(vqa_accuracy(given, people))
    assert vqa("don't know", ["dont know"]) == vqa("1,000.", ["1000"]) == vqa("3.5", ["3.5"]) == 1


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("b", "B"), ("(b)", "B"), ("B.", "B"), ("B. two cats", "B"), ("**B**", "B"), ("Option \uff22", "B"),
        ("The answer is (c).", "C"), ("Answer: C", "C"), ("I think it is B", "B"), ("two cats.", "B"),
        ("I see two cats", "B"), ("a dog", "A"), ("A dog", "A"), ("A", "A"), ("B, because A is wrong", "B"),
        ("(A) or (B)", None), ("A, B", None), ("The answer is not A.", None), ("It isn't B", None), ("", None),
        ("a dog and two cats", None), ("D", None), ("E. an elephant", None), ("Nothing", "C"), ("cats", None),
    ],
)  # fmt: skip
def test_choices(answer: str, letter: str | None) -> None:
    assert read_choice(answer, {"A": "a dog", "B": "two cats", "C": "nothing"}) == letter


@pytest.mark.parametrize("letter", LETTERS)
def test_every_letter_can_be_the_answer(letter: str) -> None:
    options = {one: f"thing {at}" for at, one in enumerate(LETTERS)}
    for form in ("{}", "({})", "{}.", "Answer: {}", "The answer is {}."):
        assert read_choice(form.format(letter), options) == letter
        assert read_choice(form.format(letter.lower()), options) == letter


OPTIONS = {"A": "red car", "B": "car", "C": "not a bird", "D": "none"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A or B", None),
        ("A and B are both right", None),
        ("A is correct", "A"),
        ("A dog", None),
        ("It isn\u2019t A", None),
        ("It is not a red car", None),
        ("It is not a bird", "C"),
        ("The red car", "A"),
        ("The car", "B"),
    ],
)
def test_an_answer_that_denies_or_names_two_is_no_choice(answer: str, letter: str | None) -> None:
    """ "A or B" counted as B, and "It is not a red car" as the red car."""
    assert read_choice(answer, OPTIONS) == letter


def test_a_pronoun_is_no_letter() -> None:
    options = dict(zip(LETTERS, [f"choice {n}" for n in range(1, 10)], strict=False))
    for answer in ("I think so", "I\u2019m sure", "I do not know"):
        assert read_choice(answer, options) is None
    assert read_choice("I", options) == "I"


@pytest.mark.parametrize(
    ("name", "answer", "truth", "score"),
    [
        ("contains", "it is 3.5", "3", 0.0),
        ("contains", "it is 3.5", "5", 0.0),
        ("contains", "1,000 cats", "1", 0.0),
        ("contains", "there are 3.", "3", 1.0),
        ("contains", "3, I think", "3", 1.0),
        ("number", "9" * 400, "8" * 400, 0.0),
        ("number", "1e999", "1e998", 0.0),
        ("number", "3.0", "3", 1.0),
    ],
)
def test_numbers_are_whole_and_not_infinite(name: str, answer: str, truth: str, score: float) -> None:
    assert SCORERS[name](answer, [truth]) == score
