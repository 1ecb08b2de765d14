"""Clips in a question: what reaches the model of every family whose processor loads here."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

import vlmprune
from tests.inputs.record_clip_prompts import FAMILIES as PROMPTED
from tests.inputs.record_clip_prompts import RECORD, clip_file, summarised
from tests.support.saved_families import SAVED, save, save_processor
from vlmprune import VlmpruneError
from vlmprune.inputs.chat import batched, opened, prepare, user_turn
from vlmprune.inputs.processor import load_processor
from vlmprune.inputs.video import Clip, read_clip

QUESTION = "How many are blue?"
FAMILIES = [family for family, saved in SAVED.items() if saved.video and not saved.needs]
FRAMES = [Image.new("RGB", (24, 16), (40 * number, 90, 200 - 40 * number)) for number in range(5)]
RED = Image.new("RGB", (20, 20), "red")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """Model and processor of every family."""
    root = tmp_path_factory.mktemp("saved")
    folders = {family: save(family, root / family) for family in FAMILIES}
    made = {}
    for family, folder in folders.items():
        processor = load_processor(str(folder))
        if family == "qwen3_vl":  # its own default gives a tiny model 8,192 patches a frame
            processor.video_processor.settings["size"] = {"shortest_edge": 64, "longest_edge": 8192}
        made[family] = AutoModelForImageTextToText.from_pretrained(folder), processor
    return made


def clip(start: int = 0, count: int = 5) -> Clip:
    """Frames of a clip of 60 at 4 a second, taken every 3 seconds."""
    taken = [start + 12 * number for number in range(count)]
    return Clip(FRAMES[:count], [at / 4 for at in taken], 4.0, 15.0, 60, taken)


def visual(model: Any, given: Any) -> int:
    """Visual tokens in the prompt."""
    config = model.config
    named = ("image_token_id", "video_token_id", "image_token_index", "video_token_index")
    ids = {getattr(config, name, None) for name in named} - {None}
    return int(torch.isin(given["input_ids"], torch.tensor(sorted(ids))).sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_model_takes_it(family: str, loaded: dict[str, tuple[Any, Any]]) -> None:
    """It raises where features and tokens differ; and two clips differ in what it says."""
    model, processor = loaded[family]
    with torch.no_grad():
        given = prepare(processor, clip(), QUESTION)
        logits = model(**given).logits
        # 16 x 24 pixels are 2 x 3 merged tokens of 8 x 8 in Qwen; odd frames are filled up to pairs
        frames = {"llava_onevision": 5 * 4 + 1, "internvl": 5 * 9}
        assert visual(model, given) == frames.get(family, 3 * 2 * 3)
        mixed = prepare(processor, [RED, clip()], QUESTION)
        model(**mixed)
        alone = prepare(processor, RED, QUESTION)
        assert visual(model, mixed) == visual(model, given) + visual(model, alone)
        other = prepare(processor, Clip(FRAMES[::-1], None, 4.0, 15.0, 60, clip().indices), QUESTION)
        assert not torch.allclose(model(**other).logits[0, -1], logits[0, -1], atol=1e-5)


def test_times_are_those_of_the_frames(loaded: dict[str, tuple[Any, Any]]) -> None:
    """In Qwen3-VL by the text: the mean of each pair's seconds; in Qwen2.5-VL by the seconds of a pair."""
    _, processor = loaded["qwen3_vl"]
    given = prepare(processor, clip(), QUESTION)
    text = processor.tokenizer.decode(given["input_ids"][0])
    assert [float(found) for found in re.findall(r"<([\d.]+) seconds>", text)] == [1.5, 7.5, 12.0]
    _, processor = loaded["qwen2_5_vl"]
    given = prepare(processor, clip(), QUESTION)
    assert float(given["second_per_grid_ts"][0]) == pytest.approx(6.0)  # 2 of 5 frames of 15 s


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_nothing_is_sampled_again(family: str, loaded: dict[str, tuple[Any, Any]]) -> None:
    """Though the saved settings ask for it."""
    _, processor = loaded[family]
    processor.video_processor.settings["do_sample_frames"] = True
    try:
        for count in (1, 4, 5):
            given = prepare(processor, clip(count=count), QUESTION)
            assert given["video_grid_thw"].tolist() == [[(count + 1) // 2, 4, 6]]
    finally:
        del processor.video_processor.settings["do_sample_frames"]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "internvl"])
def test_batches(family: str, loaded: dict[str, tuple[Any, Any]]) -> None:
    """Rows of a batch are those of each sample alone."""
    model, processor = loaded[family]
    asked = [[clip(), RED], [clip(start=3, count=5)], [RED]]
    talks = [user_turn(media, QUESTION) for media in asked]
    given = batched(processor, talks)
    for row, media in enumerate(asked):
        alone = prepare(processor, media, QUESTION)["input_ids"][0].tolist()
        assert given["input_ids"][row].tolist()[-len(alone) :] == alone
    with torch.no_grad():
        model(**given)


def test_paths_and_lists(tmp_path: Path) -> None:
    FRAMES[0].save(tmp_path / "a.gif", save_all=True, append_images=FRAMES[1:], duration=500)
    path = str(tmp_path / "a.gif")
    assert isinstance(opened(path), Image.Image)  # as it was before there were clips
    assert len(opened(path, frames=3).frames) == 3
    (only,) = opened(None, video=path)
    assert len(only.frames) == 5 and only.seconds == [0, 0.5, 1, 1.5, 2]
    image, made = opened(RED, video=FRAMES, fps=2)
    assert image is RED and len(made.frames) == 5
    image, one, two = opened([RED], video=[FRAMES, FRAMES[:2]], fps=2)
    assert [len(one.frames), len(two.frames)] == [5, 2]
    image, made = opened([RED, path], frames=2)
    assert image is RED and len(made.frames) == 2


def test_files_of_a_video(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 24, 16, "yuv420p"
        for frame in FRAMES * 8:
            out.mux(stream.encode(av.VideoFrame.from_image(frame)))
        out.mux(stream.encode(None))
    made = opened(tmp_path / "clip.mp4")
    assert len(made.frames) == 32
    assert made.indices[-1] == 39
    assert len(opened(str(tmp_path / "clip.mp4"), frames=5).frames) == 5
    assert len(opened([RED, tmp_path / "clip.mp4"], fps=2)[1].frames) == 8


def test_what_ask_refuses() -> None:
    large, _, processor = vlmprune.load_tiny()

    def said(*given: Any, **options: Any) -> str:
        with pytest.raises(VlmpruneError) as caught:
            pruned.ask(*given, **options)
        return str(caught.value)

    with vlmprune.wrap(large, "random", processor=processor) as pruned:
        assert "There is no file 'a/CLIP.MOV'" in said("a/CLIP.MOV", QUESTION)
        assert "There is no file 'one.webm'" in said(["one.webm"], QUESTION)
        assert "takes no videos; ask about the clip's frames as a list of images" in said(
            video=FRAMES, fps=2, question=QUESTION
        )
        assert "frames=8 is about videos, and none is given" in said(RED, QUESTION, frames=8)
        assert "fps=2 is about videos" in said(RED, QUESTION, fps=2)
        assert "frames=0 is no number of frames" in said(RED, QUESTION, frames=0)
        assert "no option 'videos'; pass video=" in said(RED, QUESTION, videos=FRAMES)
        assert "ask() needs image" in said(question=QUESTION)
        assert "has no frames" in said(question=QUESTION, video=[])
        assert "type 'int' is no video" in said(question=QUESTION, video=3)
        assert "is a web address; download the video" in said("https://example.org/clip.mp4", QUESTION)


@pytest.mark.parametrize("family", FAMILIES)
def test_ask(family: str, loaded: dict[str, tuple[Any, Any]]) -> None:
    """The clip is one video of the report with the seconds of its frames, or of their pairs."""
    model, processor = loaded[family]
    pairs, frames = (0.25, 1.25, 2.0), (0.0, 0.5, 1.0, 1.5, 2.0)
    for method in (vlmprune.Uniform(keep=0.5), vlmprune.SGL(copy.deepcopy(model), keep=0.5)):
        with vlmprune.wrap(model, method, processor=processor) as pruned:
            report = pruned.ask([RED], QUESTION, video=FRAMES, fps=2, max_new_tokens=2).report
            with pruned.off():
                pruned.ask(None, QUESTION, video=FRAMES, fps=2, max_new_tokens=2)
        image, video = report.images[0]
        assert (image.kind, video.kind) == ("image", "video")
        assert video.seconds == pytest.approx(pairs if "qwen" in family else frames)
        assert len(video.kept) == int(video.count / 2 + 0.5)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_a_guide_that_sees_fewer_and_smaller_frames(family: str, loaded: dict[str, tuple[Any, Any]]) -> None:
    """What it ranks is what it ranks when its inputs are made by hand; and it sees as few tokens as those have."""
    model, processor = loaded[family]
    guide = copy.deepcopy(model)
    seen: list[int] = []
    hook = guide.model.language_model.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["inputs_embeds"].shape[1]), with_kwargs=True
    )
    frames = [one.resize((48, 32)) for one in FRAMES]
    few = [frames[at].resize((24, 16), Image.Resampling.BICUBIC) for at in (0, 2, 4)]
    by_hand = prepare(processor, [RED, Clip(few, [0.0, 1.0, 2.0], 2.0, 2.5, 5, [0, 2, 4])], QUESTION)
    pairs = family.startswith("qwen")
    by_hand["video_frames"] = [[0, [0.5, 2.0] if pairs else [0.0, 1.0, 2.0]]]
    method = vlmprune.SGL(guide, keep=0.4, guide_frames=3, guide_scale=0.5)
    with vlmprune.wrap(model, method, processor=processor) as pruned:
        report = pruned.ask([RED], QUESTION, video=frames, fps=2, max_new_tokens=2).report
    asked = list(seen)
    whole = prepare(processor, [RED, read_clip(frames, fps=2)], QUESTION)
    whole["video_frames"] = [[0, [0.25, 1.25, 2.0] if pairs else [0.0, 0.5, 1.0, 1.5, 2.0]]]
    seen.clear()
    with vlmprune.wrap(model, vlmprune.SGL(guide, keep=0.4), processor=processor) as pruned:
        wanted = pruned.generate(**whole, guide_inputs=dict(by_hand), max_new_tokens=2)
        assert torch.equal(pruned.report.kept[0], report.kept[0])
    hook.remove()
    assert asked == seen
    assert asked[0] == by_hand["input_ids"].shape[1] < whole["input_ids"].shape[1]
    assert wanted.shape[1] == whole["input_ids"].shape[1] + 2
    with (
        vlmprune.wrap(model, method, processor=processor),
        pytest.raises(VlmpruneError, match="guide_frames and guide_scale are about clips that ask"),
    ):
        model.generate(**whole, max_new_tokens=2)


def test_a_clip_of_arrays_is_a_clip_of_images() -> None:
    array = np.stack([np.asarray(frame) for frame in FRAMES])
    one, other = read_clip(array, fps=2), read_clip(FRAMES, fps=2)
    assert one.metadata == other.metadata
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one.frames, other.frames, strict=True))


RECORDED = json.loads(RECORD.read_text())


def test_prompts_of_all_families_are_recorded() -> None:
    named = "qwen2_vl qwen2_5_vl qwen3_vl llava_onevision llava_next_video smolvlm internvl glm4v perception_lm qwen3_5"
    assert set(RECORDED) == set(PROMPTED) == set(named.split())


@pytest.mark.parametrize("family", PROMPTED)
def test_a_file_becomes_the_prompt_that_the_familys_own_processor_makes(family: str, tmp_path: Path) -> None:
    """Without torchvision, from the path of a file: ids as recorded, pixels within the last digit of the record."""
    saved = PROMPTED[family]
    if saved.needs:
        pytest.importorskip(saved.needs)
    processor = load_processor(str(save_processor(saved, tmp_path / family)))
    path = clip_file(tmp_path)
    for frames in ("5", "2"):
        made = prepare(processor, opened(path, frames=int(frames)), QUESTION)
        wanted, found = RECORDED[family][frames], summarised(made)
        assert found["ids"] == wanted["ids"]
        assert set(found["rest"]) == set(wanted["rest"])
        for name, row in found["rest"].items():
            other = wanted["rest"][name]
            assert row["shape"] == other["shape"], name
            assert row["values"] == pytest.approx(other["values"], abs=2e-2), name
            assert row["mean"] == pytest.approx(other["mean"], abs=2e-3), name


def test_an_image_part_that_needs_torchvision_is_left_out(tmp_path: Path) -> None:
    """PerceptionLM's has no other form; clips go without it, and the processor can be saved and loaded again."""
    processor = load_processor(str(save_processor(PROMPTED["perception_lm"], tmp_path / "one")))
    with pytest.raises(VlmpruneError, match="loaded without its image part, because torchvision cannot be imported"):
        prepare(processor, RED, QUESTION)
    processor.save_pretrained(tmp_path / "two")
    again = load_processor(str(tmp_path / "two"))
    assert again.image_processor.settings["tile_size"] == processor.image_processor.settings["tile_size"] == 24
    given = [prepare(one, clip(), QUESTION)["input_ids"] for one in (processor, again)]
    assert torch.equal(*given)
