"""Scorers against cases worked by hand from the official scripts, and against answers that say nothing."""

from __future__ import annotations

from functools import partial

import pytest
from PIL import Image

from eval.scorers import boxes, chair, options, text, vqa, yes_no
from eval.tasks.base import Sample
from eval.tasks.registry import TASKS
from vlmprune.accounting import scores
from vlmprune.accounting.scores import exact_match

DEGENERATE = ["", " ", ".", "?!", "\n", "yes no", "A B C D", "😀", "nan", "x" * 2000]


class TestVqa:
    @pytest.mark.parametrize(("matching", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
    def test_leave_one_out(self, matching: int, score: float) -> None:
        """3 of 10: the three see 2 others (2/3), the seven see 3 (1): (3 * 2/3 + 7) / 10 = 0.9."""
        truths = ["red"] * matching + [f"other {i}" for i in range(10 - matching)]
        assert vqa.vqa_accuracy("red", truths) == pytest.approx(score)

    @pytest.mark.parametrize(
        ("answer", "normal"),
        [
            ("Yes.", "yes"),
            ("The Red-Car", "red car"),
            ("two", "2"),
            ("None", "0"),
            ("1,000", "1000"),
            ("3.5", "3.5"),
            ("dont", "don't"),
            ("couldntve", "couldntve"),
            ("couldnt've", "couldn't've"),
            ("red, white", "red white"),
            ("red/white", "red white"),
            ("an  apple\n", "apple"),
            ("a the an", ""),
            ("let's", "let's"),
        ],
    )
    def test_normalisation(self, answer: str, normal: str) -> None:
        assert vqa.normalise(answer) == normal

    def test_every_contraction_of_the_official_table(self) -> None:
        assert vqa.CONTRACTIONS["oclock"] == "o'clock"
        assert vqa.CONTRACTIONS["yall'd've"] == vqa.CONTRACTIONS["y'alld've"] == "y'all'd've"
        assert vqa.CONTRACTIONS["ow's'at"] == vqa.CONTRACTIONS["'ows'at"] == "'ow's'at"
        assert "lets" not in vqa.CONTRACTIONS
        assert "well" not in vqa.CONTRACTIONS

    def test_unanimous_people_are_normalised_too(self) -> None:
        assert vqa.vqa_accuracy("Yes.", ["yes"] * 10) == 1.0

    @pytest.mark.parametrize("answer", DEGENERATE)
    def test_degenerate(self, answer: str) -> None:
        assert vqa.vqa_accuracy(answer, ["red"] * 10) == 0.0


class TestText:
    def test_exact_match(self) -> None:
        assert exact_match("Yes.", "yes") == 1.0
        assert exact_match("yes and no", "yes") == 0.0

    @pytest.mark.parametrize(
        ("answer", "truth", "score"),
        [
            ("hello", "hello", 1.0),
            ("HELLO  world", "hello world", 1.0),
            ("hallo", "hello", 0.8),
            ("ab", "cd", 0.0),
            ("ab", "ad", 0.5),  # at the threshold counts
            ("abc", "ade", 0.0),  # 1/3 is below it
            ("", "hello", 0.0),
        ],
    )
    def test_anls(self, answer: str, truth: str, score: float) -> None:
        assert scores.anls(answer, ["nothing like it", truth]) == pytest.approx(score)

    def test_edit_distance(self) -> None:
        assert scores.edit_distance("kitten", "sitting") == 3
        assert scores.edit_distance("sunday", "saturday") == scores.edit_distance("saturday", "sunday") == 3
        assert scores.edit_distance("abcd", "bcd") == scores.edit_distance("bcd", "abcd") == 1
        assert scores.edit_distance("", "abc") == scores.edit_distance("abc", "") == 3

    @pytest.mark.parametrize(
        ("answer", "truth", "score"),
        [
            ("105", "100", 1.0),
            ("105.1", "100", 0.0),
            ("95", "100", 1.0),
            ("12%", "0.12", 1.0),
            ("12", "12%", 0.0),
            ("Yes", "yes", 1.0),
            ("0", "0", 1.0),
            ("0.001", "0", 0.0),
            ("-10", "-10.2", 1.0),
            ("10.", "10", 1.0),
            ("nan", "100", 0.0),
            ("nan", "nan", 0.0),
            ("inf", "100", 0.0),
            ("", "100", 0.0),
            ("Peru.", "peru", 0.0),
            ("1_00", "100", 1.0),
        ],
    )
    def test_relaxed(self, answer: str, truth: str, score: float) -> None:
        assert text.relaxed_accuracy(answer, truth) == score

    @pytest.mark.parametrize(
        ("answer", "truth", "score"),
        [
            ("nan", "nan", 1.0),
            (" Peru.", "peru", 1.0),
            ("1_00", "100", 0.0),
            ("105", "100", 1.0),
            ("106", "100", 0.0),
            ("12%", "0.12", 1.0),
            ("12", "12%", 0.0),
        ],
    )
    def test_relaxed_as_a_person_compares(self, answer: str, truth: str, score: float) -> None:
        assert text.relaxed_by_person(answer, truth) == score

    def test_contains(self) -> None:
        assert text.contains("The word is CENTRE", ["centre", "center"]) == 1.0
        assert text.contains("", ["centre"]) == 0.0
        assert text.contains("anything", [""]) == 0.0
        assert text.contains("x ^ 2 + y", ["x^2"], formula=True) == 1.0
        assert text.contains("X ^ 2", ["x^2"], formula=True) == 0.0

    @pytest.mark.parametrize("answer", DEGENERATE)
    def test_degenerate(self, answer: str) -> None:
        assert exact_match(answer, "red") == 0.0
        assert scores.anls(answer, ["red"]) == 0.0
        assert text.relaxed_accuracy(answer, "12") == 0.0
        assert text.contains(answer, ["red"]) == 0.0


class TestYesNo:
    @pytest.mark.parametrize(
        ("answer", "read", "pope", "mme"),
        [
            ("Yes", "yes", "yes", "yes"),
            ("Yes.", "yes", "yes", "yes"),
            ("yes, there is a dog.", "yes", "yes", "yes"),
            ("No", "no", "no", "no"),
            ("no.", "no", "no", "no"),
            ("No, there is not. Yes", "no", "no", "no"),
            ("There is not a dog in the image.", "no", "no", ""),
            ("There isn't one", "no", "yes", ""),
            ("", "", "yes", ""),
            ("A dog", "", "yes", ""),
            ("maybe yes, maybe no", "", "no", ""),
            ("Nothing", "", "yes", "no"),
        ],
    )
    def test_readings(self, answer: str, read: str, pope: str, mme: str) -> None:
        assert yes_no.read_yes_no(answer) == read
        assert yes_no.pope_reading(answer) == pope
        assert yes_no.mme_reading(answer) == mme

    def test_always_yes_has_a_yes_ratio_of_one(self) -> None:
        found = yes_no.confusion(["yes"] * 4, ["yes", "no", "yes", "no"])
        assert found["yes_ratio"] == 1.0
        assert (found["accuracy"], found["precision"], found["recall"]) == (0.5, 0.5, 1.0)
        assert found["f1"] == pytest.approx(2 / 3)

    def test_always_no(self) -> None:
        found = yes_no.confusion(["no"] * 4, ["yes", "no", "yes", "no"])
        assert (found["accuracy"], found["precision"], found["recall"], found["f1"]) == (0.5, 0.0, 0.0, 0.0)

    def test_saying_nothing_is_always_wrong(self) -> None:
        found = yes_no.confusion([""] * 4, ["yes", "no", "yes", "no"])
        assert (found["accuracy"], found["yes_ratio"], found["unreadable"]) == (0.0, 0.0, 1.0)

    def test_by_hand(self) -> None:
        found = yes_no.confusion(["yes", "yes", "no", "no", "yes"], ["yes", "no", "yes", "no", "yes"])
        assert found["accuracy"] == pytest.approx(3 / 5)
        assert found["precision"] == found["recall"] == pytest.approx(2 / 3)

    def test_nothing_at_all(self) -> None:
        assert set(yes_no.confusion([], []).values()) == {0.0}
        assert yes_no.mme_scores([], [])["score"] == 0.0

    def test_mme(self) -> None:
        """Three of four right is 75, one of two pictures whole is 50."""
        found = yes_no.mme_scores([True, True, True, False], ["a", "a", "b", "b"])
        assert found == {"accuracy": 75.0, "accuracy_plus": 50.0, "score": 125.0}


CHOICES = {"A": "a dog", "B": "a cat", "C": "a black cat", "D": "12"}


class TestOptions:
    @pytest.mark.parametrize(
        ("answer", "letter"),
        [
            ("B", "B"),
            ("B.", "B"),
            ("(B)", "B"),
            ("b", "B"),
            ("B. a cat", "B"),
            ("B: a cat", "B"),
            ("The answer is B.", "B"),
            ("Answer: (C)", "C"),
            ("I would choose option D here", "D"),
            ("A dog", "A"),
            ("a cat", "B"),
            ("It shows a black cat", "C"),  # "a cat" is not in it as a word group
            ("12", "D"),
            ("A", "A"),
            ("A and B", None),
            ("A B C D", None),
            ("E", None),
            ("", None),
            (".", None),
            ("none of them", None),
            ("(b)", "B"),
            ("[c].", "C"),
            ("b)", "B"),
            ("(b) a cat", "B"),
            ("Option (b)", "B"),
            ("option b", "B"),
            ("The answer is (c).", "C"),
            ("The answer is c.", "C"),
            ("The correct answer is: (D) 12", "D"),
            ("**B**", "B"),
            ("The answer is **C**.", "C"),
            ("\uff22", "B"),
            ("\uff08\uff23\uff09", "C"),
            ("\uff22\uff0e a cat", "B"),
            ("The answer is not A.", None),
            ("It is not A but B.", "B"),
            ("It isn't (a), it is (d)", "D"),
            ("The answer is not option C, it is D", "D"),
            ("The answer is a dog", "A"),
            ("The answer is a cow", None),
            ("not 12", None),
            ("I think it's (d).", "D"),
            ("Neither A nor B", None),
            ("(a) or (b)", None),
            ("Definitely not D.", None),
            ("f(a) = 3", None),
            ("a or b", None),
        ],
    )
    def test_reading(self, answer: str, letter: str | None) -> None:
        assert options.read_option(answer, CHOICES) == letter

    @pytest.mark.parametrize(
        ("answer", "letter"),
        [
            ("The answer is not A.", None),
            ("Definitely not D.", None),
            ("The answer isn't A, it's C.", "C"),
            ("A cat", "A"),  # the kit takes any capital A for a letter
            ("(c)", "C"),
            ("Cannot determine the answer", None),
        ],
    )
    def test_reading_as_the_kit_and_its_judge(self, answer: str, letter: str | None) -> None:
        assert options.kit_or_person(answer, CHOICES) == letter

    def test_one_option_inside_another_is_not_guessed(self) -> None:
        assert options.read_option("the big red ball", {"A": "red ball", "B": "big red ball"}) is None

    @pytest.mark.parametrize("answer", [one for one in DEGENERATE if one != "yes no"])
    def test_degenerate(self, answer: str) -> None:
        assert options.read_option(answer, CHOICES) is None

    def test_always_a_fails_the_rotations(self) -> None:
        passed = options.circular([True, False, False, True], ["q", "q", "q", "r"])
        assert passed == {"q": False, "r": True}

    def test_listing(self) -> None:
        assert options.listed(options.lettered(["x", "y"])) == "A. x\nB. y"


class TestBoxes:
    def test_reading(self) -> None:
        size = (200, 100)
        assert boxes.read_box("[0.1, 0.2, 0.3, 0.4]", size) == (0.1, 0.2, 0.3, 0.4)
        assert boxes.read_box("<box>(20,10),(40,50)</box>", size) == (0.1, 0.1, 0.2, 0.5)
        qwen = "<|box_start|>(100,200),(300,400)<|box_end|>"
        assert boxes.read_box(qwen, size, "thousandths") == (0.1, 0.2, 0.3, 0.4)
        assert boxes.read_box('{"bbox_2d": [20, 10, 40, 50]}', size) == (0.1, 0.1, 0.2, 0.5)
        for nothing in ("", "no box", "1 2 3", "[0.1, 0.2, 0.3]", "<loc0001><loc0002>", "9" * 400 + ", 1, 2, 3"):
            assert boxes.read_box(nothing, size) is None

    def test_forms_of_other_models(self) -> None:
        size = (200, 100)
        # PaliGemma: top, left, bottom, right, of 1024.
        assert boxes.read_box("<loc0256><loc0128><loc0768><loc0512> cup", size) == (0.125, 0.25, 0.5, 0.75)
        named = (0.1, 0.1, 0.2, 0.5)
        for answer in (
            '{"x1": 20, "y1": 10, "x2": 40, "y2": 50}',
            '{"label": "cup 3", "y2": 50.0, "x2": 40, "y1": 10, "x1": 20}',
            "xmin=20, ymin=10, xmax=40, ymax=50",
            "{'left': '20', 'top': '10', 'right': '40', 'bottom': '50'}",
        ):
            assert boxes.read_box(answer, size) == named
        assert boxes.read_box('{"x1": 100, "y1": 200, "x2": 300, "y2": 400}', size, "thousandths") == (
            0.1,
            0.2,
            0.3,
            0.4,
        )

    @pytest.mark.parametrize("unit", ["auto", "resized"])
    def test_qwens_boxes_are_in_the_size_that_its_processor_makes(self, unit: str) -> None:
        """640 x 480 becomes 644 x 476: a box that covers the image there covers it here."""
        task = TASKS["refcoco"](boxes=unit)
        image = Image.new("RGB", (640, 480))
        sample = Sample("1", "", lambda: image, [0.0, 0.0, 640.0, 480.0])
        assert task.read(sample, "[0, 0, 640, 480]") == [0, 0, 640, 480]
        task.seen_size = partial(boxes.resized, factor=28, least=3136, most=12845056)
        assert task.read(sample, '{"bbox_2d": [0, 0, 644, 476]}') == [0, 0, 640, 480]
        task.boxes = "pixels"
        assert task.read(sample, "[0, 0, 640, 480]") == [0, 0, 640, 480]

    def test_fractions_stay_fractions(self) -> None:
        size = (200, 100)
        for box in ((0.1, 0.2, 1.02, 0.9), (0.0, 0.0, 1.001, 1.002), (0, 0, 1, 1), (0.25, 0.5, 1, 1.5)):
            assert boxes.read_box(str(list(box)), size) == box
        assert boxes.read_box("[0, 0, 2, 2]", size) == (0, 0, 0.01, 0.02)
        assert boxes.read_box("[0.5, 0.5, 100, 50]", size) == (0.0025, 0.005, 0.5, 0.5)

    def test_iou(self) -> None:
        assert boxes.iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1.0
        assert boxes.iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
        assert boxes.iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0.0
        assert boxes.iou((1, 1, 0, 0), (0, 0, 1, 1)) == 0.0  # corners the wrong way round
        assert boxes.iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0


class TestChair:
    SYNONYMS = chair.read_synonyms(
        "person, man, woman, child, baby, passenger\ndog, puppy\nbus\ngiraffe\nhot dog\nbicycle, bike\n"
        "knife\ntrain\nbowl, plate\ntoilet\nchair, seat\nwine glass"
    )

    @pytest.mark.parametrize(
        ("caption", "objects"),
        [
            ("A man walks two dogs.", ["person", "dog"]),
            ("a hot dog", ["hot dog"]),
            ("Children and buses, knives", ["person", "bus", "knife"]),
            ("a baby giraffe", ["giraffe"]),
            ("a passenger train on the train tracks", ["train", "train"]),
            ("a man's dog and the dogs' bowl", ["person", "dog", "dog", "bowl"]),
            ("the woman\u2019s bike isn't a giraffe's", ["person", "bicycle", "giraffe"]),
            ("a toilet seat, a toilet and its seat", ["toilet", "toilet"]),
            ("a seat", ["chair"]),
            ("two wine glasses, a glass", ["wine glass"]),
            ("a baby puppy and adult dogs", ["person", "dog", "dog"]),
            ("a fire-hydrant-red bus/train", []),
            ("a player at home plate", []),
            ("a baby", ["person"]),
            ("", []),
            ("?!", []),
        ],
    )
    def test_mentions(self, caption: str, objects: list[str]) -> None:
        assert chair.mentions(caption, self.SYNONYMS) == objects

    def test_counts(self) -> None:
        found = chair.chair(["dog", "bus", "dog", "bicycle", "bus"], ["dog", "person"])
        assert found == {"mentions": 5, "hallucinated": 3, "recalled": 1, "objects": 2}
        assert chair.chair([], ["dog"]) == {"mentions": 0, "hallucinated": 0, "recalled": 0, "objects": 1}
