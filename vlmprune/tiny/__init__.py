"""The bundled, trained pair of small vision-language models, and questions about images of their world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .. import hf  # noqa: F401  # before transformers, to hide a torchvision that does not load

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

WEIGHTS = Path(__file__).parent / "weights"
BENCHMARK = Path(__file__).parent / "benchmark"
ALBUM = Path(__file__).parent / "album"

__all__ = ["album", "example", "load_tiny"]


def load_tiny() -> tuple[LlavaForConditionalGeneration, LlavaForConditionalGeneration, LlavaProcessor]:
    """The large model, the small model and their common processor: fp32, on the CPU, in eval mode, no download.

    Both share one vision tower (equal weights, separate modules). Their world, how they were
    trained and how often they are right stands in ``demos/tiny_vlm/README.md``.
    """
    import torch
    from transformers import LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    def model(name: str) -> LlavaForConditionalGeneration:
        folder = WEIGHTS / name
        return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()

    # The PIL image processor by name: the automatic choice would depend on whether torchvision is installed.
    folder = WEIGHTS / "processor"
    processor = LlavaProcessor.from_pretrained(
        folder,
        image_processor=LlavaImageProcessorPil.from_pretrained(folder, local_files_only=True),
        local_files_only=True,
    )
    # transformers hands the object on to the tokenizer's saved options, where it could not be written as JSON.
    processor.tokenizer.init_kwargs.pop("image_processor", None)
    return model("large"), model("small"), processor


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


def questions() -> list[dict[str, Any]]:
    """The bundled held-out questions, each about an image of its own, the families of questions in turn.

    Returns:
        Records with `image` (its path), `question`, `answers`, `family`, and `usual`, the family's most frequent
        answer.
    """
    records = map(json.loads, (BENCHMARK / "questions.jsonl").read_text().splitlines())
    return [record | {"image": BENCHMARK / record["image"]} for record in records]
