"""Our own video processor against those of transformers: their record, and themselves where torchvision loads."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from tests.inputs.record_video_processors import CASES, RECORD, clip, processed, shapes
from tests.support.grid import only_full
from vlmprune import VlmpruneError
from vlmprune.inputs.video_processor import KINDS, OwnVideoProcessor

ROWS = json.loads(RECORD.read_text())["rows"]


def ours(name: str, settings: dict[str, Any]) -> OwnVideoProcessor:
    return OwnVideoProcessor({"video_processor_type": name, **settings})


def test_every_kind_is_recorded() -> None:
    assert {row["name"] for row in ROWS} == set(KINDS)
    assert [[row["name"], row["settings"], row["shape"]] for row in ROWS] == [
        [name, settings, list(shape)] for name, settings in CASES for shape in shapes(settings)
    ]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['name'][:-14]}-{'x'.join(map(str, row['shape']))}")
def test_as_recorded(row: dict[str, Any]) -> None:
    made = processed(ours(row["name"], row["settings"]), row["shape"])
    if "error" in row["made"]:  # one frame, which Qwen3-VL refuses; the same frame twice is what others make of it
        twice = clip(*row["shape"]) * 2
        both = ours(row["name"], row["settings"])([twice], do_sample_frames=False, return_tensors="pt")
        assert all(torch.equal(made[key], both[key]) for key in both)
        return
    assert set(made) == set(row["made"])
    for key, wanted in row["made"].items():
        assert list(made[key].shape) == wanted["shape"]
        flat = made[key].double().flatten()
        at = torch.linspace(0, len(flat) - 1, min(len(flat), 24)).long()
        # Filters for bytes differ by one level of 255 between processors, at most.
        level = 1.01 if row["settings"].get("do_rescale") is False else 0.016
        assert (flat[at] - torch.tensor(wanted["values"]).double()).abs().max() <= level * 2
        assert float(flat.mean()) == pytest.approx(wanted["mean"], abs=level / 4)


@only_full
def test_bit_identical_where_torchvision_loads() -> None:
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    # In a process of its own: it stays without torchvision here.
    command = [sys.executable, "-m", "tests.inputs.record_video_processors", "compare"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_several_videos_of_several_samples() -> None:
    two, three = clip(2, 20, 31), clip(3, 45, 80)
    settings = {"size": {"shortest_edge": 2048, "longest_edge": 60_000}}
    made = ours("Qwen2VLVideoProcessor", settings)([[two, three], [two]], do_sample_frames=False)
    parts = [ours("Qwen2VLVideoProcessor", settings)([one], do_sample_frames=False) for one in (two, three, two)]
    for key in made:
        assert torch.equal(made[key], torch.cat([part[key] for part in parts]))
    with pytest.raises(VlmpruneError, match="equal numbers of frames in this family, got 2, 3"):
        ours("InternVLVideoProcessor", {})([[two, three]], do_sample_frames=False)
    small = {"max_image_size": {"longest_edge": 36}}
    padded = ours("SmolVLMVideoProcessor", small)([[two, three]], do_sample_frames=False)
    assert padded["pixel_values"].shape == (2, 3, 3, 36, 36)
    assert padded["pixel_attention_mask"].sum(dim=(2, 3)).tolist() == [[1296, 1296, 0], [1296, 1296, 1296]]


@pytest.mark.parametrize("form", ["array", "channels", "frames", "batch"])
def test_forms_of_a_video(form: str) -> None:
    frames = clip(3, 45, 80)
    array = np.stack([np.asarray(frame) for frame in frames])
    channels = torch.from_numpy(array).permute(0, 3, 1, 2)
    given = {"array": array, "channels": channels, "frames": list(array), "batch": array[None]}[form]
    processor = ours("LlavaOnevisionVideoProcessor", {"size": {"height": 42, "width": 42}})
    wanted = processor([frames], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(processor(given, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"], wanted)


def test_what_is_refused() -> None:
    frames = clip(2, 20, 31)
    for settings, options, said in [
        ({"video_processor_type": "Qwen3VLVideoProcessor"}, {}, "samples no frames; pass do_sample_frames=False"),
        ({"video_processor_type": "VideoLlama3VideoProcessor"}, {}, "loaded without its video part"),
        ({"video_processor_type": "InternVLVideoProcessor", "resample": 0}, {}, "resample=0 is no filter"),
        ({"video_processor_type": "InternVLVideoProcessor", "size": {"width": 3}}, {}, "says no size"),
    ]:
        with pytest.raises(VlmpruneError, match=said):
            OwnVideoProcessor(settings)([frames], **options)
    with pytest.raises(VlmpruneError, match="420 x 2 pixels are too narrow"):
        ours("Qwen2VLVideoProcessor", {})([clip(2, 2, 420)], do_sample_frames=False)
