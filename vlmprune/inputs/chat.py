"""From images, clips and a question to model inputs: messages for chat templates, tokenized by the processor."""

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..errors import PromptError, VlmpruneError
from .images import ANIMATED, as_rgb, read_image
from .placeholders import check_texts
from .processor import reason
from .video import Clip, check_sampling, clips, is_video_path, read_clip

MOST_WORDS = 5  # that a warning names


def opened(image: Any, *, video: Any = None, frames: int | None = None, fps: float | None = None) -> Any:
    """Images and clips read from their paths; anything that is not a path is left to `build_messages`.

    Only for what the caller's own program passes: a path that a stranger sent would be read too.

    Args:
        image: a path or a list of them is read as a clip where it ends as videos do, and an animated GIF, WebP or PNG
            where `frames` or `fps` is given. video: what `inputs.video.clips` takes. frames, fps: as `read_clip`'s.
    """
    check_sampling(frames, fps)
    if video is not None:
        behind = clips(video, frames=frames, fps=fps)
        before = [] if image is None else image if isinstance(image, list | tuple) else [image]
        return [*opened(list(before)), *behind]
    sampled = frames is not None or fps is not None
    if isinstance(image, list | tuple):
        # Among several, images are images whatever else is sampled.
        return [opened(one, frames=frames, fps=fps) if _is_clip(one, sampled) else opened(one) for one in image]
    if sampled and not _is_clip(image, sampled) and not isinstance(image, Clip):
        what = f"frames={frames}" if frames is not None else f"fps={fps}"
        raise VlmpruneError(f"{what} is about videos, and none is given; pass a path, or frames as video=[...].")
    if not isinstance(image, str | os.PathLike):
        return image if frames is None or not isinstance(image, Clip) else read_clip(image, frames=frames)
    try:
        if _is_clip(image, sampled):
            return read_clip(image, frames=frames, fps=fps)
        return read_image(Path(image))
    except (VlmpruneError, OSError, ValueError) as error:  # a path with a null byte, or one too long
        reason = str(error)
        raise VlmpruneError(f"{reason[:1].upper()}{reason[1:].rstrip('.')}.") from None


def _is_clip(thing: Any, sampled: bool) -> bool:
    """Whether it is the path of a video; of an animation too where frames are to be sampled."""
    if is_video_path(thing):
        return True
    return sampled and isinstance(thing, str | os.PathLike) and Path(thing).suffix.lower() in ANIMATED


def prepare(processor: Any, image: Any, question: str) -> Any:
    """Model inputs for one question about one or several images and clips, by `build_messages` and `tokenize`."""
    talk = build_messages(image, question)
    warn_unknown_words(processor, question)
    return tokenize(processor, talk)


def build_messages(image: Any, question: str) -> list[dict[str, Any]]:
    """One question about images and clips, as chat templates take it; anything else in their place is refused."""
    images = list(image) if isinstance(image, list | tuple) else [image]
    for one in images:
        if isinstance(one, Clip):
            continue
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


def user_turn(images: Sequence[Image.Image | Clip], question: str) -> list[dict[str, Any]]:
    """One user turn, images (in RGB) and clips first, as chat templates take it."""
    content: list[dict[str, Any]] = [
        {"type": "video", "video": one.frames, "metadata": one.metadata}
        if isinstance(one, Clip)
        else {"type": "image", "image": as_rgb(one)}
        for one in images
    ]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def tokenize(processor: Any, talk: list[Any], **options: Any) -> Any:
    """Model inputs of a conversation, or of a list of them with the `options` that batches need.

    Texts with a token that marks an image or a video, and what the processor refuses, raise.
    """
    if not hasattr(processor, "apply_chat_template"):
        raise VlmpruneError(f"{processor!r:.80} is no processor with a chat template; pass the model's AutoProcessor.")
    check_texts(processor, talk)
    if metadata := _metadata(talk):
        if getattr(processor, "video_processor", None) is None:
            raise VlmpruneError(
                f"{type(processor).__name__} takes no videos; ask about the clip's frames as a list of images."
            )
        # Qwen3-VL and GLM-4V would sample what was sampled already, at a rate that they guess.
        chosen = {"do_sample_frames": False, "video_metadata": metadata}
        options = {**options, "processor_kwargs": {**options.get("processor_kwargs", {}), **chosen}}
    try:
        # Tokenizing the rendered text apart would put a second BOS in front of the template's.
        return processor.apply_chat_template(
            talk, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
        )
    except VlmpruneError:
        raise
    except ValueError as error:
        raise PromptError(
            f"The model's processor makes no prompt of these images and texts ({reason(error)}); change what it names."
        ) from error


def thinner(media: Any, frames: int | None, scale: float | None) -> Any:
    """Images and clips, of each clip at most so many frames, their sides `scale` times as long; `media` itself where
    that changes nothing."""
    several = list(media) if isinstance(media, list | tuple) else [media]
    if (frames is None and scale is None) or not any(isinstance(one, Clip) for one in several):
        return media
    made = []
    for one in several:
        if isinstance(one, Clip):
            one = one if frames is None else one.thinned(frames)
            one = one if scale is None else one.scaled(scale)
        made.append(one)
    return made


def shown_at(media: Any, inputs: Any) -> list[list[Any]]:
    """When the frames of a prompt's clips are shown, as `video_frames` of one sample takes it; [] without clips.

    Per image 0, per clip the seconds of its frames (their number where they are not known); where `inputs` have a grid
    of frames, those of their pairs: the middle between the first and the last of each.
    """
    media = list(media) if isinstance(media, list | tuple) else [media]
    if not any(isinstance(one, Clip) for one in media):
        return []
    grids = iter(inputs.get("video_grid_thw", []))
    entries: list[Any] = []
    for one in media:
        if not isinstance(one, Clip):
            entries.append(0)
            continue
        times = range(int(next(grids)[0])) if "video_grid_thw" in inputs else range(len(one.frames))
        pair = math.ceil(len(one.frames) / len(times))
        if one.seconds is None:
            entries.append(len(times))
        else:
            last = len(one.frames) - 1
            ends = [(one.seconds[min(at * pair, last)], one.seconds[min(at * pair + pair - 1, last)]) for at in times]
            entries.append([(start + end) / 2 for start, end in ends])
    return [entries]


def _metadata(talk: list[Any]) -> list[dict[str, Any]]:
    """What is known of every clip in a conversation or in a list of them, in order."""
    turns = [turn for part in talk for turn in (part if isinstance(part, list) else [part])]
    blocks = [block for turn in turns if isinstance(turn["content"], list) for block in turn["content"]]
    return [block["metadata"] for block in blocks if block.get("type") == "video" and "metadata" in block]


def batched(processor: Any, talks: list[Any]) -> Any:
    """Model inputs of several conversations; padded left, every row ends where its answer starts."""
    return tokenize(processor, talks, processor_kwargs={"padding": True, "padding_side": "left"})


def unknown_words(processor: Any, question: str) -> str:
    """What to tell a user about words that the tokenizer can only read as "unknown"; "" where it knows all."""
    tokenizer = getattr(processor, "tokenizer", None)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if tokenizer is None or unknown is None:
        return ""
    once = dict.fromkeys(question.split())
    words = [word for word in once if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]
    named = ", ".join(f"{word!r:.40}" for word in words[:MOST_WORDS])
    more = f" and {len(words) - MOST_WORDS:,} more words" if len(words) > MOST_WORDS else ""
    return f"The tokenizer does not know {named}{more}; the model cannot see these words." if words else ""


def warn_unknown_words(processor: Any, question: str) -> None:
    """Warn about words that the tokenizer does not know."""
    if note := unknown_words(processor, question):
        warnings.warn(note, stacklevel=5)
