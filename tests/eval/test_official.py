"""Each scorer against a reference written from its official script's behaviour, on generated answers of nasty forms.

Sources: VQA's vqaEval.py (both versions), M4C's EvalAI processor (TextVQA), the DocVQA challenge's script,
Pix2Struct's relaxed accuracy (ChartQA), OCRBench's example.py, GQA's eval.py behind LLaVA's conversion, POPE's
evaluate.py, MME's calculation.py, VLMEvalKit's can_infer and circular groups, LLaVA's ScienceQA script, MMStar's,
RefCOCO's IoU at 0.5, CHAIR's chair.py. The references are plain loops over characters and words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from eval.scorers import boxes, chair, options, text, vqa, yes_no
from eval.tasks.registry import TASKS
from vlmprune.accounting.scores import anls

COUNT = 600
WORDS = [
    "yes",
    "no",
    "two",
    "one",
    "ten",
    "none",
    "zero",
    "a",
    "an",
    "the",
    "red",
    "car",
    "dont",
    "cant",
    "wont",
    "couldnt've",
    "10",
    "1,000",
    "3.5",
    "10.0.1",
    "new",
    "york",
    "ny",
    "nokia's",
    "it's",
    "let's",
    "somebody'd",
    "yall'd've",
    "o'clock",
    "oclock",
    "Id've",
    "im",
    "U.S.",
    "$5",
    "50%",
    "#1",
    "mid-air",
    "'quoted'",
    "don't",
    "St.",
    "(left)",
    "[right]",
    "hello!",
]
GLUE = (
    " ",
    " ",
    " ",
    ", ",
    ",",
    " - ",
    "-",
    "/",
    ". ",
    ".",
    "? ",
    "!",
    "; ",
    "  ",
    "\n",
    "\t",
    "'s ",
    "_",
    " & ",
    ": ",
)


def sentences(seed: int, count: int = COUNT) -> Iterator[str]:
    """Answers of up to six words with punctuation of every kind between and around them."""
    dice = random.Random(seed)
    for _ in range(count):
        made = dice.choice(("", "", " ", "\n", "The ", "a ", "("))
        for _ in range(dice.randint(0, 6)):
            word = dice.choice(WORDS)
            made += dice.choice((word, word.upper(), word.capitalize())) + dice.choice(GLUE)
        yield made + dice.choice(("", "", ".", "!", " .", "...", "." * 40, "\ufffd", "ß", "é"))


# -- VQAv2, VizWiz, TextVQA -------------------------------------------------------------------------------------------

PAIRS = """
aint ain't|arent aren't|cant can't|couldve could've|couldnt couldn't|couldn'tve couldn't've|couldnt've couldn't've
didnt didn't|doesnt doesn't|dont don't|hadnt hadn't|hadnt've hadn't've|hadn'tve hadn't've|hasnt hasn't|havent haven't
hed he'd|hed've he'd've|he'dve he'd've|hes he's|howd how'd|howll how'll|hows how's|Id've I'd've|I'dve I'd've|Im I'm
Ive I've|isnt isn't|itd it'd|itd've it'd've|it'dve it'd've|itll it'll|let's let's|maam ma'am|mightnt mightn't
mightnt've mightn't've|mightn'tve mightn't've|mightve might've|mustnt mustn't|mustve must've|neednt needn't|notve not've
oclock o'clock|oughtnt oughtn't|ow's'at 'ow's'at|'ows'at 'ow's'at|'ow'sat 'ow's'at|shant shan't|shed've she'd've
she'dve she'd've|she's she's|shouldve should've|shouldnt shouldn't|shouldnt've shouldn't've|shouldn'tve shouldn't've
somebody'd somebodyd|somebodyd've somebody'd've|somebody'dve somebody'd've|somebodyll somebody'll|somebodys somebody's
someoned someone'd|someoned've someone'd've|someone'dve someone'd've|someonell someone'll|someones someone's
somethingd something'd|somethingd've something'd've|something'dve something'd've|somethingll something'll|thats that's
thered there'd|thered've there'd've|there'dve there'd've|therere there're|theres there's|theyd they'd|theyd've they'd've
they'dve they'd've|theyll they'll|theyre they're|theyve they've|twas 'twas|wasnt wasn't|wed've we'd've|we'dve we'd've
weve we've|werent weren't|whatll what'll|whatre what're|whats what's|whatve what've|whens when's|whered where'd
wheres where's|whereve where've|whod who'd|whod've who'd've|who'dve who'd've|wholl who'll|whos who's|whove who've
whyll why'll|whyre why're|whys why's|wont won't|wouldve would've|wouldnt wouldn't|wouldnt've wouldn't've
wouldn'tve wouldn't've|yall y'all|yall'll y'all'll|y'allll y'all'll|yall'd've y'all'd've|y'alld've y'all'd've
y'all'dve y'all'd've|youd you'd|youd've you'd've|you'dve you'd've|youll you'll|youre you're|youve you've
"""
CONTRACTED = dict(pair.split(" ") for line in PAIRS.strip().split("\n") for pair in line.split("|"))
NUMBERS = dict(
    zip(
        ["none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
        ["0", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"],
        strict=True,
    )
)
MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]


@cache
def punctuated(given: str) -> str:
    """The scripts' punctuation: marks go where one touches a space or digits have a comma, else they become spaces."""
    comma = any(
        given[at - 1].isdigit() and given[at] == "," and given[at + 1].isdigit() for at in range(1, len(given) - 1)
    )
    out = given
    for mark in MARKS:
        touches = any(
            given[at] == mark and ((at and given[at - 1] == " ") or given[at + 1 : at + 2] == " ")
            for at in range(len(given))
        )
        out = out.replace(mark, "" if touches or comma else " ")
    kept, dropped = "", 0
    for at, letter in enumerate(out):
        # re.UNICODE, which is 32, is passed as the count of the substitution.
        if letter == "." and not out[at + 1 : at + 2].isdigit() and dropped < 32:
            dropped += 1
        else:
            kept += letter
    return kept


@cache
def worded(given: str) -> str:
    out = []
    for word in given.lower().split():
        word = NUMBERS.get(word, word)
        if word not in ("a", "an", "the"):
            out.append(CONTRACTED.get(word, word))
    return " ".join(out)


def spaced(given: str) -> str:
    return given.replace("\n", " ").replace("\t", " ").strip()


def leave_one_out(given: str, people: list[str]) -> float:
    scores = []
    for left in range(len(people)):
        others = [one for at, one in enumerate(people) if at != left]
        scores.append(min(1, sum(one == given for one in others) / 3))
    return sum(scores) / len(scores)


def vqa_reference(answer: str, people: list[str]) -> float:
    """The later version of the script."""
    given, people = spaced(answer), [spaced(one) for one in people]
    if len(set(people)) > 1:
        people = [worded(punctuated(one)) for one in people]
        given = worded(punctuated(given))
    return leave_one_out(given, people)


@cache
def m4c(given: str) -> str:
    given = given.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return worded(punctuated(spaced(given)))


def crowds(seed: int) -> Iterator[tuple[str, list[str]]]:
    """An answer and what ten people said: some of them the same in other spellings."""
    dice = random.Random(seed)
    pool = list(sentences(seed))
    for answer in pool:
        near = [answer, answer.lower(), answer + ".", answer.replace(",", ""), worded(punctuated(spaced(answer)))]
        people = [dice.choice(near) if dice.random() < 0.6 else dice.choice(pool) for _ in range(10)]
        yield answer, [people[0]] * 10 if dice.random() < 0.2 else people


def test_the_table_of_contractions() -> None:
    assert {**vqa.CONTRACTIONS, **{word: word for word, right in CONTRACTED.items() if word == right}} == CONTRACTED


def test_vqa_normalisation() -> None:
    for answer in sentences(1):
        assert vqa.normalise(answer) == worded(punctuated(spaced(answer))), answer


def test_vqa_accuracy() -> None:
    scores = set()
    for answer, people in crowds(2):
        found = vqa.vqa_accuracy(answer, people, unanimous_as_is=True)
        assert found == pytest.approx(vqa_reference(answer, people)), (answer, people)
        # The earlier version normalises the answer always, and differs where all agree alone.
        always = leave_one_out(worded(punctuated(spaced(answer))), [worded(punctuated(spaced(one))) for one in people])
        assert vqa.vqa_accuracy(answer, people) == pytest.approx(always)
        scores.add(round(found, 3))
    assert scores >= {0.0, 0.3, 0.6, 0.9, 1.0}


def test_textvqa_accuracy() -> None:
    scores, differ = set(), 0
    for answer, people in crowds(3):
        found = vqa.textvqa_accuracy(answer, people)
        assert found == pytest.approx(leave_one_out(m4c(answer), [m4c(one) for one in people])), (answer, people)
        differ += found != vqa.vqa_accuracy(answer, people)
        scores.add(round(found, 3))
    assert scores >= {0.0, 0.3, 0.6, 0.9, 1.0}
    assert differ > 10
    assert vqa.textvqa_accuracy("new york,ny", ["new york, ny"] * 10) == 0.0
    assert vqa.textvqa_accuracy("nokia's", ["nokia 's"] * 10) == 1.0
    assert TASKS["textvqa"].scorer is vqa.textvqa_accuracy


# -- texts ------------------------------------------------------------------------------------------------------------


def levenshtein(a: str, b: str) -> int:
    table = [[i + j if not i * j else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            change = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, change)
    return table[-1][-1]


def anls_reference(answer: str, truths: list[str]) -> float:
    values = []
    for truth in truths:
        distance = levenshtein(" ".join(truth.strip().lower().split()), " ".join(answer.strip().lower().split()))
        length = max(len(truth.upper()), len(answer.upper()))
        values.append(0.0 if length == 0 else distance / length)
    result = 1 - min(values)
    return 0.0 if result < 0.5 else result


def altered(dice: random.Random, given: str) -> str:
    """The same text with a few letters changed, lost, doubled or spaced out."""
    letters = list(given)
    for _ in range(dice.randint(0, 4)):
        at = dice.randrange(len(letters) + 1)
        letters[at : at + dice.randint(0, 1)] = dice.choice(["", " ", "   ", "x", "ß", "İ", "\n"])
    return "".join(letters)


def test_anls() -> None:
    dice, scores = random.Random(4), []
    for answer in sentences(4):
        answer = answer[:32]
        truths = [altered(dice, answer)] + [altered(dice, one)[:24] for one in sentences(dice.randrange(99), 2)]
        dice.shuffle(truths)
        found = anls(answer, truths)
        assert found == pytest.approx(anls_reference(answer, truths)), (answer, truths)
        scores.append(found)
    assert min(scores) == 0.0
    assert sum(0.5 <= one < 1 for one in scores) > 100
    # Lengths are those before spaces were collapsed.
    assert anls("a    b", ["ac"]) == pytest.approx(1 - 2 / 6)


def relaxed_reference(answer: str, truth: str) -> float:
    def number(given: str) -> float | None:
        try:
            if given.endswith("%"):
                return float(given.rstrip("%")) / 100.0
            return float(given)
        except ValueError:
            return None

    a, b = number(answer), number(truth)
    if a is not None and b:
        return float(abs(a - b) / abs(b) <= 0.05)
    return float(answer.lower() == truth.lower())


def test_relaxed_accuracy() -> None:
    dice, right = random.Random(5), 0
    spelt = [
        "{}",
        "{}%",
        " {} ",
        "{}%%",
        "+{}",
        "-{}",
        "{}.",
        "{}e0",
        "${}",
        "{} %",
        "1{}",
        "{},000",
        "nan",
        "inf",
        "1_0",
        "",
        "%",
        "Peru",
        "peru",
        "PERU.",
        "Infinity",
        "٣",
    ]
    for _ in range(COUNT * 2):
        base = dice.choice([0, 0.0, 1, 10, 95, 100, 104.9, 105, 105.1, 3.14, 1e9])
        other = base * dice.choice([1, 1, 0.95, 0.949, 1.05, 1.0501, 0.01, 100])
        answer, truth = dice.choice(spelt).format(other), dice.choice(spelt).format(base)
        found = text.relaxed_accuracy(answer, truth)
        assert found == relaxed_reference(answer, truth), (answer, truth)
        right += found == 1
    assert 40 < right < COUNT * 2


def ocrbench_reference(answer: str, truths: list[str], formula: bool) -> float:
    for truth in truths:
        if formula:
            wanted = truth.strip().replace("\n", " ").replace(" ", "")
            given = answer.strip().replace("\n", " ").replace(" ", "")
        else:
            wanted, given = (one.lower().strip().replace("\n", " ") for one in (truth, answer))
        if wanted in given:
            return 1.0
    return 0.0


def test_ocrbench() -> None:
    dice, found = random.Random(6), []
    for answer in sentences(6, COUNT * 2):
        start = dice.randrange(len(answer) + 1)
        truths = [one for one in (altered(dice, answer[start : start + 8]), dice.choice(WORDS)) if one.strip()]
        for formula in (False, True):
            found.append(text.contains(answer, truths, formula=formula))
            assert found[-1] == ocrbench_reference(answer, truths, formula), (answer, truths, formula)
    assert 200 < sum(found) < len(found) - 200


def test_gqa() -> None:
    task, found = TASKS["gqa"](), []
    for answer in sentences(7):
        truth = answer.strip().rstrip(".").lower() if len(found) % 2 else "red"
        found.append(task.scorer(answer, truth))
        assert found[-1] == float(answer.strip().rstrip(".").lower() == truth)
    for answer, right in (("Yes.", 1.0), ("yes...", 1.0), ("yes .", 0.0), ("yes!", 0.0)):
        assert task.scorer(answer, "yes") == right


# -- yes or no --------------------------------------------------------------------------------------------------------


def replies(seed: int) -> Iterator[str]:
    dice = random.Random(seed)
    pieces = [
        "Yes",
        "yes",
        "No",
        "no",
        "NO",
        "not",
        "Not",
        "isn't",
        "there is",
        "a dog",
        "nothing",
        "know",
        "yesterday",
        "",
        "n",
    ]
    for _ in range(COUNT):
        made = dice.choice(["", " ", "\n", "  "])
        for _ in range(dice.randint(0, 5)):
            made += dice.choice(pieces) + dice.choice([" ", ", ", ". ", ".", ",", "\n", "! ", "? "])
        yield made


def pope_reference(answer: str) -> str:
    if "." in answer:
        answer = answer[: answer.index(".")]
    words = answer.replace(",", "").split(" ")
    return "no" if "No" in words or "not" in words or "no" in words else "yes"


def test_pope() -> None:
    answers = list(replies(8))
    dice = random.Random(8)
    labels = [dice.choice(["yes", "no"]) for _ in answers]
    task = TASKS["pope"]()
    rows = []
    for at, (answer, label) in enumerate(zip(answers, labels, strict=True)):
        parsed = task.read(None, answer)  # type: ignore[arg-type]  # which it does not look at
        assert parsed == yes_no.pope_reading(answer) == pope_reference(answer), answer
        category = dice.choice(["random", "popular", "adversarial"])
        rows.append(
            {
                "id": str(at),
                "group": str(at // 3),
                "answer": answer,
                "parsed": parsed,
                "score": float(parsed == label),
                "meta": {"label": label, "category": category},
            }
        )
    said = [pope_reference(answer) for answer in answers]
    hits = sum(a == b == "yes" for a, b in zip(said, labels, strict=True))
    precision, recall = hits / said.count("yes"), hits / labels.count("yes")
    found = task.metrics(rows)
    assert found["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert found["accuracy"] == pytest.approx(sum(map(str.__eq__, said, labels)) / len(said))
    assert (found["precision"], found["recall"]) == (pytest.approx(precision), pytest.approx(recall))
    assert found["yes_ratio"] == pytest.approx(said.count("yes") / len(said))


def mme_reference(answer: str) -> str:
    answer = answer.strip().lower()
    if answer in ("yes", "no"):
        return answer
    for word in ("yes", "no"):
        if any(answer[:4][at : at + len(word)] == word for at in range(4)):
            return word
    return ""


def test_mme() -> None:
    answers = list(replies(9))
    for answer in answers:
        assert yes_no.mme_reading(answer) == mme_reference(answer), answer
    dice = random.Random(9)
    truths = [dice.choice(["yes", "no"]) for _ in answers]
    right = [mme_reference(answer) == truth for answer, truth in zip(answers, truths, strict=True)]
    pairs = [right[at] and right[at + 1] for at in range(0, len(right), 2)]
    found = yes_no.mme_scores(right, [str(at // 2) for at in range(len(right))])
    assert found["accuracy"] == pytest.approx(100 * sum(right) / len(right))
    assert found["accuracy_plus"] == pytest.approx(100 * sum(pairs) / len(pairs))


# -- options ----------------------------------------------------------------------------------------------------------


def letter_answers(seed: int) -> Iterator[tuple[str, dict[str, str]]]:
    dice = random.Random(seed)
    texts = [
        "a dog",
        "a cat",
        "a black cat",
        "12",
        "Both A and B",
        "None of the above",
        "red",
        "Nokia",
        "I.",
        "x = 2",
        "cat",
    ]
    shapes = [
        "{L}",
        "{L}.",
        "({L})",
        "{l}",
        "({l})",
        "{L}. {t}",
        "{L}: {t}",
        "{L}) {t}",
        "[{L}]",
        "{t}",
        "{T}",
        "It is {t}.",
        "{L}\n{t}",
        "The answer is {L}",
        "The answer is {L}.",
        "The answer is ({L}).",
        "the answer is {l}",
        "Answer: {L}",
        "option {L}",
        "Option ({l})",
        "{L} and {M}",
        "{L}, not {M}",
        "I would say {L} because it is {t}",
        "**{L}**",
        "Z",
        "",
        " ",
        "!",
        "{L}{M}",
        "A {t} stands here in the middle of the road",
        "I'm sorry, but without the image provided {L}",
        "{t} or {u}",
        "{L}.{t}",
        "Because of what can be seen in the picture, {L} is right, as far as I can tell from here",
        "Cannot determine the answer",
        "Failed to obtain answer via API {L}",
        "{L}\t",
        "E",
        "The answer is not {L}.",
        "{L};{L}",
        "{L} {L}",
    ]
    for _ in range(COUNT):
        count = dice.randint(2, 5)
        given = dict(zip("ABCDE", dice.sample(texts, count), strict=False))
        first, second = dice.choice(list(given)), dice.choice(list(given))
        yield (
            dice.choice(shapes).format(
                L=first, l=first.lower(), M=second, t=given[first], T=given[first].upper(), u=given[second]
            ),
            given,
        )


def can_infer(answer: str, choices: dict[str, str]) -> str | None:
    """VLMEvalKit's rule, step by step."""
    if "Failed to obtain answer via API" not in answer:
        for refusal in (
            "Sorry, I can't help with images of people yet.",
            "I can't process this file.",
            "I'm sorry, but without the image provided",
            "Cannot determine the answer",
        ):
            if refusal in answer:
                return "Z"
        bare = answer
        for letter in ".()[],:;!*#{}":
            bare = bare.replace(letter, " ")
        splits = bare.split()
        there = [one for one in choices if one in splits]
        if len(there) == 1 and splits.index(there[0]) > len(splits) - 5:
            return there[0]
        if not there and "Z" in splits:
            return "Z"
    lower = answer.lower()
    if len(lower) > 2 * sum(len(one) for one in choices.values()):
        return None
    inside = [one for one, words in choices.items() if words.lower() in lower]
    return inside[0] if len(inside) == 1 else None


def test_vlmevalkits_inference() -> None:
    inferred, judged = 0, 0
    for answer, given in letter_answers(10):
        official = can_infer(answer, given)
        assert options.kit_reading(answer, given) == official, (answer, given)
        found = options.kit_or_person(answer, given)
        if official is None:
            judged += 1  # the kit asks a judge model here
            assert found == options.read_option(answer, given)
        elif "not" not in answer:
            inferred += 1
            assert found == (official if official in given else None), (answer, given)
    assert inferred > 250
    assert judged > 50
    for name in ("mmbench", "seed", "ai2d"):
        assert TASKS[name].official is options.kit_or_person  # type: ignore[attr-defined]  # all are multiple choice


def test_a_person_reads_what_the_kit_infers() -> None:
    """Where both read a letter it is the same, but for a denied one, an article, and a letter that a text is about."""
    agree, differ = 0, set()
    for answer, given in letter_answers(11):
        official, found = can_infer(answer, given), options.read_option(answer, given)
        if official in given and found is not None:
            agree += official == found
            if official != found:
                differ.add(answer)
    assert agree > 250
    assert all(one.startswith(("A ", "The answer is not")) for one in differ), differ


def scienceqa_reference(answer: str, given: dict[str, str]) -> str | None:
    line = answer.replace("\n", ". ")
    found = None
    if line.strip() in list("ABCDE"):
        found = line.strip()
    elif len(line) >= 3 and line[0] in "ABCDE" and line[1] == "." and line[2] == " ":
        found = line[0]
    elif "The answer is " in line:
        starts = [at + len("The answer is ") for at in range(len(line)) if line.startswith("The answer is ", at)]
        letters = [line[at] for at in starts if line[at : at + 1] in tuple("ABCDE")]
        dotted = [line[at] for at in starts if line[at : at + 1] in tuple("ABCDE") and line[at + 1 : at + 2] == "."]
        found = (dotted or letters or [None])[0]
    return found if found in given else None


def mmstar_reference(answer: str, truth: str) -> bool:
    """The script asks whether the truth is read."""
    truth, said = truth.lower(), answer.lower().strip().replace("\n", " ")
    try:
        if truth == said[0]:
            return True
        if said[0] == "(" and truth == said[1]:
            return True
        if said[0:7] == "option " and truth == said[7]:
            return True
        return said[0:14] == "the answer is " and truth == said[14]
    except IndexError:
        return False


@pytest.mark.parametrize("seed", [12, 13])
def test_scienceqa_and_mmstar(seed: int) -> None:
    read = 0
    for answer, given in letter_answers(seed):
        found = options.scienceqa_reading(answer, given)
        assert found == scienceqa_reference(answer, given), (answer, given)
        read += found is not None
        four = dict.fromkeys("ABCD", "")
        for truth in four:
            assert (options.mmstar_reading(answer, four) == truth) == mmstar_reference(answer, truth), answer
    assert read > 50


def test_circular_groups() -> None:
    """A question is hit when every row of it is, whatever the order of the rows."""
    dice = random.Random(14)
    rows = [(question, dice.random() < 0.8) for question in range(200) for _ in range(dice.randint(2, 4))]
    dice.shuffle(rows)
    found = options.circular([hit for _, hit in rows], [str(question) for question, _ in rows])
    for question in range(200):
        hit = True
        for other, right in rows:
            if other == question and not right:
                hit = False
        assert found[str(question)] == hit


# -- boxes and captions -----------------------------------------------------------------------------------------------


def test_intersection_over_union() -> None:
    """Against pixels that are counted."""
    dice = random.Random(15)
    for _ in range(COUNT):
        a, b = ([dice.randint(0, 9) for _ in range(4)] for _ in range(2))
        cells = [{(x, y) for x in range(one[0], one[2]) for y in range(one[1], one[3])} for one in (a, b)]
        union = len(cells[0] | cells[1])
        wanted = len(cells[0] & cells[1]) / union if all(cells) else 0.0
        assert boxes.iou(a, b) == pytest.approx(wanted)


def test_boxes_are_read_in_every_form() -> None:
    dice, size = random.Random(16), (640, 480)
    forms: list[Callable[[list[int]], str]] = [
        lambda b: f"[{b[0]}, {b[1]}, {b[2]}, {b[3]}]",
        lambda b: f"({b[0]},{b[1]}),({b[2]},{b[3]})",
        lambda b: f"<|box_start|>({b[0]},{b[1]}),({b[2]},{b[3]})<|box_end|>",
        lambda b: f'```json\n[{{"bbox_2d": {b}, "label": "cup"}}]\n```',
        lambda b: f'{{"x1": {b[0]}, "y1": {b[1]}, "x2": {b[2]}, "y2": {b[3]}}}',
        lambda b: f"{{'ymax': {b[3]}, 'ymin': {b[1]}, 'xmax': {b[2]}, 'xmin': {b[0]}}}",
        lambda b: f"The box is {b[0]} {b[1]} {b[2]} {b[3]}.",
        lambda b: f"<box>{b[0]},{b[1]},{b[2]},{b[3]}</box>",
        lambda b: f"[[{b[0]}, {b[1]}, {b[2]}, {b[3]}]]",
    ]
    for _ in range(COUNT):
        x, y = sorted(dice.sample(range(3, 640), 2)), sorted(dice.sample(range(3, 480), 2))
        box = [x[0], y[0], x[1], y[1]]
        answer = dice.choice(forms)(box)
        found = boxes.read_box(answer, size)
        assert found == pytest.approx((x[0] / 640, y[0] / 480, x[1] / 640, y[1] / 480)), answer
        fractions = [round(one, 3) for one in (x[0] / 640, y[0] / 480, x[1] / 640, y[1] / 480)]
        assert boxes.read_box(dice.choice(forms)(fractions), size) == tuple(fractions)  # type: ignore[arg-type]  # floats
        locations = [f"<loc{round(one * 1023):04}>" for one in (fractions[1], fractions[0], fractions[3], fractions[2])]
        assert boxes.read_box("".join(locations) + " cup", size) == pytest.approx(fractions, abs=0.002)


def test_sizes_are_those_of_qwens_processor() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    dice = random.Random(17)
    for _ in range(COUNT):
        size = dice.randint(20, 3000), dice.randint(20, 3000)
        least, most = dice.choice([(3136, 12845056), (3136, 401408), (100352, 1003520)])
        high, wide = smart_resize(size[1], size[0], factor=28, min_pixels=least, max_pixels=most)
        assert boxes.resized(size, 28, least, most) == (wide, high)


SYNONYMS = """person, girl, boy, man, woman, kid, child, people, baby, passenger
dog, puppy
cat, kitten
giraffe
train, locomotive
airplane, jetliner, plane, air plane, jet
bus
toilet, urinal
chair, seat, stool
wine glass
traffic light, street light, stop light
hot dog
tie
bird, ostrich
potted plant, houseplant
knife, pocketknife
motorcycle, motor bike, motor cycle
cup, mug
"""
PLURALS = {
    "people": "people",
    "men": "man",
    "women": "woman",
    "children": "child",
    "knives": "knife",
    "wolves": "wolf",
    "buses": "bus",
    "bus": "bus",
    "glasses": "glass",
    "glass": "glass",
    "puppies": "puppy",
}


def chair_reference(caption: str) -> list[str]:
    """chair.py's steps, with a tokenizer for these captions and a dictionary of plurals instead of NLTK and Pattern."""
    of = {}
    for line in SYNONYMS.strip().split("\n"):
        for name in line.split(", "):
            of[name] = line.split(", ")[0]
    double = {
        one: one
        for one in (
            "motor bike",
            "motor cycle",
            "air plane",
            "traffic light",
            "street light",
            "stop light",
            "wine glass",
            "hot dog",
            "potted plant",
            "home plate",
            "teddy bear",
        )
    }
    for animal in ("bird", "cat", "dog", "giraffe", "animal", "cub"):
        double |= {f"baby {animal}": animal, f"adult {animal}": animal}
    double |= {"passenger train": "train", "passenger jet": "jet", "bow tie": "tie", "toilet seat": "toilet"}
    for mark in '.,!?;:()"':
        caption = caption.replace(mark, f" {mark} ")
    words = []
    for token in caption.lower().replace("'s ", " 's ").replace("s' ", "s ' ").split():
        plural = token.endswith("s") and not token.endswith("ss") and token != "'s"
        words.append(PLURALS.get(token, token[:-1] if plural else token))
    joined, at = [], 0
    while at < len(words):
        two = " ".join(words[at : at + 2])
        joined.append(double.get(two, words[at]))
        at += 2 if two in double else 1
    if "toilet" in joined and "seat" in joined:
        joined = [word for word in joined if word != "seat"]
    return [of[word] for word in joined if word in of]


def test_chair() -> None:
    dice = random.Random(18)
    table = chair.read_synonyms(SYNONYMS)
    words = [
        "a",
        "the",
        "two",
        "red",
        "man",
        "woman",
        "men",
        "women",
        "people",
        "children",
        "dog",
        "dogs",
        "puppy",
        "puppies",
        "cat",
        "kitten",
        "giraffe",
        "train",
        "trains",
        "jet",
        "passenger",
        "baby",
        "adult",
        "bus",
        "buses",
        "toilet",
        "seat",
        "seats",
        "chair",
        "chairs",
        "wine",
        "glass",
        "glasses",
        "traffic",
        "light",
        "lights",
        "hot",
        "tie",
        "bow",
        "bird",
        "birds",
        "potted",
        "plant",
        "plants",
        "knife",
        "knives",
        "motor",
        "bike",
        "cycle",
        "home",
        "plate",
        "cub",
        "animal",
        "cups",
        "mug",
        "standing",
        "well-dressed",
        "cat/dog",
        "glass-topped",
    ]
    named = 0
    for _ in range(COUNT):
        caption = "".join(
            dice.choice(words) + dice.choice([" ", " ", " ", ", ", ". ", "'s ", " (", ") ", "! "])
            for _ in range(dice.randint(0, 12))
        )
        wanted = chair_reference(caption + " ")
        assert chair.mentions(caption, table) == wanted, caption
        named += len(wanted)
        there = set(dice.sample(["person", "dog", "cat", "train", "bus", "toilet", "chair", "tie", "cup"], 4))
        counts = chair.chair(chair.mentions(caption, table), there)
        assert (counts["mentions"], counts["hallucinated"]) == (
            len(wanted),
            len([one for one in wanted if one not in there]),
        )
        assert (counts["recalled"], counts["objects"]) == (len(there & set(wanted)), 4)
    assert named > COUNT


def test_readings_are_an_option_that_is_off() -> None:
    """As a person reads and as the scripts do: each task says both, and the scripts' is what runs."""
    assert all(task().reading == "official" for task in TASKS.values())
    person = {name: TASKS[name](reading="person") for name in ("pope", "gqa", "chartqa")}
    assert person["pope"].read(None, "") == ""  # type: ignore[arg-type]  # as above
    assert TASKS["pope"]().read(None, "") == "yes"  # type: ignore[arg-type]  # as above
    assert re.search(r"[a-z]", str(person["gqa"].by_person))
