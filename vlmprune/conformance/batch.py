"""Prompts for a check: a batch with padding, longer than the model's windows, made of what there is.

Shapes: B batch, S sequence of the prompt, n forced tokens.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import VlmpruneError
from ..inputs.chat import batched, build_messages
from ..inputs.processor import reason

QUESTIONS = ("What is in the image?", "What are the colours of the things in these two images, from left to right?")
GAP = 2  # words that the padded sample has fewer than the others
BEYOND = 8  # tokens of a prompt beyond a window
LONGEST = {"cpu": 2048}  # prompts are made no longer than this; on an accelerator than
LONGEST_ELSEWHERE = 8192


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Coloured stripes and squares: nothing is alike in two places."""
    image = Image.new("RGB", (width, height))
    places = ((x, y) for y in range(height) for x in range(width))
    image.putdata([((x * 7 + seed * 40) % 256, (y * 5) % 256, (x * y + seed) % 256) for x, y in places])
    return image


def prompts(processor: Any) -> dict[str, Any]:
    """A padded batch of one prompt with an image and one with two.

    Raises:
        VlmpruneError: the processor makes no inputs of them.
    """
    talks = [
        build_messages(picture(224, 224, 0), QUESTIONS[0]),
        build_messages([picture(336, 224, 1), picture(224, 336, 2)], QUESTIONS[1]),
    ]
    try:
        return dict(batched(processor, talks))
    except VlmpruneError:
        raise
    except Exception as error:  # whatever a processor raises
        raise VlmpruneError(
            f"The processor makes no inputs of two prompts with images ({reason(error)}); give check() the inputs of a "
            "batch instead."
        ) from error


def visual_in(inputs: Mapping[str, Any], visual_ids: Iterable[int]) -> Tensor:
    """The visual tokens of a prompt, [B, S].

    Raises:
        VlmpruneError: no token ids, a prompt without any, or no image in all of them.
    """
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise VlmpruneError("check() needs the prompts' input_ids [B, S]; pass what the model's processor returned.")
    if not bool(valid_in(inputs).any(1).all()):
        raise VlmpruneError("A prompt is nothing but padding; give prompts with an attention_mask of their tokens.")
    visual = torch.isin(ids, torch.tensor(list(visual_ids), device=ids.device))
    if not bool(visual.any()):
        raise VlmpruneError("The prompts have no image tokens, so there is nothing to prune; give prompts with images.")
    return visual


def valid_in(inputs: Mapping[str, Any]) -> Tensor:
    """What is no padding, [B, S]."""
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def padded_left(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same prompts with the padding behind them moved in front, where `generate` wants it."""
    valid = valid_in(inputs)
    behind = valid.flip(1).int().argmax(1).tolist()  # how many tokens of padding
    if not any(behind):
        return inputs
    shape = valid.shape

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.shape[:2] == shape:
            return torch.stack([row.roll(n, 0) for row, n in zip(value, behind, strict=True)])
        if value.dim() == 3 and value.shape[1:] == shape:  # positions on several axes
            return torch.stack([moved(axis) for axis in value])
        return value

    return {name: moved(value) for name, value in inputs.items()}


def hardened(inputs: dict[str, Any], model: Any, text: Any, visual_ids: list[int], notes: list[str]) -> dict[str, Any]:
    """The same prompts as a batch with padding, and longer than the model's windows; what cannot be had is noted."""
    if "position_ids" in inputs:
        notes.append("The inputs came with position_ids, so they were taken as they are.")
        return inputs
    if len(inputs["input_ids"]) == 1:
        inputs = {name: _twice(value) for name, value in inputs.items()}
    inputs = {**inputs, "attention_mask": valid_in(inputs).long()}
    special = special_ids(model) | set(visual_ids)
    if bool(valid_in(inputs).all()):
        pad = getattr(model.config.get_text_config(), "pad_token_id", None)
        inputs = _padded(inputs, visual_in(inputs, visual_ids), special, pad if isinstance(pad, int) else 0, notes)
    return _longer(inputs, visual_in(inputs, visual_ids), special, sorted(window_sizes(text)), notes)


def _twice(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim():
        return torch.cat([value, value])
    return [*value, *value] if isinstance(value, list | tuple) else value


def _each_row(inputs: dict[str, Any], change: Callable[[str, Tensor], Tensor]) -> dict[str, Any]:
    """The inputs, those with a value for each token [B, S, ...] changed."""
    shape = inputs["input_ids"].shape
    return {
        name: change(name, value) if isinstance(value, Tensor) and value.shape[:2] == shape else value
        for name, value in inputs.items()
    }


def _padded(inputs: dict[str, Any], visual: Tensor, special: set[int], pad: int, notes: list[str]) -> dict[str, Any]:
    """The first sample without `GAP` of its words, padded left."""
    ids = inputs["input_ids"][0].tolist()
    out = [at for at, one in enumerate(ids[:-1]) if one not in special][-GAP:]
    if not out:
        notes.append("The prompts have no words that could be left out, so padding was not tried.")
        return inputs
    left = [at for at in range(visual.shape[1]) if at not in out]

    def change(name: str, value: Tensor) -> Tensor:
        value = value.clone()
        short = value[0, left]
        value[0, len(out) :] = short
        value[0, : len(out)] = pad if name == "input_ids" else 0
        return value

    return _each_row(inputs, change)


def _longer(
    inputs: dict[str, Any], visual: Tensor, special: set[int], windows: list[int], notes: list[str]
) -> dict[str, Any]:
    """Prompts longer than the windows that are not too long, by their own words before the last token."""
    length, device = visual.shape[1], visual.device
    longest = LONGEST.get(device.type, LONGEST_ELSEWHERE)
    for size in (size for size in windows if size + BEYOND > longest and size >= length):
        notes.append(f"A window of {size:,} tokens is longer than the prompts, so that it was not tried.")
    wanted = max([size + BEYOND for size in windows if size + BEYOND <= longest], default=0)
    more = wanted - length
    if more <= 0:
        return inputs
    if bool(visual[:, -2:].any()) or not bool(valid_in(inputs)[:, -1].all()):
        notes.append("The prompts end without words, so that they were not made longer than the model's windows.")
        return inputs
    filling = forced_tokens(inputs["input_ids"], more, special)

    def change(name: str, value: Tensor) -> Tensor:
        middle = filling if name == "input_ids" else value[:, -1:].repeat_interleave(more, 1)
        return torch.cat([value[:, :-1], middle, value[:, -1:]], dim=1)

    return _each_row(inputs, change)


def window_sizes(text: Any) -> set[int]:
    """How long windows and chunks may be, from wherever a config or a module says it: only the length of the prompts
    depends on this."""
    config = text.config
    sizes = {getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")}
    sizes |= {getattr(module, "sliding_window", None) for layer in text.layers for module in layer.children()}
    return {size for size in sizes if isinstance(size, int) and size > 0}


def forced_tokens(ids: Tensor, number: int, special: set[int]) -> Tensor:
    """Tokens to force [B, number]: words of the prompts themselves, in turn, and none that marks an image or an end."""
    words = ids.unique()
    words = words[~torch.isin(words, torch.tensor(sorted(special), device=ids.device))]
    if not len(words):
        words = torch.tensor([next(i for i in range(len(special) + 1) if i not in special)], device=ids.device)
    return words[torch.arange(len(ids) * number, device=ids.device) % len(words)].view(len(ids), number)


def special_ids(model: Any) -> set[int]:
    """Every token id that the configs name: of images, of padding, of a text's start and end."""
    configs = (model.config, model.config.get_text_config(), model.generation_config)
    found: set[int] = set()
    for config in configs:
        for name, value in vars(config).items():
            if name.endswith(("token_id", "token_index", "patch_id")):
                found |= {one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)}
    return found
