"""A few rows of every benchmark in its official layout, made where a test wants them."""

from __future__ import annotations

import base64
import csv
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

from tests.eval.video_data import VIDEO_BUILDERS, VIDEO_HUB
from tests.eval.written import jpeg, lines, parquet, put

SYNONYMS = "person, man, woman\ndog, puppy\nbus\ncat, kitten\n"


def people(*answers: str) -> list[dict[str, str]]:
    return [{"answer": answer} for answer in answers]


def vqav2(root: Path) -> None:
    questions = [
        {"question_id": 420, "image_id": 42, "question": "What colour is it?"},
        {"question_id": 421, "image_id": 42, "question": "Is it a dog?"},
    ]
    annotations = [
        {"question_id": 420, "answer_type": "other", "answers": people(*["red"] * 9, "dark red")},
        {"question_id": 421, "answer_type": "yes/no", "answers": people(*["no"] * 10)},
    ]
    put(root, "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    put(root, "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    put(root, "val2014/COCO_val2014_000000000042.jpg", jpeg())


def gqa(root: Path) -> None:
    row = {"imageId": "n1", "question": "Is the sky blue?", "answer": "yes", "fullAnswer": "Yes, it is."}
    other = {"imageId": "n1", "question": "What is it?", "answer": "tree"}
    put(root, "testdev_balanced_questions.json", {"201": row, "202": other})
    put(root, "images/n1.jpg", jpeg())


def vizwiz(root: Path) -> None:
    rows = [
        {"image": "a.jpg", "question": "What is this?", "answers": people(*["can"] * 8, "tin", "tin")},
        {"image": "b.jpg", "question": "What does it say?", "answers": people(*["unanswerable"] * 10)},
    ]
    put(root, "val.json", rows)
    put(root, "val/a.jpg", jpeg())
    put(root, "val/b.jpg", jpeg())


def textvqa(root: Path) -> None:
    row = {"question_id": 7, "image_id": "t1", "question": "what brand?", "answers": ["nokia"] * 10}
    put(root, "TextVQA_0.5.1_val.json", {"data": [row]})
    put(root, "train_images/t1.jpg", jpeg())


def scienceqa(root: Path) -> None:
    problems = {
        "1": {
            "question": "Which is a solid?",
            "choices": ["water", "rock"],
            "answer": 1,
            "hint": "Look at it.",
            "image": "image.png",
            "subject": "natural science",
        },
        "2": {"question": "No picture?", "choices": ["a", "b"], "answer": 0, "image": None},
    }
    put(root, "problems.json", problems)
    put(root, "pid_splits.json", {"test": ["1", "2"]})
    put(root, "test/1/image.png", jpeg())


def pope(root: Path) -> None:
    for category in ("random", "popular", "adversarial"):
        ask = {"question_id": 1, "image": "i.jpg", "text": "Is there a dog in the image?", "label": "yes"}
        put(root, f"coco_pope_{category}.json", lines(ask, ask | {"question_id": 2, "label": "no"}))
    put(root, "val2014/i.jpg", jpeg())


def mme(root: Path) -> None:
    from eval.tasks.mme import COGNITION, PERCEPTION

    release = root / "MME_Benchmark_release_version"
    ask = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
    for subtask in (*PERCEPTION, *COGNITION):
        apart = subtask == "artwork"
        put(release, f"{subtask}/{'questions_answers_YN/' if apart else ''}0.txt", ask)
        put(release, f"{subtask}/{'images/' if apart else ''}0.jpg", jpeg())


def mmbench(root: Path) -> None:
    image = base64.b64encode(jpeg()).decode()
    heading = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\n"
    rows = (
        f"1\tWhat is it?\t\tcat\tdog\tcow\t\tB\tobject\t{image}\n2\tWhere?\tA map.\tup\tdown\t\t\tA\tplace\t{image}\n"
    )
    put(root, "mmbench_dev_en_20231003.tsv", heading + rows)


def seed(root: Path) -> None:
    row = {
        "question_id": "101",
        "question_type_id": 1,
        "data_type": "image",
        "data_id": "s1",
        "question": "How many?",
        "choice_a": "One",
        "choice_b": "Two",
        "choice_c": "Three",
        "choice_d": "Four",
        "answer": "C",
    }
    put(root, "SEED-Bench.json", {"questions": [row, row | {"question_id": "102", "data_type": "video"}]})
    put(root, "SEED-Bench-image/s1", jpeg())


def mmvet(root: Path) -> None:
    put(root, "mm-vet.json", {"v1_0": {"imagename": "v.png", "question": "What is x?", "answer": "-1<AND>-5"}})
    put(root, "images/v.png", jpeg())


def ocrbench(root: Path) -> None:
    rows = [
        {"id": 0, "dataset_name": "IIIT5K", "type": "Regular Text Recognition", "image_path": "a.png",
         "question": "what is written in the image?", "answers": ["CENTRE"]},
        {"id": 1, "dataset_name": "HME100k", "type": "Handwritten Mathematical Expression Recognition",
         "image_path": "b.png", "question": "Please write out the expression.", "answers": "x^2"},
    ]  # fmt: skip
    put(root, "OCRBench.json", rows)
    put(root, "OCRBench_Images/a.png", jpeg())
    put(root, "OCRBench_Images/b.png", jpeg())


def chartqa(root: Path) -> None:
    put(root, "test/test_human.json", [{"imgname": "c.png", "query": "How much?", "label": "14"}])
    put(root, "test/test_augmented.json", [{"imgname": "c.png", "query": "Which one?", "label": "Peru"}])
    put(root, "test/png/c.png", jpeg())


def docvqa(root: Path) -> None:
    row = {"questionId": 1, "question": "What date?", "image": "documents/d.png", "answers": ["May 5"], "docId": 3}
    put(root, "val_v1.0_withQT.json", {"data": [row]})
    put(root, "documents/d.png", jpeg())


def ai2d(root: Path) -> None:
    row = {"questionId": "5.png-0", "answerTexts": ["leaf", "root", "stem", "bud"], "correctAnswer": 3}
    put(root, "ai2d_test_ids.csv", "5\n")
    put(root, "questions/5.png.json", {"questions": {"Which one grows?": row}})
    put(root, "images/5.png", jpeg())


def _refcoco(name: str) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        put(
            root,
            f"{name}_val.jsonl",
            lines({"image": "train2014/r.jpg", "sent": "the left one", "bbox": [4, 3, 20, 15]}),
        )
        put(root, "train2014/r.jpg", jpeg())

    return build


def earthvqa(root: Path) -> None:
    rows = [
        {"Type": "Basic Judging", "Question": "Is there water?", "Answer": "Yes"},
        {"Type": "Basic Counting", "Question": "How many ponds?", "Answer": "3"},
    ]
    put(root, "Val_QA.json", {"10.png": rows})
    put(root, "Val/Urban/images_png/10.png", jpeg())


def detailcaps(root: Path) -> None:
    table = {
        "image": [{"bytes": jpeg(), "path": None}],
        "GT_Caption_GPT4O": ["A man walks a dog."],
        "GT_Caption_GPT4V": ["A person with a puppy near a bus."],
        "GT_Caption_Gemini15Pro": [""],
    }
    parquet(root / "data/test-00000-of-00001.parquet", table)
    put(root, "synonyms.txt", SYNONYMS)


def mmstar(root: Path) -> None:
    question = "Which is red?\nOptions: A: left, B: right, C: both, D: none"
    row = {"index": [0], "question": [question], "answer": ["B"], "category": ["logical reasoning"]}
    parquet(root / "mmstar.parquet", row | {"image": [{"bytes": jpeg(), "path": None}]})


def did(root: Path) -> None:
    put(root, "did_bench.jsonl", lines({"image": "coco/1.jpg", "description": "Two dogs and a woman."}))
    put(root, "images/1.jpg", jpeg())
    put(root, "synonyms.txt", SYNONYMS)


BUILDERS: dict[str, Callable[[Path], None]] = {
    "vqav2": vqav2,
    "gqa": gqa,
    "vizwiz": vizwiz,
    "textvqa": textvqa,
    "scienceqa": scienceqa,
    "pope": pope,
    "mme": mme,
    "mmbench": mmbench,
    "seed": seed,
    "mmstar": mmstar,
    "mmvet": mmvet,
    "ocrbench": ocrbench,
    "chartqa": chartqa,
    "docvqa": docvqa,
    "ai2d": ai2d,
    "refcoco": _refcoco("refcoco"),
    "refcoco+": _refcoco("refcoco+"),
    "refcocog": _refcoco("refcocog"),
    "earthvqa": earthvqa,
    "detailcaps": detailcaps,
    "did": did,
    **VIDEO_BUILDERS,
}

_CELL = {"bytes": jpeg(), "path": None}

# Two columns of the Hub's tables are enough to see a wrong name: all that the task reads.
HUB: dict[str, dict[str, list[Any]]] = {
    "vqav2": {"question_id": [1], "image_id": [42], "question": ["What?"], "answer_type": ["other"],
              "answers": [people(*["red"] * 10)], "image": [_CELL]},
    "vizwiz": {"question_id": ["q"], "question": ["What?"], "answers": [["can"] * 10], "image": [_CELL]},
    "textvqa": {"question_id": [1], "image_id": ["t"], "question": ["?"], "answers": [["x"] * 10], "image": [_CELL]},
    "scienceqa": {"question": ["Which?"], "choices": [["a", "b"]], "answer": [0], "hint": [""], "subject": ["s"],
                  "image": [_CELL]},
    "pope": {"question_id": ["1"], "question": ["Is there?"], "answer": ["yes"], "image_source": ["i"],
             "category": ["popular"], "image": [_CELL]},
    "mme": {"question_id": ["color/1.png"] * 2, "question": ["Is it red? Please answer yes or no.", "Is it blue?"],
            "answer": ["Yes", "No"], "category": ["color"] * 2, "image": [_CELL] * 2},
    "mmbench": {"index": [3], "question": ["What?"], "hint": ["nan"], "A": ["cat"], "B": ["dog"], "C": ["nan"],
                "D": ["nan"], "answer": ["A"], "category": ["c"], "image": [_CELL]},
    "seed": {"question_id": ["1"], "question_type_id": [1], "data_type": ["image"], "data_id": ["s"], "question": ["?"],
             "choice_a": ["1"], "choice_b": ["2"], "choice_c": ["3"], "choice_d": ["4"], "answer": ["A"],
             "image": [[_CELL]]},
    "mmvet": {"question_id": ["v1_0"], "question": ["?"], "answer": ["a"], "image": [_CELL]},
    "ocrbench": {"dataset": ["IIIT5K"], "question": ["?"], "question_type": ["r"], "answer": [["A"]], "image": [_CELL]},
    "chartqa": {"type": ["human_test"], "question": ["?"], "answer": ["1"], "image": [_CELL]},
    "docvqa": {"questionId": ["1"], "docId": [1], "question": ["?"], "answers": [["a"]], "image": [_CELL]},
    "ai2d": {"question": ["?"], "options": [["a", "b"]], "answer": ["1"], "image": [_CELL]},
    "refcoco": {"question_id": ["1"], "answer": [["left", "the cup"]], "bbox": [[1.0, 2.0, 3.0, 4.0]],
                "file_name": ["f"], "image": [_CELL]},
    **VIDEO_HUB,
}  # fmt: skip


def _b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _kit(*rows: dict[str, Any]) -> str:
    """A TSV as VLMEvalKit's: rows with an index, one image for all, which later rows name by the first one's index."""
    full = [{"index": at, "image": 0 if at else _b64(jpeg()), **row} for at, row in enumerate(rows)]
    names = list(dict.fromkeys(name for row in full for name in row))
    text = StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(
        [names, *([str(row.get(name, "")) for name in names] for row in full)]
    )
    return text.getvalue()


def _yes_no(categories: Any, *asked: tuple[str, str], path: str = "") -> list[dict[str, Any]]:
    rows = [(category, question, answer) for category in categories for question, answer in asked]
    more = {"image_path": f"{path}/0.jpg"} if path else {}
    return [{"question": q, "answer": a, "category": c, **more} for c, q, a in rows]


def tsv(task: str) -> tuple[str, str]:
    """VLMEvalKit's name of a task and a TSV that asks what the official layout of its fixture asks."""
    from eval.tasks.mme import COGNITION, PERCEPTION

    ten = {name: repr(answers) for name, answers in
           {"red": ["red"] * 9 + ["dark red"], "no": ["no"] * 10, "can": ["can"] * 8 + ["tin"] * 2,
            "unanswerable": ["unanswerable"] * 10, "nokia": ["nokia"] * 10}.items()}  # fmt: skip
    four = dict(zip("ABCD", ("leaf", "root", "stem", "bud"), strict=True))
    mme_rows = [
        row | {"image_path": f"{row['category']}/0.jpg"}
        for row in _yes_no(
            (*PERCEPTION, *COGNITION),
            ("Is it red? Please answer yes or no.", "Yes"),
            ("Is it blue? Please answer yes or no.", "No"),
        )
    ]
    hidden = {"dataset_name": "", "category": "Regular Text Recognition"}
    formula = {"category": "Handwritten Mathematical Expression Recognition"}
    rows: dict[str, tuple[str, list[dict[str, Any]]]] = {
        "vqav2": ("vqav2", [{"question": "What colour is it?", "answer": ten["red"]},
                            {"question": "Is it a dog?", "answer": ten["no"]}]),
        "gqa": ("GQA_TestDev_Balanced", [{"question": "Is the sky blue?", "answer": "yes"},
                                         {"question": "What is it?", "answer": "tree"}]),
        "vizwiz": ("VizWiz", [{"question": "What is this?", "answer": ten["can"]},
                              {"question": "What does it say?", "answer": ten["unanswerable"]}]),
        "textvqa": ("TextVQA_VAL", [{"question": "what brand?", "answer": ten["nokia"]}]),
        "scienceqa": ("ScienceQA_TEST", [{"question": "Which is a solid?", "hint": "Look at it.", "A": "water",
                                          "B": "rock", "answer": "B", "category": "natural science"}]),
        "pope": ("POPE", _yes_no(("random", "popular", "adversarial"), ("Is there a dog in the image?", "yes"),
                                 ("Is there a dog in the image?", "no"))),
        "mme": ("MME", mme_rows),
        "mmbench": ("MMBench_DEV_EN_V11", [
            {"question": "What is it?", "A": "cat", "B": "dog", "C": "cow", "answer": "B", "category": "object"},
            {"question": "Where?", "hint": "A map.", "A": "up", "B": "down", "answer": "A", "category": "place"}]),
        "seed": ("SEEDBench_IMG", [{"question": "How many?", "A": "One", "B": "Two", "C": "Three", "D": "Four",
                                    "answer": "C", "category": "Instances Counting"}]),
        "mmstar": ("MMStar", [{"question": "Which is red?\nOptions: A: left, B: right, C: both, D: none",
                               "answer": "B", "category": "logical reasoning"}]),
        "mmvet": ("MMVet", [{"question": "What is x?", "answer": "-1<AND>-5", "category": "math"}]),
        "ocrbench": ("OCRBench", [hidden | {"question": "what is written in the image?", "answer": "['CENTRE']"},
                                  formula | {"question": "Please write out the expression.", "answer": "['x^2']"}]),
        "chartqa": ("ChartQA_TEST", [{"question": "How much?", "answer": "['14']", "split": "test_human"},
                                     {"question": "Which one?", "answer": "Peru", "split": "test_augmented"}]),
        "docvqa": ("DocVQA_VAL", [{"question": "What date?", "answer": "['May 5']"}]),
        "ai2d": ("AI2D_TEST", [{"question": "Which one grows?", **four, "answer": "D"}]),
    }  # fmt: skip
    name, content = rows[task]
    return name, _kit(*content)


TSV_TASKS = ("vqav2", "gqa", "vizwiz", "textvqa", "scienceqa", "pope", "mme", "mmbench", "seed", "mmstar", "mmvet",
             "ocrbench", "chartqa", "docvqa", "ai2d")  # fmt: skip
