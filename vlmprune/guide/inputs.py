"""What a guide and the model it guides are given: the same inputs, some samples of a batch, a prompt with its answer.

Shapes: B batch, S sequence.
"""

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, GenerationMixin

from ..families import Family
from ..flow.locate import SampleLayout
from ..hf.compatibility import CACHE_NAMES

# Arguments of a forward that are no part of the prompt.
_NOT_PROMPT = {
    "labels",
    *CACHE_NAMES,
    "use_cache",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "logits_to_keep",
    "num_items_in_batch",
    "shift_labels",
    "cache_position",
    "inputs",
}
_LIKE_THE_LAST = {"cross_attention_mask"}
_TOKEN_WISE = {"token_type_ids", "mm_token_type_ids", *_LIKE_THE_LAST}  # one entry per token of the prompt
_SAMPLE_WISE = {"input_ids", "attention_mask", "position_ids", "inputs_embeds", "batch_num_images", *_TOKEN_WISE}


@cache
def generate_parameters() -> tuple[str, ...]:
    """Names of what `generate` takes, in order, `self` left out."""
    return tuple(inspect.signature(GenerationMixin.generate).parameters)[1:]


@cache
def _options() -> frozenset[str]:
    """Names of arguments that steer a call and are no part of its prompt."""
    return frozenset(vars(GenerationConfig())) | frozenset(generate_parameters()) | _NOT_PROMPT


def prompt_inputs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a forward or a `generate` that make up the prompt."""
    options = _options()
    return {name: value for name, value in kwargs.items() if name not in options and value is not None}


# Config fields that decide how many visual tokens an image has.
_GRID_FIELDS = {
    "image_grid_pinpoints",
    "image_seq_length",
    "mm_tokens_per_image",
    "scale_factor",
    "downsample_ratio",
    "vision_aspect_ratio",
    "vision_feature_select_strategy",
}
_VISION_FIELDS = ("image_size", "patch_size", "spatial_merge_size", "temporal_patch_size", "max_num_tiles")


def same_inputs(model: Any, guide: Any) -> bool:
    """Whether the two models read the same token ids and pixels, as far as their configs say."""

    def read(config: Any) -> tuple[Any, ...]:
        names = {name for name in config.to_dict() if name.endswith(("token_id", "token_index"))} | _GRID_FIELDS
        own = {name: value for name in names if (value := getattr(config, name, None)) is not None}
        vision = [getattr(config.vision_config, name, None) for name in _VISION_FIELDS]
        return config.get_text_config().vocab_size, own, vision

    ours, theirs = model.config, guide.config
    return ours.model_type == theirs.model_type and read(ours) == read(theirs)


def take_samples(
    family: Family, config: Any, inputs: dict[str, Any], samples: Sequence[int], layouts: Sequence[SampleLayout]
) -> tuple[dict[str, Any], Tensor]:
    """The inputs of some samples of a batch.

    Args:
        inputs: of the whole batch. layouts: of the whole batch.
    Returns:
        The inputs, and the rows of the pixels' first axis that they hold.
    """
    spans = [(b, span) for b, layout in enumerate(layouts) for span in layout.images]
    chosen = torch.tensor(list(samples))
    owners = torch.tensor([b for b, _ in spans], dtype=torch.long)
    images = torch.isin(owners, chosen).nonzero()[:, 0]
    rows = chosen
    if family.pixel_axis != "sample":
        sizes = [family.pixel_rows(config, span.grid, span.count) for _, span in spans]
        rows = torch.isin(owners.repeat_interleave(torch.tensor(sizes, dtype=torch.long)), chosen).nonzero()[:, 0]
    taken: dict[str, Any] = {}
    for name, value in inputs.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            taken[name] = value
        elif name in _SAMPLE_WISE:
            taken[name] = value[..., chosen, :] if name == "position_ids" else value[chosen.to(value.device)]
        elif family.pixel_axis == "sample" or name.startswith("pixel"):
            taken[name] = value[rows.to(value.device)]
        else:
            taken[name] = value[images.to(value.device)]
    return taken, rows


def with_answers(inputs: dict[str, Any], answers: Sequence[Tensor], pad: int) -> dict[str, Any]:
    """A prompt and its answer in one sequence per sample, padded on the left whatever the prompt's padding.

    Args:
        answers: per sample [n] token ids.
    """
    ids: Tensor = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()

    def joined(values: Tensor, tails: Sequence[Tensor], filler: int = 0) -> Tensor:
        rows = [torch.cat([own[real], tail.to(own)]) for own, real, tail in zip(values, valid, tails, strict=True)]
        return pad_sequence(rows, batch_first=True, padding_value=filler, padding_side="left")

    out = {name: value for name, value in inputs.items() if name != "position_ids"}
    out["input_ids"] = joined(ids, answers, pad)
    out["attention_mask"] = joined(valid.long(), [torch.ones_like(answer) for answer in answers])
    for name in _TOKEN_WISE & inputs.keys():
        # A generated token gets 0, or what the last token of its prompt has.
        last = [own[real][-1] * (name in _LIKE_THE_LAST) for own, real in zip(inputs[name], valid, strict=True)]
        tails = [one.expand(len(answer), *one.shape) for one, answer in zip(last, answers, strict=True)]
        out[name] = joined(inputs[name], tails)
    return out


def end_ids(value: Any) -> list[int]:
    """Token ids from what a generation config holds: None, one, or several."""
    if value is None:
        return []
    return [int(v) for v in value] if isinstance(value, list | tuple | Tensor) else [int(value)]
