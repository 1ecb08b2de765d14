"""The second pair's models: stock LLaVA with CLIP towers whose positions fit any square grid.

A tower's position table is a sum: sines and cosines in patches, fixed, which tell neighbours, and a learnt 7 x 7 table
over the whole canvas, interpolated to the grid, which tells where on the canvas a patch is. So one set of weights reads
112 x 112 px and 224 x 224 px; what is exported for a grid is a stock model with the table of that grid.

Shapes: B images, G patches a side, V = G * G visual tokens, D width of the tower.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from ..pair import export, export_processor, greedy, init_text, text_config
from ..tower import WAVES, encoder_layers, look_around, start, waves
from ..vocabulary import CANVAS, CELLS, COLOURS, IDS, SHAPES, SIZES

# What a caption says of a thing, by attribute; a position is one concept, though some are two words.
VALUES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "digit": tuple(str(digit) for digit in range(10)),
    "position": tuple(CELLS),
}
CONCEPTS = tuple(value for values in VALUES.values() for value in values)
COARSE = 7  # patches a side of the learnt position table
CANVASES = (CANVAS, 2 * CANVAS)  # pixels a side of the models that are exported
_AROUND = ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))

VISION: dict[str, dict[str, int]] = {
    "large": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 8, "patch_size": 8},
    "small": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 16},
}
TEXT: dict[str, dict[str, int]] = {
    "large": {"hidden_size": 160, "intermediate_size": 416, "num_hidden_layers": 5, "num_attention_heads": 5},
    "small": {
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
}


def build(which: str, canvas: int = CANVAS) -> LlavaForConditionalGeneration:
    """A model with start weights for images of `canvas` pixels a side."""
    vision = VISION[which]
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            intermediate_size=4 * vision["hidden_size"],
            projection_dim=vision["hidden_size"],
            image_size=canvas,
            **vision,
        ),
        text_config=text_config(TEXT[which]),
        image_token_id=IDS["<image>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(canvas // vision["patch_size"]) ** 2,
        tie_word_embeddings=True,
    )
    config._attn_implementation = "eager"  # in bf16 and at this size twice as fast as SDPA
    model = LlavaForConditionalGeneration(config)
    init_text(model)
    _init_tower(model.model.vision_tower)
    model.generation_config = greedy()
    return model


def _init_tower(tower: Any) -> None:
    """Start all layers but the last as convolutions (see `tower.init_tower`)."""
    with torch.no_grad():
        start(tower).position_embedding.weight.zero_()
        for layer in encoder_layers(tower)[:-1]:
            look_around(layer, _AROUND[: layer.self_attn.num_heads])


class Trainee(nn.Module):
    """A model in training, with its position table's learnt part and the heads that only training has."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.which = which
        self.model = build(which)
        width = VISION[which]["hidden_size"]
        self.coarse = nn.Parameter(0.02 * torch.randn(COARSE, COARSE, width))
        self.concepts = nn.Linear(width, len(CONCEPTS))
        with torch.no_grad():
            self.concepts.weight.normal_(0, 0.5 / math.sqrt(width))
            self.concepts.bias.fill_(-1.0)

    @property
    def patch(self) -> int:
        """Pixels a side of a patch."""
        return VISION[self.which]["patch_size"]

    @property
    def tower(self) -> Any:
        """The vision tower."""
        return self.model.model.vision_tower

    def table(self, side: int) -> Tensor:
        """Positions [V, D] of a grid of side x side patches."""
        spread = (
            F.interpolate(self.coarse.permute(2, 0, 1)[None], (side, side), mode="bilinear", align_corners=False)[0]
            .flatten(1)
            .T
        )
        return spread + F.pad(waves(side), (0, spread.shape[1] - WAVES)).to(spread.device)

    def features(self, values: Tensor) -> Tensor:
        """What the tower makes of images (B, 3, canvas, canvas): [B, V, D], as the stock model reads it."""
        inner = getattr(self.tower, "vision_model", self.tower)
        embeddings = inner.embeddings
        patches = embeddings.patch_embedding(values)
        side = patches.shape[-1]
        x = patches.flatten(2).transpose(1, 2) + self.table(side)
        head = embeddings.class_embedding + embeddings.position_embedding.weight[0]
        x = inner.pre_layrnorm(torch.cat((head.expand(len(x), 1, -1), x), 1))
        return inner.encoder(inputs_embeds=x).last_hidden_state[:, 1:]

    def positions(self, canvas: int) -> Tensor:
        """The stock position table [1 + V, D] for images of `canvas` pixels a side."""
        first = next(m for m in self.tower.modules() if hasattr(m, "patch_embedding")).position_embedding.weight[:1]
        return torch.cat((first, self.table(canvas // self.patch))).detach()

    def export(self, folder: Path, canvas: int = CANVAS) -> None:
        """The files of a stock model for images of `canvas` pixels a side, and its processor's."""
        stock = build(self.which, canvas)
        weights = self.model.state_dict()
        name = next(name for name in weights if name.endswith("position_embedding.weight"))
        stock.load_state_dict(weights | {name: self.positions(canvas)})
        export(stock, folder)
        export_processor(folder, canvas, self.patch)
