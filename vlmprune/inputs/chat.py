"""From images and a question to model inputs: messages for chat templates, tokenized by the model's processor."""

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..errors import PromptError, VlmpruneError
from .images import as_rgb, read_image
from .placeholders import check_texts
from .processor import reason


def opened(image: Any) -> Any:
    """Images read from their paths; anything that is not a path is left to `build_messages`.

    Only for what the caller's own program passes: a path that a stranger sent would be read too.
    """
    if isinstance(image, list | tuple):
        return [opened(one) for one in image]
    if not isinstance(image, str | os.PathLike):
        return image
    if re.match(r"[a-z]+:/|data:", str(image), re.IGNORECASE):
        raise VlmpruneError(f"{str(image)!r:.80} is a web address; download the image and pass the path of its file.")
    try:
        return read_image(Path(image))
    except (VlmpruneError, OSError, ValueError) as error:  # a path with a null byte, or one too long
        reason = str(error)
        raise VlmpruneError(f"{reason[:1].upper()}{reason[1:].rstrip('.')}.") from None


def prepare(processor: Any, image: Any, question: str) -> Any:
    """Model inputs for one question about one or several images, by `build_messages` and `tokenize`."""
    talk = build_messages(image, question)
    warn_unknown_words(processor, question)
    return tokenize(processor, talk)


def build_messages(image: Any, question: str) -> list[dict[str, Any]]:
    """One question about one or several images, as chat templates take it; anything else in their place is refused."""
    images = list(image) if isinstance(image, list | tuple) else [image]
    for one in images:
        if not isinstance(one, Image.Image):
            array = hasattr(one, "__array__") and not isinstance(one, torch.Tensor)
            made = ", made by PIL.Image.fromarray() for example" if array else ""
            raise VlmpruneError(f"{_named(one)} is no image; pass a PIL image{made}, or a list of PIL images.")
        if not one.width or not one.height:
            raise VlmpruneError(f"An image of {one.width} x {one.height} pixels shows nothing; pass another one.")
    if not images:
        raise VlmpruneError("The list of images is empty; pass a PIL image or a list of PIL images.")
    if not isinstance(question, str):
        raise VlmpruneError(f"question={question!r:.80} is no text; ask something about the image as a str.")
    if not question.strip():
        raise VlmpruneError(f"question={question!r} is empty; ask something about the image.")
    try:
        question.encode()
    except UnicodeEncodeError:
        raise VlmpruneError(f"question={question!r:.80} holds half a surrogate pair; decode it again.") from None
    return user_turn(images, question)


def _named(thing: Any) -> str:
    """A thing in one line: arrays and bytes by their type."""
    if hasattr(thing, "shape"):
        return f"A {type(thing).__name__} of shape {tuple(thing.shape)}"
    return f"An object of type {type(thing).__name__!r}" if isinstance(thing, bytes) else f"{thing!r:.80}"


def user_turn(images: Sequence[Image.Image], question: str) -> list[dict[str, Any]]:
    """One user turn, images first and in RGB, as chat templates take it."""
    content = [{"type": "image", "image": as_rgb(one)} for one in images] + [{"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def tokenize(processor: Any, talk: list[Any], **options: Any) -> Any:
    """Model inputs of a conversation, or of a list of them with the `options` that batches need.

    Texts with a token that marks an image or a video, and what the processor refuses, raise.
    """
    if not hasattr(processor, "apply_chat_template"):
        raise VlmpruneError(f"{processor!r:.80} is no processor with a chat template; pass the model's AutoProcessor.")
    check_texts(processor, talk)
    try:
        # Tokenizing the rendered text apart would put a second BOS in front of the template's.
        return processor.apply_chat_template(
            talk, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
        )
    except VlmpruneError:
        raise
    except ValueError as error:
        raise PromptError(
            f"The model's processor makes no prompt of these images and texts ({reason(error)}); change what it "
            "names."
        ) from error


def batched(processor: Any, talks: list[Any]) -> Any:
    """Model inputs of several conversations; padded left, every row ends where its answer starts."""
    return tokenize(processor, talks, processor_kwargs={"padding": True, "padding_side": "left"})


def unknown_words(processor: Any, question: str) -> str:
    """What to tell a user about words that the tokenizer can only read as "unknown"; "" where it knows all."""
    tokenizer = getattr(processor, "tokenizer", None)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if tokenizer is None or unknown is None:
        return ""
    words = [word for word in question.split() if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]
    named = ", ".join(map(repr, words))
    return f"The tokenizer does not know {named}; the model cannot see these words." if words else ""


def warn_unknown_words(processor: Any, question: str) -> None:
    """Warn about words that the tokenizer does not know."""
    if note := unknown_words(processor, question):
        warnings.warn(note, stacklevel=5)
