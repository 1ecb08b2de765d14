"""A few rows of every benchmark about videos in its official layout, in the Hub's and in VLMEvalKit's.

The clips are GIFs under the names of the benchmarks' MP4 files: a video is found whatever its ending.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

from tests.eval.written import gif, jpeg, put

CHOICES = ["A. Black.", "B. Gray.", "C. Green.", "D. Brown."]
ASKED = "What is the color of the clothing?"


def clips(root: Path, *names: str) -> None:
    for name in names:
        put(root, f"{name}.gif", gif())


def video_mme(root: Path) -> None:
    questions = [
        {"question_id": f"001-{at}", "task_type": kind, "question": ASKED, "choices": CHOICES, "answer": answer}
        for at, kind, answer in ((1, "Attribute Perception", "B"), (2, "Action Reasoning", "D"))
    ]
    video = {"video_id": "001", "duration_category": "short", "video_category": "Knowledge"}
    video |= {"video_subcategory": "Astronomy", "url": "https://www.youtube.com/watch?v=fFjv93ACGo8"}
    put(root, "Video-MME.json", [video | {"questions": questions}])
    clips(root, "data/fFjv93ACGo8")


def mvbench(root: Path) -> None:
    from eval.tasks.mvbench import KINDS

    for kind, (folder, _) in KINDS.items():
        row = {"video": "v1.mp4", "question": "What happened?", "candidates": ["Ate it.", "Took it."]}
        bounds = {"start": 0.4, "end": 1.1} if folder.startswith("star") else {}
        put(root, f"json/{kind}.json", [row | bounds | {"answer": "Took it."}])
        if kind == "episodic_reasoning":
            for at, colour in enumerate(("red", "green", "blue", "white"), 1):
                put(root, f"video/{folder}/v1.mp4/{at:05}.jpg", jpeg(colour))
        else:
            clips(root, f"video/{folder}/v1")


def next_qa(root: Path) -> None:
    put(
        root,
        "test.csv",
        "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
        "4010069381,369,640,480,how do the two man play,0,6,CH,roll the handle,tap their feet,strum it,hit it,pat it\n"
        "4010069381,369,640,480,what does he do before,3,7,TP,sit,stand,run,jump,eat\n",
    )
    put(root, "map_vid_vidorID.json", {"4010069381": "1164/4010069381"})
    clips(root, "NExTVideo/1164/4010069381")


def long_video_bench(root: Path) -> None:
    row = {"video_id": "86CxyhFV9MI", "id": "86CxyhFV9MI_0", "video_path": "86CxyhFV9MI.mp4", "correct_choice": 1,
           "question": "What is shown?", "candidates": ["a flag", "a tank", "a map"], "duration_group": 600,
           "question_category": "TOS", "topic_category": "NP-News-Programs", "level": "IntraMoment"}  # fmt: skip
    put(root, "lvb_val.json", [row])
    clips(root, "videos/86CxyhFV9MI")


def mlvu(root: Path) -> None:
    from eval.tasks.mlvu import FILES

    for name in FILES:
        row = {"video": "v_1.mp4", "duration": 480.0, "question": "In what order?", "question_type": name[2:]}
        put(root, f"json/{name}.json", [row | {"candidates": ["2->1", "1->2"], "answer": "1->2"}])
        clips(root, f"video/{name}/v_1")


def ego_schema(root: Path) -> None:
    options = {f"option {at}": f"C cooks dish {at}." for at in range(5)}
    asked = {"google_drive_id": "x", "question": "What does c do?", **options}
    put(root, "questions.json", [{"q_uid": name, **asked} for name in ("u-1", "u-2")])
    put(root, "subset_answers.json", {"u-1": 3})
    clips(root, "videos/u-1", "videos/u-2")


VIDEO_BUILDERS: dict[str, Callable[[Path], None]] = {
    "video-mme": video_mme,
    "mvbench": mvbench,
    "next-qa": next_qa,
    "longvideobench": long_video_bench,
    "mlvu": mlvu,
    "egoschema": ego_schema,
}

# Which clips the rows of the Hub's tables name.
VIDEO_HUB: dict[str, dict[str, list[Any]]] = {
    "video-mme": {"video_id": ["001"], "duration": ["short"], "domain": ["Knowledge"], "sub_category": ["Astronomy"],
                  "url": ["u"], "videoID": ["v"], "question_id": ["001-1"], "task_type": ["OCR Problems"],
                  "question": ["Which?"], "options": [CHOICES], "answer": ["C"]},
    "next-qa": {"video": [7], "frame_count": [9], "width": [4], "height": [3], "question": ["why?"], "answer": [2],
                "qid": [1], "type": ["CW"], **{f"a{at}": [f"o{at}"] for at in range(5)}},
    "longvideobench": {"video_id": ["v"], "id": ["v_0"], "video_path": ["v.mp4"], "subtitle_path": ["v_en.json"],
                       "correct_choice": [1], "question": ["?"], "option0": ["a"], "option1": ["b"], "option2": ["c"],
                       "option3": ["N/A"], "option4": ["N/A"], "duration": [9.0], "duration_group": [15],
                       "question_category": ["T2O"], "topic_category": ["t"]},
    "mlvu": {"video_name": ["v.mp4"], "duration": [9.0], "question": ["How many?\n(A) 1\n(B) 2"],
             "candidates": [["1", "2"]], "answer": ["B"], "task_type": ["count"]},
    "egoschema": {"question_idx": ["3"], "question": ["What?"], "video_idx": ["v"], "answer": ["1"],
                  "option": [[f"{letter}. does {letter}" for letter in "ABCDE"]]},
}  # fmt: skip


def hub_clips(root: Path) -> None:
    """The clips of `VIDEO_HUB` where the Hub's data sets have them."""
    clips(root, "videos/v", "videos/7")


def video_tsv(task: str) -> tuple[str, str]:
    """VLMEvalKit's name of a task and the TSV that it makes of what the official layout of the fixture asks."""
    mme = {"video": "fFjv93ACGo8", "video_path": "./data/fFjv93ACGo8.mp4", "duration": "short", "domain": "Knowledge",
           "candidates": CHOICES, "sub_category": "Astronomy", "question": ASKED}  # fmt: skip
    bounds = {"task_type": "Action Sequence", "prefix": "video/star/Charades_v1_480/", "data_type": "video",
              "bound": True, "start": 0.4, "end": 1.1, "video": "v1.mp4"}  # fmt: skip
    plain = {"task_type": "Fine-grained Pose", "prefix": "video/nturgbd/", "data_type": "video", "bound": False,
             "start": "", "end": "", "video": "v1.mp4"}  # fmt: skip
    asked = {"question": "What happened?", "candidates": ["Ate it.", "Took it."], "answer": "Took it."}
    order = {"task_type": "order", "prefix": "./MLVU/video/5_order", "duration": 480.0, "video": "v_1.mp4",
             "question": "In what order?", "candidates": ["2->1", "1->2"], "answer": "1->2"}  # fmt: skip
    long = {"video_id": "86CxyhFV9MI", "id": "86CxyhFV9MI_0", "video_path": "./videos/86CxyhFV9MI.mp4",
            "correct_choice": 1, "question": "What is shown?", "candidates": ["a flag", "a tank", "a map"],
            "duration_group": 600, "question_category": "TOS"}  # fmt: skip
    names = {
        "video-mme": ("Video-MME", [mme | {"answer": "B"}, mme | {"answer": "D"}]),
        "mvbench": ("MVBench", [bounds | asked, plain | asked]),
        "longvideobench": ("LongVideoBench", [long]),
        "mlvu": ("MLVU_MCQ", [order]),
    }
    name, rows = names[task]
    text = StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(["index", *rows[0]])
    table.writerows([at, *(str(cell) for cell in row.values())] for at, row in enumerate(rows))
    return name, text.getvalue()


VIDEO_TSVS = ("video-mme", "mvbench", "longvideobench", "mlvu")
