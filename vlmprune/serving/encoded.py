"""What an encoder makes of prompts: the guide's ranking, and the kept images that an engine is handed.

Shapes: V visual tokens of an image or a sample, K kept, R width of a row (`tower`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..flow.locate import SampleLayout
from .payload import GRID, KEPT, ROWS, VISUAL, part


@dataclass(frozen=True)
class KeptImage:
    """What is left of one image.

    `rows` [K, R]: the embeddings, on the CPU. `kept` [K]: ascending indices into the image's tokens, of which there are
    `visual`. `grid`: (t, h, w) as the processor gave it, for families whose positions follow from it.
    """

    rows: Tensor
    kept: Tensor
    visual: int
    grid: Tensor | None = None

    def fields(self, positions: str) -> dict[str, Tensor]:
        """The rows alone for stock vLLM, or with what the plugin needs to place them."""
        places = {KEPT: self.kept, VISUAL: torch.tensor([self.visual])} if positions == "original" else {}
        return {ROWS: self.rows, **places, **({GRID: self.grid} if self.grid is not None else {})}


@dataclass(frozen=True)
class Encoded:
    """One prompt made ready for an engine.

    `token_ids`: the prompt's, one placeholder an image. `images`: in order. `positions`: "original" or "compact".
    """

    token_ids: list[int]
    images: tuple[KeptImage, ...]
    positions: str

    @property
    def visual_tokens(self) -> int:
        """V, before pruning."""
        return sum(image.visual for image in self.images)

    @property
    def kept_tokens(self) -> int:
        """K, what the engine gets."""
        return sum(len(image.rows) for image in self.images)

    def prompt(self) -> dict[str, Any]:
        """What `vllm.LLM.generate` takes."""
        each = [image.fields(self.positions) for image in self.images]
        data: dict[str, Any] = {name: [fields[name] for fields in each] for name in each[0]}
        data |= {name: torch.stack(data[name]) for name in (VISUAL, GRID) if name in data}
        image = data if len(data) > 1 else data[ROWS]
        return {"prompt_token_ids": list(self.token_ids), "multi_modal_data": {"image": image}}

    def parts(self) -> list[dict[str, Any]]:
        """One content part an image, as the OpenAI-compatible server takes it in a chat message."""
        return [part(image.fields(self.positions)) for image in self.images]


@dataclass(frozen=True)
class Ranking:
    """What the guide made of one prompt.

    `importance` [V of the guide] on `layout`. `text`: its answer, of `tokens` tokens after a prompt of `prompt_tokens`;
    `finished`: it ended by itself. `sure`: SGL's S, None unless it was asked for.
    """

    importance: Tensor
    layout: SampleLayout
    text: str
    tokens: int
    prompt_tokens: int
    finished: bool
    sure: float | None = None

    def exits(self, exit_at: float | None) -> bool:
        """Whether the guide answers alone."""
        return exit_at is not None and self.sure is not None and self.sure >= exit_at
