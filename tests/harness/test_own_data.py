"""Own questions from files and lists: what is read, and what is refused in one sentence before a model is loaded."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.commands import refused
from tests.support.grid import few
from vlmprune import VlmpruneError
from vlmprune.harness.own_data import clusters, read_questions

GOOD = {"image": "a.png", "question": "What colour is it?", "answers": ["red"]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name, colour in (("a.png", "red"), ("photos/b.png", "blue"), ("copy.png", "red")):
        Image.new("RGB", (40, 30), colour).save(name)
    Path("text.png").write_text("no image")
    Path("a.txt").write_text("no video")
    frames = [Image.new("RGB", (40, 30), (200, 50 * number, 0)) for number in range(4)]
    frames[0].save("b.gif", save_all=True, append_images=frames[1:], duration=500)
    Path("cut.png").write_bytes(Path("a.png").read_bytes()[:50])
    return tmp_path


def lines(*rows: Any) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def without(name: str, **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**GOOD, **changes}.items() if key != name}


def shown(question: Any) -> list[Any]:
    return [medium.shown for medium in question.media]


BAD: dict[str, tuple[str, str | bytes]] = {
    "line 2: this is not JSON": ("d.jsonl", lines(GOOD, '{"image": "a.png",')),
    "line 2: ['a.png'] is list, not an object": ("d.jsonl", lines(GOOD, ["a.png"])),
    "line 3: there is no file 'missing.png'": ("d.jsonl", lines(GOOD, "", {**GOOD, "image": "missing.png"})),
    "line 1: the field 'image' is missing": ("d.jsonl", lines(without("image"))),
    "line 1: the field 'answers' is missing": ("d.jsonl", lines(without("answers"))),
    "line 1: the field 'question' is missing; there is 'image', 'answers'": ("d.jsonl", lines(without("question"))),
    "line 1: question is empty": ("d.jsonl", lines({**GOOD, "question": "  "})),
    "line 1: question is 3, which is no text": ("d.jsonl", lines({**GOOD, "question": 3})),
    "line 1: answers is an empty list": ("d.jsonl", lines({**GOOD, "answers": []})),
    "line 1: answers is True, which is no text": ("d.jsonl", lines({**GOOD, "answers": True})),
    "line 1: answers is {'a': 1}, which is no text": ("d.jsonl", lines({**GOOD, "answers": {"a": 1}})),
    "line 1: nan is no answer": ("d.jsonl", lines({**GOOD, "answers": [float("nan")]})),
    "line 1: answers holds half a surrogate pair": ("d.jsonl", lines({**GOOD, "answers": "\ud83d"})),
    "line 1: the field 'choises' is unknown; did you mean 'choices'": ("d.jsonl", lines({**GOOD, "choises": ["a"]})),
    "line 1: there is no scorer 'exakt'; did you mean 'exact'": ("d.jsonl", lines({**GOOD, "scorer": "exakt"})),
    "line 1: the scorer 'choice' needs choices": ("d.jsonl", lines({**GOOD, "scorer": "choice"})),
    "line 1: the scorer 'contains' does not go with choices": (
        "d.jsonl",
        lines({**GOOD, "choices": ["red", "blue"], "scorer": "contains"}),
    ),
    "line 1: there are 1 choices; give 2 to 26": ("d.jsonl", lines({**GOOD, "choices": ["red"]})),
    "line 1: the choice 'red' is there twice": ("d.jsonl", lines({**GOOD, "choices": ["red", "Red "]})),
    "line 1: the answer 'red' is none of the choices blue, green": (
        "d.jsonl",
        lines({**GOOD, "choices": ["blue", "green"]}),
    ),
    "line 1: the answer 'A' is one choice's letter and another's text": (
        "d.jsonl",
        lines({**GOOD, "choices": ["B", "A"], "answers": "A"}),
    ),
    "line 1: the answer 'red' is not one number": ("d.jsonl", lines({**GOOD, "scorer": "number"})),
    "line 1: there are both 'image' and 'images'": ("d.jsonl", lines({**GOOD, "images": ["a.png"]})),
    "line 1: image is an empty list": ("d.jsonl", lines({**GOOD, "image": []})),
    "line 1: 'text.png' is not an image": ("d.jsonl", lines({**GOOD, "image": "text.png"})),
    "line 1: 'cut.png' cannot be read as an image": ("d.jsonl", lines({**GOOD, "image": ["a.png", "cut.png"]})),
    "line 1: 'photos' is not a file": ("d.jsonl", lines({**GOOD, "image": "photos"})),
    "is a web address": ("d.jsonl", lines({**GOOD, "image": "https://example.com/a.png"})),
    "line 1: there is no file 'clip.mp4'; give the path of a video": ("d.jsonl", lines({**GOOD, "image": "clip.mp4"})),
    "line 1: there is no file 'other.mp4'": ("d.jsonl", lines({**without("image"), "video": ["b.gif", "other.mp4"]})),
    "line 1: 'a.txt' is no video": ("d.jsonl", lines({**without("image"), "video": "a.txt"})),
    "line 1: there are both 'video' and 'videos'": ("d.jsonl", lines({**GOOD, "video": "b.gif", "videos": "b.gif"})),
    "line 1: the video has no frames": ("d.jsonl", lines({**without("image"), "video": []})),
    "line 1: an object of type 'int' is no video": ("d.jsonl", lines({**without("image"), "video": 5})),
    "line 1: frames=0 is no number of frames": ("d.jsonl", lines({**without("image"), "video": "b.gif", "frames": 0})),
    "line 2: frames is 'all', which is no number": ("d.csv", "video,question,answers,frames\nb.gif,q,red,all\n"),
    "line 1: frames is about videos, and the question has none": ("d.jsonl", lines({**GOOD, "frames": 4})),
    "line 1: frames=2 and fps=1 both say": (
        "d.jsonl",
        lines({**without("image"), "video": "b.gif", "frames": 2, "fps": 1}),
    ),
    "line 1: 'https://example.com/a.mp4' is a web": ("d.jsonl", lines({**GOOD, "video": "https://example.com/a.mp4"})),
    "line 2: there is no file 'x.png'; give the path of an image (bad too: line 4, line 5)": (
        "d.jsonl",
        lines(GOOD, {**GOOD, "image": "x.png"}, GOOD, "{", "[]"),
    ),
    "'d.jsonl' holds no questions": ("d.jsonl", "\n \n"),
    "d.jsonl is one JSON list": ("d.jsonl", json.dumps([GOOD])),
    "line 2: this is not UTF-8 text": ("d.jsonl", lines(GOOD).encode() + b'{"question": "caf\xe9"}\n'),
    "line 1: a zero byte is no text": ("d.jsonl", lines(GOOD).encode("utf-16")[2:]),
    "this is not UTF-16 text": ("d.jsonl", lines(GOOD).encode("utf-16")[:-1]),
    "line 1: the heading 'picture,asked' has no column 'question'": ("d.csv", "picture,asked\na.png,what\n"),
    "line 3: there are 4 cells for 3 columns": ("d.csv", "image,question,answers\na.png,q,red\na.png,what, ever,red\n"),
    "line 3: the field 'answers' is missing": ("d.csv", "image,question,answers\na.png,q,red\na.png,q\n"),
    "line 4: there is no file 'b.png'": ("d.csv", 'image,question,answers\na.png,"two\nlines",red\nb.png,q,red\n'),
    "line 2: this is no row of a table": ("d.csv", 'image,question,answers\na.png,"q"x,red\n'),
    "line 1: the column 'image' is there twice": ("d.csv", "image,image,question,answers\n"),
    "'e.csv' holds no questions": ("e.csv", "image,question,answers\n"),
    "'f.csv' holds no questions": ("f.csv", ""),
}


def put(why: str) -> str:
    name, content = BAD[why]
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return name


@pytest.mark.parametrize("why", BAD)
def test_bad_data_is_one_sentence(why: str) -> None:
    name = put(why)
    with pytest.raises(VlmpruneError) as caught:
        read_questions(name)
    (line,) = str(caught.value).splitlines()
    assert why in line
    assert name in line


@pytest.mark.parametrize("why", few(list(BAD), 8))
def test_bad_data_is_status_2_before_a_model_is_loaded(why: str) -> None:
    """The model does not exist either, which would be said if it were looked for first."""
    name = put(why)
    line = refused("compare", "--data", name, "--model", "./nowhere")
    assert why in line
    assert not Path("d-compare").exists()


OPTIONS = [
    ("--data nothing.jsonl", "'nothing.jsonl' cannot be read (No such file or directory)"),
    ("--data photos", "'photos' cannot be read (Is a directory)"),
    ("--data d.jsonl a.png", "leave out IMAGE"),
    ("--data d.jsonl --questions 5", "leave out IMAGE, QUESTION and --questions"),
    ("--data d.jsonl --methods fastvv", "did you mean 'fastv'?"),
    ("--data d.jsonl --methods divprune, fastvv", "did you mean 'fastv'?"),
    ("--data d.jsonl --methods |", "there is no method ''"),
    ("--data |", "the data is the working directory itself"),
    ("--data d.jsonl --keep 0.5 2.0", "2.0"),
    ("--data d.jsonl --keep much", "'much'"),
    ("--data d.jsonl --methods sgl --model ./nowhere", "needs a small model"),
    ("--data d.jsonl --scorer exakt", "did you mean 'exact'?"),
    ("--data d.jsonl --max-new-tokens 0", "--max-new-tokens"),
    ("--data d.jsonl --out a.png", "'a.png' cannot be written"),
    ("--data d.jsonl --out a.png/deeper", "cannot be written"),
    ("--data d.jsonl --frames 4", "frames=4 is about videos, and no question of 'd.jsonl' has one"),
    ("--questions 2 --frames 4", "frames=4 is about videos"),
    ("--frames 4", "--frames 4 is about videos"),
    ("--scorer exact", "--scorer goes with --data"),
]


@pytest.mark.parametrize(("arguments", "why"), few(OPTIONS, 3))
def test_bad_options_are_one_line_and_status_2(arguments: str, why: str) -> None:
    Path("d.jsonl").write_text(lines(GOOD))
    assert why in refused("compare", *("" if word == "|" else word for word in arguments.split(" ")))


def test_a_question_with_the_image_token_is_refused_with_its_line() -> None:
    Path("d.jsonl").write_text(lines(GOOD, {**GOOD, "question": "Is <image> red?"}))
    line = refused("compare", "--data", "d.jsonl")
    assert "line 2" in line
    assert "'<image>'" in line


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ([("a.png", "q")], "data[0]: ('a.png', 'q') has 2 parts"),
        ([("a.png", "q", "red"), 5], "data[1]: 5 is int"),
        ([], "'data' holds no questions"),
        (5, "data must be a JSONL or CSV path"),
        ([{"image": b"png", "question": "q", "answers": "red"}], "data[0]: an object of type 'bytes' is no image"),
        ([{"image": None, "question": "q", "answers": "red"}], "data[0]: the field 'image' is missing"),
        ([(Image.new("RGB", (0, 5)), "q", "red")], "data[0]: an image of 0 x 5 pixels"),
        (["a.png"], "data[0]: 'a.png' is str"),
        ("x\0y.jsonl", "cannot be read"),
        ("x" * 300 + ".jsonl", "cannot be read (File name too long)"),
    ],
)
def test_bad_lists_name_the_entry(data: Any, why: str) -> None:
    with pytest.raises(VlmpruneError) as caught:
        read_questions(data)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_lines_as_people_write_them() -> None:
    """Windows line ends, blank lines, a byte order mark, a line separator inside a text, other names and numbers."""
    rows = [
        {"Image": "a.png", "question": "one\u2028line", "answer": "red", "id": 7},
        {"images": ["a.png", "photos/b.png"], "question": "Same?", "answers": ["no", 0, 2.0]},
        {"image": "copy.png", "question": "Which?", "choices": ["red", "blue"], "answers": "b"},
    ]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows).replace("\r\n", "\r\n\r\n", 1)
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        Path("d.jsonl").write_bytes(text.encode(encoding))
        first, second, third = read_questions("d.jsonl")
        assert (first.where, first.question, first.answers, first.scorer) == (
            "line 1",
            "one\u2028line",
            ("red",),
            "exact",
        )
        assert (second.where, second.answers) == ("line 3", ("no", "0", "2"))
        assert shown(second) == [Path("a.png"), Path("photos/b.png")]
        assert third.prompt == (
            "Which?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."
        )
        assert (third.score("B"), third.score("blue."), third.score("A"), third.score("")) == (1, 1, 0, 0)
    # The first and the third image are the same, and the second question shows the first's.
    assert clusters([first, second, third]) == [0, 0, 0]
    assert clusters([first, third, read_questions([("photos/b.png", "q", "x")])[0]]) == [0, 0, 1]


@pytest.mark.parametrize(("ending", "separator"), [("csv", ","), ("csv", ";"), ("tsv", "\t")])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_tables_as_spreadsheets_write_them(ending: str, separator: str, encoding: str) -> None:
    path = Path(f"d.{ending}")
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(["Question", "image", "answers", "choices", "scorer"])
        writer.writerow(['What, "now"?\nTwo lines', "a.png|photos/b.png", "red|crimson", "", "contains"])
        writer.writerow([])
        writer.writerow(["Which?", "a.png", '["red"]', "red|blue", ""])
    first, second = read_questions(path)
    assert first.question == 'What, "now"?\nTwo lines'
    assert shown(first) == [Path("a.png"), Path("photos/b.png")]
    assert (first.answers, first.scorer, first.where) == (("red", "crimson"), "contains", "line 2")
    assert (second.where, second.options, second.answers) == ("line 5", {"A": "red", "B": "blue"}, ("A",))


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos" / "d.jsonl").write_text(lines({**GOOD, "image": "b.png"}, {**GOOD, "image": "../a.png"}))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    one, other = read_questions("../photos/d.jsonl")
    assert one.opened()[0].getpixel((0, 0)) == (0, 0, 255)
    assert other.opened()[0].getpixel((0, 0)) == (255, 0, 0)
    absolute = read_questions([(str(tmp_path / "a.png"), "q", "red")])[0]
    assert absolute.digests == other.digests


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        ({"A": "red", "B": "blue"}, "blue"),
        ({"b": "blue", "a": "red"}, "B"),
        (["A. red", "B. blue"], "blue"),
        (["(A) red", "(B) blue"], "(b)"),
        (["red", "blue"], "B."),
    ],
)
def test_choices_as_people_write_them(choices: Any, answer: str) -> None:
    """Objects by letter were refused, and a letter in a choice was asked twice: "A. A. red"."""
    (one,) = read_questions([{"image": "a.png", "question": "Which?", "choices": choices, "answers": answer}])
    assert (dict(one.options), one.answers) == ({"A": "red", "B": "blue"}, ("B",))


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("d.csv", "image,Question,question,answers\na.png,q,r,red\n", "'Question' is there twice"),
        ("d.jsonl", '{"image":"a.png","question":"q","answers":"x","answers":"y"}', "'answers' is there twice"),
        ("d.jsonl", '{"image":"a.png","question":"q","answers":"x","Answers":"y"}', "'answers' is there twice"),
        ("d.jsonl", lines({"image": "x" * 5000, "question": "q", "answers": "x"}), "File name too long"),
        (
            "d.jsonl",
            lines({"image": "a.png", "question": "q", "choices": {"A": "x", "C": "y"}, "answers": "x"}),
            "A, C; name them A, B",
        ),
    ],
)
def test_what_stands_there_twice_or_cannot_be_is_refused(name: str, content: str, why: str) -> None:
    Path(name).write_text(content)
    with pytest.raises(VlmpruneError) as caught:
        read_questions(name)
    assert why in str(caught.value)
    assert "Errno" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_spaces_before_a_quoted_cell() -> None:
    Path("d.csv").write_text('image, question, answers\na.png, "Which, here?", red\n')
    (one,) = read_questions("d.csv")
    assert (one.question, one.answers) == ("Which, here?", ("red",))


def test_the_same_bytes_under_another_palette_are_another_image() -> None:
    """Else the second question is given the first one's recorded answer."""
    shown = []
    for colour in ([255, 0, 0], [0, 0, 255]):
        image = Image.new("P", (4, 4))
        image.putpalette(colour * 256)
        shown.append(image)
    first, second = read_questions([(image, "Which?", "red") for image in shown])
    assert first.digests != second.digests


def test_clips_in_lines_tables_and_lists() -> None:
    """A path, frames, several clips, beside images or not; the row's own sampling wins over the one given for all."""
    frames = [Image.new("RGB", (8, 6), (number, 0, 0)) for number in range(5)]
    Path("d.jsonl").write_text(
        lines(
            {**without("image"), "video": "b.gif"},
            {**without("image"), "video": "b.gif", "frames": 2},
            {**GOOD, "videos": ["b.gif", "b.gif"]},
            {**without("image"), "video": ["a.png", "copy.png"], "fps": 2},
            {**GOOD, "video": ""},
        )
    )
    read = [one.opened() for one in read_questions("d.jsonl", frames=3)]
    assert [[len(clip.frames) for clip in one] for one in (read[0], read[1], read[3])] == [[3], [2], [2]]
    assert (read[2][0].size, [len(clip.frames) for clip in read[2][1:]]) == ((40, 30), [3, 3])
    assert read[3][0].seconds == [0.0, 0.5]
    assert [one.size for one in read[4]] == [(40, 30)]
    Path("d.csv").write_text(
        "video,image,question,answers,frames\nb.gif,,q,red,2\na.png|copy.png,,q,red,\n,a.png,q,red,\n"
    )
    with pytest.warns(UserWarning, match="2 a second are assumed"):
        tabled = read_questions("d.csv")
    assert [len(one.opened()[0].frames) for one in tabled[:2]] == [2, 2]
    rows = [("b.gif", "q", "red"), {"video": frames, "fps": 1, "question": "q", "answers": "red"}]
    still, clip = (one.opened()[0] for one in read_questions(rows, frames=2))
    assert still.size == (40, 30)  # an animated image is an image unless it stands under `video`
    assert (len(clip.frames), clip.seconds) == (2, [0.0, 4.0])


def test_two_samplings_of_a_clip_are_two_questions_about_one_clip() -> None:
    rows = [{"video": "b.gif", "question": "q", "answers": "r", "frames": count} for count in (2, 3)]
    first, second = read_questions(rows)
    assert clusters([first, second]) == [0, 0]
    assert first.media[0].seen != second.media[0].seen
