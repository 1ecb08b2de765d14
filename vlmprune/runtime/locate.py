"""Where the visual tokens of a new prompt are, from what its forward was given.

Shapes: B batch, S sequence, V visual tokens of a sample.
"""

from typing import Any

import torch
from torch import Tensor

from ..errors import VlmpruneError
from ..families import Media
from ..flow.frames import joined
from ..flow.locate import IMAGE, VIDEO, ImageGrid, SampleLayout, ending, in_text_order, last_valid, shared_out
from ..flow.prompt_state import PromptState
from ..hf.arguments import described, handed, has, has_visuals, host_copies, media_metadata, padding_mask
from ..methods.kv.base import CacheCut
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
        """Of every row; empty ones where the forward brings no image or video. Refused where text and images do not add
        up."""
        if not has_visuals(given):
            return [SampleLayout(torch.zeros(0, dtype=torch.long), ()) for _ in ids]
        if self.family.cross_layouts is not None:
            return self.family.cross_layouts(self.config, Media(self._arguments(call, given, "image")))
        ids, valid = host_copies([ids, valid])
        kinds = self.family.kinds(self.config, ids, given) * valid
        if (length := call.prompt_length) is not None:
            kinds[:, length:] = 0  # with use_cache=False a generated image token comes back as input: it is text
        each = {kind: self._rows_per_image(call, given, len(ids), kind) for kind in ("image", "video")}
        repeats = max(each.values())
        own = {kind: self._dealt(call, given, kind, ids[::rows], kinds[::rows]) for kind, rows in each.items()}
        images, videos = (own[kind][:: repeats // rows] for kind, rows in each.items())
        once = [in_text_order(*one) for one in zip(kinds[::repeats], images, videos, strict=True)]
        if call.frames is not None:
            once = joined(once, call.frames)
        slots = [row.nonzero()[:, 0] for row in kinds]
        layouts = [SampleLayout(row, once[i // repeats].images) for i, row in enumerate(slots)]
        last = last_valid(valid[:, :length]).tolist()
        return [ending(layout, at) for layout, at in zip(layouts, last, strict=True)]

    def _arguments(self, call: Call, given: dict[str, Any], kind: str) -> dict[str, Any]:
        """What the vision stage was given of images or of videos."""
        arguments = {**call.media.get(kind, {}), **media_metadata(given)}
        features = handed(given, kind)
        if features is not None and arguments.get("feature_rows") is None:  # features that the caller made
            arguments.update(described(features))
        return arguments

    def _dealt(self, call: Call, given: dict[str, Any], kind: str, ids: Tensor, kinds: Tensor) -> list[list[ImageGrid]]:
        """The images, or the videos, of each of these rows of a prompt; `kinds` [B, S] of their tokens."""
        mine = kinds == (VIDEO if kind == "video" else IMAGE)
        find = self.family.video_grids if kind == "video" else self.family.grids
        found: list[ImageGrid] = []
        if find is not None and has(given, kind):
            found = find(self.config, Media(self._arguments(call, given, kind), ids, mine))
        return shared_out(mine, found)

    def prompt(self, call: Call, given: dict[str, Any]) -> PromptState:
        """A new prompt, whose vision stage is over."""
        ids, pruner, tower = given.get("input_ids"), self.setup.pruner, self.setup.tower
        cut = self.setup.cache_method
        if ids is None:
            if pruner is not None or (isinstance(cut, CacheCut) and cut.tokens == "visual"):
                raise VlmpruneError(
                    "The prompt came as inputs_embeds without input_ids, so its visual tokens cannot be found; pass "
                    "input_ids with the image."
                )
            ids = torch.zeros(given["inputs_embeds"].shape[:2], dtype=torch.long)
        device = ids.device
        ids, valid = host_copies([ids, padding_mask(given.get("attention_mask"), ids)])
        layouts = self.layouts(call, given, ids, valid)
        importance = vision = None
        if isinstance(cut, CacheCut):
            refuse_part(type(cut).__name__, ids, given.get("attention_mask"))
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
            sources=self.setup.sources,
        )

    def _rows_per_image(self, call: Call, given: dict[str, Any], rows: int, kind: str = "image") -> int:
        """How many rows (beams, return sequences) stand for one pass of the vision stage.

        `generate` of newer transformers encodes each prompt's images once and repeats the features; older ones (5.14)
        repeat the pixels, and every row is encoded. A model that calls the `generate` of another encodes them before.
        """
        once = handed(given, kind) is not None or call.brought
        return call.repeats(rows) if once else 1
