"""Saved models load in an environment without torchvision, and questions that hold an image's token are refused."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText

import vlmprune
from tests.support.grid import only_full
from tests.support.saved_families import SAVED, save
from vlmprune import VlmpruneError
from vlmprune.apps.demo.engine import Engine
from vlmprune.captioner import VisionModel
from vlmprune.harness.models import load_models
from vlmprune.inputs.chat import prepare
from vlmprune.inputs.placeholders import check_texts, placeholders
from vlmprune.inputs.processor import load_processor, reason

QUESTION = "What colour is the star?"
RED = Image.new("RGB", (40, 30), (200, 30, 60))
VIDEO = [family for family, saved in SAVED.items() if saved.video]
HERE = [family for family, saved in SAVED.items() if saved.needs is None]
ROOT = Path(vlmprune.__file__).parents[1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every family's folder, half of them nested as transformers 5 saves them."""
    root = tmp_path_factory.mktemp("saved")
    return {family: save(family, root / family, nested=bool(number % 2)) for number, family in enumerate(SAVED)}


@pytest.fixture(scope="module")
def processors(folders: dict[str, Path]) -> dict[str, Any]:
    return {family: load_processor(str(folders[family])) for family in HERE}


# -- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", HERE)
def test_a_saved_model_answers(family: str, folders: dict[str, Path]) -> None:
    """Through the loader of the command line, of the demo, of eval and of Ray."""
    models = load_models(str(folders[family]), None, trust_remote_code=False)
    assert type(models.processor).__name__ == SAVED[family].processor
    with vlmprune.wrap(models.model, "uniform", keep=0.5, processor=models.processor) as pruned:
        report = pruned.ask(RED, QUESTION, max_new_tokens=2).report
        batch = VisionModel(pruned).probability([RED, RED], [QUESTION, "Is it red?"], yes="yes", no="no")
    assert report.visual_tokens[0] >= 9
    assert report.kept_tokens[0] == int(report.visual_tokens[0] / 2 + 0.5)
    assert len(batch) == 2


@pytest.mark.parametrize("family", sorted(set(VIDEO) & set(HERE)))
def test_the_parts_make_the_prompt_that_they_make_alone(family: str, folders: dict[str, Path], processors: Any) -> None:
    """Pixels from the image processor by itself; ids from the tokenizer and the template, the image's token repeated
    as often as the model has features for the image."""
    processor, folder = processors[family], folders[family]
    images = transformers.AutoImageProcessor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = prepare(processor, RED, QUESTION)
    pixels = images(RED, return_tensors="pt", **({"crop_to_patches": True} if family == "internvl" else {}))
    assert torch.equal(given["pixel_values"], pixels["pixel_values"])
    model = AutoModelForImageTextToText.from_pretrained(folder)
    written = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    text = tokenizer.apply_chat_template(talk, chat_template=written, add_generation_prompt=True, tokenize=False)
    mark = tokenizer.decode([model.config.image_token_id])
    count = int((given["input_ids"] == model.config.image_token_id).sum())
    before, after = text.split(mark)
    wanted = tokenizer(before + mark * count + after, add_special_tokens=False)["input_ids"]
    if family == "internvl":  # its processor writes the frame around the tokens itself
        wanted = tokenizer(f"{before}<img>{mark * count}</img>{after}", add_special_tokens=False)["input_ids"]
    assert given["input_ids"][0].tolist() == wanted
    with torch.no_grad():
        model(**given)  # raises where tokens and features differ


@pytest.mark.parametrize("family", sorted(set(VIDEO) & set(HERE)))
def test_a_processor_without_its_video_part_is_saved_and_copied(
    family: str, processors: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    processor = processors[family]
    wanted = prepare(processor, RED, QUESTION)
    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["video_processor"]["video_processor_type"]
    for other in (load_processor(str(tmp_path)), copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
        given = prepare(other, RED, QUESTION)
        assert all(torch.equal(given[name], wanted[name]) for name in wanted)
    assert "OwnVideoProcessor" in repr(processor)


def test_a_package_that_lacks_is_named_with_its_command(folders: dict[str, Path]) -> None:
    if transformers.utils.is_num2words_available():
        pytest.skip("num2words is installed here")
    with pytest.raises(VlmpruneError) as said:
        load_models(str(folders["smolvlm"]), None, trust_remote_code=False)
    assert "it needs the package num2words; install it with pip install num2words" in str(said.value)


def test_smolvlm_needs_nothing_else(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.smolvlm import processing_smolvlm

    monkeypatch.setattr(processing_smolvlm, "num2words", str, raising=False)
    models = load_models(str(folders["smolvlm"]), None, trust_remote_code=False)
    with vlmprune.wrap(models.model, "uniform", keep=0.5, processor=models.processor) as pruned:
        assert pruned.ask(RED, QUESTION, max_new_tokens=1).report.kept_tokens == [5]
    with pytest.raises(VlmpruneError, match="The question holds '<video>'"):
        check_texts(models.processor, "What is <video>?")


@only_full
def test_a_broken_torchvision_counts_as_none(folders: dict[str, Path], tmp_path: Path) -> None:
    """There, and raising as a wheel for another torch does; in a process of its own, through the command line."""
    place = tmp_path / "broken"
    (place / "torchvision").mkdir(parents=True)
    (place / "torchvision/__init__.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    info = place / "torchvision-0.28.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    RED.save(tmp_path / "red.png")
    command = [sys.executable, "-m", "vlmprune", "ask", "red.png", QUESTION, "--model", str(folders["qwen2_5_vl"])]
    done = subprocess.run(
        [*command, "--json", "--repeats", "1", "--max-new-tokens", "1"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{place}{os.pathsep}{ROOT}"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pruned"]["report"]["visual_tokens"][0] > 0


def test_reasons_are_whole_sentences() -> None:
    long = "First it was so. " + "And then it went on and on without an end. " * 30
    assert reason(ValueError(long)).endswith("without an end")
    assert len(reason(ValueError(long))) <= 400
    assert reason(ValueError("one line\n  and another.")) == "one line and another"
    assert reason(ValueError("")) == "ValueError"
    missing = ModuleNotFoundError("No module named 'sentencepiece'", name="sentencepiece")
    assert reason(missing) == "it needs the package sentencepiece; install it with pip install sentencepiece"
    loading = OSError("cannot load")
    loading.__cause__ = missing
    assert "pip install sentencepiece" in reason(loading)


def test_a_folder_without_a_processor_says_so(tmp_path: Path, folders: dict[str, Path]) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folders["qwen2_5_vl"] / name).read_bytes())
    with pytest.raises(VlmpruneError) as said:
        load_models(str(tmp_path), None, trust_remote_code=False)
    assert "\n" not in str(said.value)
    assert str(said.value).endswith("give a directory or an id that holds its config, weights and processor")


# -- questions that hold a token of an image ---------------------------------------------------------------------------


def visual(family: str) -> set[str]:
    """What the family's published prompts put around and in the place of images and videos, from its folder."""
    others = {"<s>", "</s>", "<pad>", "<bos>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<|python_tag|>"}
    others |= {"<start_of_turn>", "<end_of_turn>", "<row_1_col_1>", "<row_1_col_2>"}
    return {token for token in SAVED[family].tokens.values() if token.strip()} - others


@pytest.mark.parametrize("family", HERE)
def test_the_placeholders_are_the_processors_own(family: str, processors: Any) -> None:
    assert placeholders(processors[family]) == visual(family)


@pytest.mark.parametrize("family", HERE)
def test_a_question_that_holds_one_is_one_sentence(family: str, processors: Any, folders: dict[str, Path]) -> None:
    processor = processors[family]
    model = AutoModelForImageTextToText.from_pretrained(folders[family])
    with vlmprune.wrap(model, "uniform", keep=0.5, processor=processor) as pruned:
        for token in sorted(visual(family)):
            for question in (f"What is {token} here?", token, f"a{token}b", token * 3):
                with pytest.raises(VlmpruneError, match="marks an image or video") as said:
                    pruned.ask(RED, question)
                assert "\n" not in str(said.value)
        # Names that are no token of this family are words.
        for text in ("a <b> c", "an image, a video and vision", "<imagine>", "line\n\nline", "</s>"):
            pruned.ask(RED, text, max_new_tokens=1)


def test_other_families_tokens_are_words(processors: Any, folders: dict[str, Path]) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folders["qwen2_5_vl"])
    with vlmprune.wrap(model, "uniform", keep=0.5, processor=processors["qwen2_5_vl"]) as pruned:
        pruned.ask(RED, "What does <image> mean in HTML?", max_new_tokens=1)


def test_every_way_to_ask_refuses_it() -> None:
    large, small, processor = vlmprune.load_tiny()
    bad = "What is <image> ?"
    assert placeholders(processor) == {"<image>"}
    data = [(RED, bad, "red")]
    ways = {
        "ask": lambda: vlmprune.wrap(large, "none", processor=processor).ask(RED, bad),
        "sgl": lambda: vlmprune.wrap(large, vlmprune.SGL(guide=small, keep=0.5), processor=processor).ask(RED, bad),
        "calibrate": lambda: vlmprune.SGL(guide=small).calibrate(
            large, data, processor=processor, max_accuracy_loss=0.1
        ),
        "heads": lambda: vlmprune.ACT().calibrate(large, data, processor=processor),
        "captioner": lambda: VisionModel(large, processor).probability([RED], [bad], yes="yes", no="no"),
        "sinks": lambda: vlmprune.find_sinks(large, **prepare(processor, RED, bad)),
        "demo": lambda: list(Engine(load_models(None, None, trust_remote_code=False)).ask(RED, bad, "uniform", 0.5)),
    }
    for way in ways.values():
        with pytest.raises(VlmpruneError, match="The question holds '<image>'"):
            way()


@pytest.mark.parametrize("command", ["ask", "compare", "sinks"])
def test_the_command_line_says_it_in_a_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlmprune.apps.cli import app

    RED.save(tmp_path / "red.png")
    with pytest.raises(SystemExit) as left:
        app([command, str(tmp_path / "red.png"), "What is <image>?"])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "The question holds '<image>'" in error


@pytest.mark.parametrize("size", [(1, 300), (900, 2)])
def test_a_picture_that_the_processor_refuses_is_one_sentence(
    size: tuple[int, int], processors: Any, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Qwen's refuse what is 200 times as long as wide: asked, on the command line, captioned, and in an evaluation."""
    from eval.run import main
    from tests.eval.data import put
    from vlmprune.apps.cli import app

    long = Image.new("RGB", size)
    long.save(tmp_path / "long.png")
    model = AutoModelForImageTextToText.from_pretrained(folders["qwen2_vl"])
    with vlmprune.wrap(model, "uniform", keep=0.5, processor=processors["qwen2_vl"]) as pruned:
        ways = (
            lambda: pruned.ask(long, QUESTION),
            lambda: VisionModel(pruned).probability([long], ["x"], yes="yes", no="no"),
        )
        for way in ways:
            with pytest.raises(
                VlmpruneError, match=r"aspect ratio must be smaller than 200.*; change what it names\.$"
            ):
                way()
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        app(["ask", str(tmp_path / "long.png"), QUESTION, "--model", str(folders["qwen2_vl"])])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    rows = [{"image": f"{name}.jpg", "question": "What?", "answers": [{"answer": "can"}] * 10} for name in "abc"]
    put(tmp_path / "vizwiz", "val.json", rows)
    for name, image in (("a", RED), ("b", long), ("c", RED)):
        (tmp_path / "vizwiz/val").mkdir(exist_ok=True)
        image.save(tmp_path / f"vizwiz/val/{name}.jpg")
    options = ["--task", "vizwiz", "--max-new-tokens", "1", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    named = ["--model", str(folders["qwen2_vl"]), "--method", "uniform", "--keep", "0.5", "--batch-size", "3"]
    assert main([*options, *named]) == 0
    (found,) = (tmp_path / "out").rglob("summary.json")
    summary = json.loads(found.read_text())
    assert (summary["questions"], summary["answered"]) == (3, 2)
    assert [one["where"] for one in summary["bad"]] == ["b.jpg"]
    assert "aspect ratio" in summary["bad"][0]["why"]


def test_eval_leaves_such_a_question_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from eval.run import main
    from tests.eval.data import jpeg, put

    good = {"image": "a.jpg", "question": "What?", "answers": [{"answer": "can"}] * 10}
    put(tmp_path / "vizwiz", "val.json", [good, good | {"image": "b.jpg", "question": "What is <image>?"}])
    for name in "ab":
        put(tmp_path / "vizwiz", f"val/{name}.jpg", jpeg())
    options = ["--method", "none", "--max-new-tokens", "1", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["--task", "vizwiz", *options]) == 0
    summary = json.loads((tmp_path / "out/vizwiz/none/summary.json").read_text())
    assert (summary["questions"], summary["answered"]) == (2, 1)
    assert "marks an image" in summary["bad"][0]["why"]
    capsys.readouterr()
    assert main(["--task", "vizwiz", *options[:-1], str(tmp_path / "strict"), "--strict"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("vlmprune: The question holds '<image>'")
