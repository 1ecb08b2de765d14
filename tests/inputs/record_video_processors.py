"""What the video processors of transformers make of small clips: the record that our own one is compared with.

    python -m tests.inputs.record_video_processors [compare | prompts]

with `compare` compares both, here and now, bit by bit; with `prompts` it records whole prompts. It wants a torchvision;
over a CPU build of torch the wheel of PyPI does with `lenient` below, since the processors use none of its compiled
operators.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

RECORD = Path(__file__).with_name("video_processors.json")
SHAPES = [(4, 45, 80), (3, 121, 49), (2, 20, 31), (1, 64, 48)]
SMALL = {"size": {"shortest_edge": 2048, "longest_edge": 60_000}}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("Qwen2VLVideoProcessor", {"min_pixels": 784, "max_pixels": 7000}),
    ("Qwen2VLVideoProcessor", {**SMALL, "patch_size": 16}),
    ("Qwen2VLVideoProcessor", {**SMALL, "cap_pixels_per_frame": True, "max_video_tokens": 30}),
    ("Qwen3VLVideoProcessor", {"size": {"shortest_edge": 4096, "longest_edge": 20_000}}),
    ("Qwen3VLVideoProcessor", {**SMALL, "cap_pixels_per_frame": True, "max_video_tokens": 4}),
    ("Glm4vVideoProcessor", SMALL),
    ("LlavaOnevisionVideoProcessor", {"size": {"height": 42, "width": 42}}),
    ("LlavaOnevisionVideoProcessor", {"size": {"shortest_edge": 40, "longest_edge": 60}, "resample": 2}),
    ("LlavaNextVideoVideoProcessor", {"size": {"shortest_edge": 50}, "crop_size": {"height": 61, "width": 42}}),
    ("InternVLVideoProcessor", {"size": {"height": 28, "width": 42}, "do_normalize": False}),
    ("PerceptionLMVideoProcessor", {"size": {"height": 56, "width": 56}, "do_rescale": False}),
    ("SmolVLMVideoProcessor", {"size": {"longest_edge": 100}, "max_image_size": {"longest_edge": 36}}),
    (
        "SmolVLMVideoProcessor",
        {
            "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 64}},
            "max_image_size": {"longest_edge": 48},
        },
    ),
]
# Each class as it is, on the smallest clip: its defaults.
CASES += [(name, {}) for name in sorted({name for name, _ in CASES})]


def clip(frames: int, height: int, width: int) -> list[Image.Image]:
    """Waves that move, with some of the finest detail."""
    t, y, x, c = np.ogrid[:frames, :height, :width, :3]
    wave = 120 + 60 * np.sin(x / 5 + t) + 50 * np.cos(y / 7 - c) + 20 * ((x + y + t) % 2)
    return [Image.fromarray(frame) for frame in wave.clip(0, 255).astype(np.uint8)]


def shapes(settings: dict[str, Any]) -> list[tuple[int, int, int]]:
    return SHAPES if settings else [(2, 20, 31)]


def processed(processor: Any, shape: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    frames = clip(*shape)
    metadata = [{"fps": 2.0, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}]
    return dict(processor([frames], do_sample_frames=False, video_metadata=metadata, return_tensors="pt"))


def summary(made: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Shapes, means and a few values; small tensors whole."""
    out = {}
    for name, values in made.items():
        flat = values.double().flatten()
        at = torch.linspace(0, len(flat) - 1, min(len(flat), 24)).long()
        shown = [round(value, 5) for value in flat[at].tolist()]
        out[name] = {"shape": list(values.shape), "mean": round(float(flat.mean()), 6), "values": shown}
    return out


def lenient() -> None:
    """Import torchvision without its compiled operators."""
    register = torch.library.register_fake

    def known(name: Any, *given: Any, **options: Any) -> Any:
        ours = isinstance(name, str) and name.startswith("torchvision::")
        return (lambda function: function) if ours else register(name, *given, **options)

    torch.library.register_fake = known  # type: ignore[assignment]  # put back below
    try:
        import torchvision  # noqa: F401
    finally:
        torch.library.register_fake = register


def official(name: str, settings: dict[str, Any]) -> Any:
    from transformers.models.auto.video_processing_auto import video_processor_class_from_name

    return video_processor_class_from_name(name)(**settings)


def compare() -> None:
    from vlmprune.inputs.video_processor import OwnVideoProcessor

    for name, settings in CASES:
        for shape in shapes(settings):
            try:
                wanted = processed(official(name, settings), shape)
            except ValueError:
                continue
            made = processed(OwnVideoProcessor({"video_processor_type": name, **settings}), shape)
            assert set(made) == set(wanted), name
            assert all(torch.equal(made[key], wanted[key]) for key in wanted), (name, settings, shape)


def record() -> None:
    rows = []
    for name, settings in CASES:
        for shape in shapes(settings):
            try:
                made = summary(processed(official(name, settings), shape))
            except ValueError as error:  # Qwen3-VL and GLM-4V refuse one frame
                made = {"error": str(error)}
            rows.append({"name": name, "settings": settings, "shape": shape, "made": made})
    versions = {name: sys.modules[name].__version__ for name in ("torch", "torchvision", "transformers")}
    lines = ",\n".join(json.dumps(row) for row in rows)
    RECORD.write_text(f'{{"versions": {json.dumps(versions)}, "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    lenient()
    if "prompts" in sys.argv:
        from tests.inputs.record_clip_prompts import main

        main()
    else:
        compare() if "compare" in sys.argv else record()
