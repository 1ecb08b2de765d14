"""Where the visual tokens of a new prompt are, from what its forward was given.

Shapes: B batch, S sequence, V visual tokens of a sample.
"""

from typing import Any

import torch
from torch import Tensor

from ..errors import VlmpruneError
from ..families import Media
from ..flow.locate import SampleLayout, ending, last_valid, layouts_from_mask
from ..flow.prompt_state import PromptState
from ..hf.arguments import encoded, has_image, host_copies, image_metadata, padding_mask
from .call import Call
from .pieces import refuse_part
from .setup import Setup


class Locator:
    """Finds the visual tokens of one model's prompts."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.family, self.config = setup, setup.family, setup.model.config

    def visual(self, ids: Tensor) -> Tensor:
        """Bool [B, S]: which ids stand for visual tokens."""
        return torch.isin(ids, torch.tensor(self.family.visual_ids(self.config), device=ids.device))

    def layouts(self, call: Call, given: dict[str, Any], ids: Tensor, valid: Tensor) -> list[SampleLayout]:
        """Of every row; empty ones where the forward brings no image. Refused where text and images do not add up."""
        if not has_image(given):
            return [SampleLayout(torch.zeros(0, dtype=torch.long), ()) for _ in ids]
        arguments = {**call.image_metadata, **image_metadata(given)}
        if self.family.cross_layouts is not None:
            return self.family.cross_layouts(self.config, Media(arguments))
        ids, valid = host_copies([ids, valid])
        visual = self.visual(ids) & valid
        if (length := call.prompt_length) is not None:
            visual[:, length:] = False  # with use_cache=False a generated image token comes back as input: it is text
        repeats = self._rows_per_image(call, given, len(ids))
        grids = self.family.grids(self.config, Media(arguments, ids[::repeats], visual[::repeats]))
        once = layouts_from_mask(visual[::repeats], grids)
        slots = [row.nonzero()[:, 0] for row in visual]
        layouts = [SampleLayout(own, once[i // repeats].images) for i, own in enumerate(slots)]
        last = last_valid(valid[:, :length]).tolist()
        return [ending(layout, at) for layout, at in zip(layouts, last, strict=True)]

    def prompt(self, call: Call, given: dict[str, Any]) -> PromptState:
        """A new prompt, whose vision stage is over."""
        ids, pruner, tower = given.get("input_ids"), self.setup.pruner, self.setup.tower
        if ids is None:
            if pruner is not None:
                raise VlmpruneError(
                    "The prompt came as inputs_embeds without input_ids, so its visual tokens cannot be found; pass "
                    "input_ids with the image."
                )
            ids = torch.zeros(given["inputs_embeds"].shape[:2], dtype=torch.long)
        device = ids.device
        ids, valid = host_copies([ids, padding_mask(given.get("attention_mask"), ids)])
        layouts = self.layouts(call, given, ids, valid)
        importance = vision = None
        if pruner is not None and any(layout.count for layout in layouts):
            if pruner.asks:
                refuse_part(type(pruner).__name__, ids, given.get("attention_mask"))
            if call.importance is not None:  # once per row: beams and return sequences repeat rows
                repeats = len(ids) // len(call.importance)
                importance = [scores for scores in call.importance for _ in range(repeats)]
            if tower is not None:
                vision = tower.take(layouts, self._rows_per_image(call, given, len(ids)))
        return PromptState(
            input_ids=ids,
            valid=valid,
            layouts=layouts,
            device=device,
            prompt_length=min(call.prompt_length or ids.shape[1], ids.shape[1]),
            cross_attention=self.family.cross_attention,
            reindexed=pruner is not None and pruner.positions == "compact",
            importance=importance,
            vision=vision,
        )

    def _rows_per_image(self, call: Call, given: dict[str, Any], rows: int) -> int:
        """How many rows (beams, return sequences) stand for one pass of the vision stage.

        `generate` of newer transformers encodes each prompt's images once and repeats the features; older ones (5.14)
        repeat the pixels, and every row is encoded.
        """
        return rows // call.prompts if call.prompts and encoded(given, "image") else 1
