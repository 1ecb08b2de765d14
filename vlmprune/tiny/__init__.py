"""The bundled, trained pair of small vision-language models, and questions about images of their world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from PIL import Image

from .. import hf  # noqa: F401  # before transformers, to hide a torchvision that does not load

if TYPE_CHECKING:
    from transformers import (
        LlavaForConditionalGeneration,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionProcessor,
        LlavaProcessor,
    )

    from ..inputs.video import Clip

WEIGHTS = Path(__file__).parent / "weights"
CLIPS = Path(__file__).parent / "clips"  # the pair for clips, each model with its processor
CLIP_FRAMES = 8  # of every clip that it learnt from
BENCHMARK = Path(__file__).parent / "benchmark"
ALBUM = Path(__file__).parent / "album"
CLIP = Path(__file__).parent / "clip.webp"

__all__ = ["album", "clip", "example", "load_tiny"]


@overload
def load_tiny(
    *, video: Literal[False] = False
) -> tuple[LlavaForConditionalGeneration, LlavaForConditionalGeneration, LlavaProcessor]: ...


@overload
def load_tiny(
    *, video: Literal[True]
) -> tuple[LlavaOnevisionForConditionalGeneration, LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor]: ...


def load_tiny(*, video: bool = False) -> tuple[Any, Any, Any]:
    """The large model, the small model and their common processor: fp32, on the CPU, in eval mode, no download.

    Both share one vision tower (equal weights, separate modules). Their world, how they were
    trained and how often they are right stands in ``demos/tiny_vlm/README.md``.

    Args:
        video: the pair that answers questions about clips of eight frames of 112 x 112 px, 393 visual tokens.
    """
    import torch
    from transformers import (
        LlavaForConditionalGeneration,
        LlavaOnevisionForConditionalGeneration,
        LlavaProcessor,
        PreTrainedModel,
    )
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    def model(kind: type[PreTrainedModel], folder: Path) -> Any:
        return kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()

    if video:
        from ..inputs.processor import load_processor

        large, small = (model(LlavaOnevisionForConditionalGeneration, CLIPS / name) for name in ("large", "small"))
        return large, small, load_processor(str(CLIPS / "large"))
    # The PIL image processor by name: the automatic choice would depend on whether torchvision is installed.
    folder = WEIGHTS / "processor"
    processor = LlavaProcessor.from_pretrained(
        folder,
        image_processor=LlavaImageProcessorPil.from_pretrained(folder, local_files_only=True),
        local_files_only=True,
    )
    # transformers hands the object on to the tokenizer's saved options, where it could not be written as JSON.
    processor.tokenizer.init_kwargs.pop("image_processor", None)
    large, small = (model(LlavaForConditionalGeneration, WEIGHTS / name) for name in ("large", "small"))
    return large, small, processor


def known_words() -> set[str]:
    """Every word of the pair's tokenizer, special tokens too."""
    return set(json.loads((WEIGHTS / "processor" / "tokenizer.json").read_text())["model"]["vocab"])


def example() -> tuple[Image.Image, str]:
    """A bundled image and a question about it."""
    with Image.open(Path(__file__).parent / "example.png") as image:
        return image.convert("RGB"), "What colour is the star?"


def album() -> tuple[list[Image.Image], str]:
    """Four bundled images for one prompt, and a question about a thing that is in one of them."""
    images = []
    for path in sorted(ALBUM.glob("*.webp")):
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    return images, (ALBUM / "question.txt").read_text().strip()


def clip() -> tuple[Clip, str]:
    """A bundled clip of eight frames, and a question that no single frame answers."""
    from ..inputs.video import read_clip

    return read_clip(CLIP), "Which way does the star move?"


def questions() -> list[dict[str, Any]]:
    """The bundled held-out questions, each about an image of its own, the families of questions in turn.

    Returns:
        Records with `image` (its path), `question`, `answers`, `family`, and `usual`, the family's most frequent
        answer.
    """
    records = map(json.loads, (BENCHMARK / "questions.jsonl").read_text().splitlines())
    return [record | {"image": BENCHMARK / record["image"]} for record in records]
