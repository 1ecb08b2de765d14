"""What the rest of the package needs to know about a model family, and nothing more.

Shapes: B batch, S sequence, V visual tokens of a sample.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import VIDEO as NO_VIDEO
from ..errors import VlmpruneError, nearest
from ..flow.locate import VIDEO, ImageGrid, SampleLayout, grid_centres
from ..hf.arguments import has


@dataclass
class Media:
    """What the vision stage of one prompt was given, of its images or of its videos.

    `arguments`: its arguments by name (`image_grid_thw`, `image_sizes`, ...) without the pixels, of videos these'
    shape as `video_shape`. `input_ids` and `visual` [B, S]: the prompt, for families that tell tiles apart by the text
    between them, and where its images, or its videos, are.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    input_ids: Tensor | None = None
    visual: Tensor | None = None

    def get(self, name: str) -> Any:
        return self.arguments.get(name)

    def rows(self, name: str, *, needed: bool = False) -> list[list[int]]:
        """A tensor argument as nested lists, [] where it was not given.

        Raises:
            VlmpruneError: it is `needed` and was not given.
        """
        value = self.arguments.get(name)
        if needed and value is None:
            raise VlmpruneError(
                f"The prompt came without {name}, so its grid is unknown; pass everything the processor returns."
            )
        return [] if value is None else torch.as_tensor(value).reshape(-1, torch.as_tensor(value).shape[-1]).tolist()


_IMAGE_IDS = ("image_token_id", "image_token_index", "image_patch_id")
_VIDEO_IDS = ("video_token_id", "video_token_index")
_ATTENTION = ("cross_attn", "self_attn", "self_attention", "attention", "attn")  # what decoder layers call theirs
Grids = Callable[[Any, Media], list[ImageGrid]]


@dataclass(frozen=True)
class Family:
    """One model family.

    Args:
        model_type: `config.model_type`.
        grids: the images of a prompt in order, from the model's config and what the vision stage was given.
        video_grids: likewise its videos; None where videos are refused.
        text_model: attribute of the base model that holds the decoder layers' model.
        vision: attribute of the base model that holds the vision tower.
        cross_layouts: for families whose visual tokens are no rows of the sequence but keys of cross-attention layers:
            where they stand among those keys. cross_columns: how many keys a sample has there.
        bidirectional: image tokens see each other in both directions, so a causal mask alone is not theirs.
        deepstack: the language model adds visual features again at some of its layers.
        multi_axis_positions: position ids have several axes (M-RoPE), so they cannot simply be re-indexed.
        pixel_axis: what the first axis of the pixels counts: images, or samples (each with all its images). Of videos
            it counts these, or what `pixels` says.
        pixels: rows of the pixels an image has, from config, base grid and number of tokens; 1 by default.
        tower_layer: the layer of the tower whose output becomes visual tokens, from the model's config and the tower;
            only where every visual token is one patch, in order. None of a tower that is built otherwise.
    """

    adapter: ClassVar[str] = "declared"
    model_type: str
    grids: Grids
    text_model: str = "language_model"
    vision: str = "vision_tower"
    cross_layouts: Callable[[Any, Media], list[SampleLayout]] | None = None
    cross_columns: Callable[[Any, Media], int] | None = None
    video_grids: Grids | None = None
    bidirectional: bool = False
    deepstack: bool = False
    multi_axis_positions: bool = False
    pixel_axis: Literal["image", "sample"] = "image"
    pixels: Callable[[Any, tuple[int, int, int], int], int] | None = None
    tower_layer: Callable[[Any, Any], Any] | None = None

    def pixel_rows(self, config: Any, grid: tuple[int, int, int], count: int) -> int:
        """Rows of the pixels' first axis that one image of `count` tokens has."""
        return self.pixels(config, grid, count) if self.pixels else 1

    @property
    def cross_attention(self) -> bool:
        """Whether text rows attend to the image in cross-attention layers."""
        return self.cross_layouts is not None

    @property
    def plain_positions(self) -> bool:
        """Whether positions are one running number under a causal mask, so that they can be re-indexed."""
        return not (self.multi_axis_positions or self.cross_attention or self.bidirectional)

    def base_model(self, model: Any) -> Any:
        """The model whose forward is one of a prompt: the part below the head, where there is such a part."""
        return model.base_model

    def language_model(self, model: Any) -> Any:
        """The model that holds the decoder layers."""
        return getattr(model.base_model, self.text_model)

    def vision_tower(self, model: Any) -> Any:
        """The model that encodes pixels."""
        return getattr(model.base_model, self.vision)

    def tower_attention(self, model: Any, *, last: bool = False) -> Any:
        """The attention module of the tower's layer whose output becomes visual tokens, or None.

        Args:
            last: of the layer that comes last among this one's siblings, also where the model does not use its output.
        """
        tower = self.vision_tower(model)
        layer = self.tower_layer(model.config, tower) if self.tower_layer else None
        if layer is not None and last:
            layer = next((m[-1] for m in tower.modules() if isinstance(m, nn.ModuleList) and layer in list(m)), layer)
        return None if layer is None else layer.self_attn

    def class_token(self, model: Any) -> bool:
        """Whether the tower puts a class token in front of its patches."""
        return hasattr(getattr(self.vision_tower(model), "embeddings", None), "class_embedding")

    def visual_ids(self, config: Any) -> list[int]:
        """The token ids that stand for visual tokens: image, and video where the family has it."""
        return sorted(_named(config, _IMAGE_IDS + _VIDEO_IDS))

    def kinds(self, config: Any, ids: Tensor, given: dict[str, Any]) -> Tensor:
        """Of every token of a prompt [B, S] whether it is text (0), of an image (1) or of a video (2).

        Some families have one id for both: there `mm_token_type_ids` say it, or the marks around videos, or that the
        prompt has no images.

        Args:
            ids: on the CPU. given: what the forward was given.
        """
        visual = torch.isin(ids, torch.tensor(self.visual_ids(config)))
        own = _named(config, _VIDEO_IDS) - _named(config, _IMAGE_IDS)
        video = torch.isin(ids, torch.tensor(sorted(own), dtype=ids.dtype))
        if has(given, "video") and not bool(video.any()):
            types = given.get("mm_token_type_ids")
            if types is not None and types.shape == ids.shape:
                video = visual & (types.cpu() == VIDEO)
            else:
                first, last = (getattr(config, f"video_{end}_token_id", -1) for end in ("start", "end"))
                video = visual & (torch.eq(ids, first).cumsum(dim=1) > torch.eq(ids, last).cumsum(dim=1))
            if not has(given, "image") and not bool(video.any()):
                video = visual
        return visual.long() + video.long()

    def check_video(self, given: Mapping[str, Any]) -> None:
        """Refuse a video where a forward or a `generate` brings one, as pixels or as features, and it cannot be pruned.

        The frames of SmolVLM's and InternVL's videos come as `pixel_values` between image tokens, like so many images;
        nothing but the words around them differs, so these run, every frame as an image unless `video_frames` says
        which are videos.
        """
        if not has(dict(given), "video"):
            return
        if self.video_grids is None:
            raise VlmpruneError(NO_VIDEO)
        if given.get("use_audio_in_video"):
            raise VlmpruneError(
                "use_audio_in_video=True puts a video's sound between its frames, which is not supported yet; pass "
                "use_audio_in_video=False, to the processor too."
            )

    def attention(self, layer: Any) -> Any:
        """The attention module of a decoder layer, None of one that does not attend (a recurrence, an MLP alone)."""
        named = next((part for name in _ATTENTION if (part := getattr(layer, name, None)) is not None), None)
        if named is None:  # by what kernels ask an attention module, where all kinds of parts have one name: Nemotron-H
            return next((part for part in layer.children() if hasattr(part, "is_causal")), None)
        return None if getattr(named, "layer_type", None) == "linear_attention" else named  # so named in Kimi Linear


def _named(config: Any, names: Sequence[str]) -> set[int]:
    """The ids that a config gives these names."""
    return {value for name in names if (value := getattr(config, name, None)) is not None}


def same_grids(media: Media, grid: ImageGrid) -> list[ImageGrid]:
    """The images of a prompt in a family with the same grid for each."""
    assert media.visual is not None
    return [grid] * (int(media.visual.sum()) // grid.count)


def tile_centres(side: int, rows: int, cols: int) -> list[Tensor]:
    """Centres [side * side, 2] of the tokens of each of rows x cols tiles, in raster order."""
    places = [torch.tensor([col, row]) for row in range(rows) for col in range(cols)]
    return [(grid_centres(side, side) + place) / torch.tensor([cols, rows]) for place in places]


def check_options(options: dict[str, Any]) -> None:
    """Refuse unknown options of a family that a user declares, and values of another type than the default's."""
    defaults = {option.name: option.default for option in fields(Family) if option.default is not MISSING}
    for name, value in options.items():
        if name not in defaults:
            raise VlmpruneError(f"A family has no option {name!r}; {nearest(name, defaults)}")
        default = defaults[name]
        if default is None and not (value is None or callable(value)):
            raise VlmpruneError(f"{name} must be a function or left out, got {value!r:.60}.")
        if default is not None and not isinstance(value, type(default)):
            kind = type(default).__name__
            raise VlmpruneError(f"{name} must be a {kind} such as the default {default!r}, got {value!r:.60}.")
    if options.get("pixel_axis", "image") not in ("image", "sample"):
        raise VlmpruneError(f"pixel_axis={options['pixel_axis']!r:.60} is unknown; use 'image' or 'sample'.")
