"""What the rest of the package needs to know about a model family, and nothing more.

Shapes: B batch, S sequence, V visual tokens of a sample.
"""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import VlmpruneError, nearest
from ..flow.locate import ImageGrid, SampleLayout, grid_centres


@dataclass
class Media:
    """What the vision stage of one prompt was given.

    `arguments`: its arguments by name (`image_grid_thw`, `image_sizes`, ...), tensors of pixels replaced by their
    shapes. `input_ids` and `visual` [B, S]: the prompt, for families that tell tiles apart by the text between them.
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


Grids = Callable[[Any, Media], list[ImageGrid]]


@dataclass(frozen=True)
class Family:
    """One model family.

    Args:
        model_type: `config.model_type`.
        grids: the images of a prompt in order, from the model's config and what the vision stage was given.
        text_model: attribute of the base model that holds the decoder layers' model.
        vision: attribute of the base model that holds the vision tower.
        cross_layouts: for families whose visual tokens are no rows of the sequence but keys of cross-attention layers:
            where they stand among those keys. cross_columns: how many keys a sample has there.
        bidirectional: image tokens see each other in both directions, so a causal mask alone is not theirs.
        deepstack: the language model adds visual features again after its first layers.
        multi_axis_positions: position ids have several axes (M-RoPE), so they cannot simply be re-indexed.
        pixel_axis: what the first axis of the pixels counts: images, or samples (each with all its images).
        pixels: rows of the pixels an image has, from config, base grid and number of tokens; 1 by default.
        tower_layer: the layer of the tower whose output becomes visual tokens, from the model's config and the tower;
            only where every visual token is one patch, in order. None of a tower that is built otherwise.
    """

    model_type: str
    grids: Grids
    text_model: str = "language_model"
    vision: str = "vision_tower"
    cross_layouts: Callable[[Any, Media], list[SampleLayout]] | None = None
    cross_columns: Callable[[Any, Media], int] | None = None
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
        names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
        return sorted({value for name in names if (value := getattr(config, name, None)) is not None})

    def attention(self, layer: Any) -> Any:
        """The attention module of a decoder layer."""
        return getattr(layer, "cross_attn", None) or layer.self_attn


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
