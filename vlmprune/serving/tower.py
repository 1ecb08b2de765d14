"""The large model's vision tower and projector, without its language model.

Shapes: B batch, S sequence, V visual tokens of a sample, D width of the language model, R width of a row: D, or with
DeepStack D times one and the tower's levels, which stand behind each other as vLLM takes them.
"""

import hashlib
import inspect
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from ..attention.probe import ProbedLayer
from ..attention.tower import TowerReader
from ..errors import UnsupportedModelError, VlmpruneError
from ..families import FAMILIES, Family, Media
from ..flow.locate import SampleLayout, layouts_from_mask
from ..hf.arguments import media_metadata, padding_mask, to_device
from ..methods.base import Pruner, PruningContext
from .memory import Memory
from .payload import GRID

# What vLLM takes embeddings of, an image as one run of them, and the positions they can have there: compact ones in
# stock vLLM, original ones with the plugin. Positions of several axes (Qwen) cannot be compact.
SERVED = {"llava": ("original", "compact"), "qwen2_5_vl": ("original",), "qwen3_vl": ("original",)}


def served_family(config: Any, positions: str | None = None) -> Family:
    """The adapter of a model that an engine can be handed embeddings of, at these positions.

    Raises:
        UnsupportedModelError: the engine takes none of this family. VlmpruneError: it cannot have these positions.
    """
    if config.model_type not in SERVED:
        raise UnsupportedModelError(
            f"Models of type {config.model_type!r} cannot be served from embeddings; served are {', '.join(SERVED)}."
        )
    allowed = SERVED[config.model_type]
    if positions is not None and positions not in allowed:
        raise VlmpruneError(
            f"positions={positions!r} cannot be had for {config.model_type!r} in an engine; use "
            f"{' or '.join(map(repr, allowed))}."
        )
    return FAMILIES[config.model_type]


def load_vision(folder: str, **options: Any) -> Any:
    """A model's base without its language model, whose weights are never read.

    Args:
        folder: a directory, or an id on the Hub. options: for `from_pretrained`; `dtype` is "auto" unless given.
    Raises:
        UnsupportedModelError: as `served_family`.
    """
    config = AutoConfig.from_pretrained(folder)
    family = served_family(config)
    whole: Any = MODEL_MAPPING[type(config)]

    def without_text(self: Any, config: Any) -> None:
        whole.__init__(self, config)  # on the meta device: nothing is allocated for what goes again
        delattr(self, family.text_model)

    # The leftover weights are the language model's, meant to be left; transformers would list them all as a warning.
    members = {
        "__init__": without_text,
        "__module__": whole.__module__,
        "_keys_to_ignore_on_load_unexpected": [r"language_model|lm_head|^model\.(layers|embed_tokens|norm)\."],
    }
    vision: Any = type(whole.__name__, (whole,), members)
    return vision.from_pretrained(folder, **{"dtype": "auto", **options}).eval()


def _digest(pixels: Tensor, grid: Tensor | None) -> bytes:
    """Of an image as the tower gets it."""
    numbers = pixels.detach().cpu().contiguous().view(torch.uint8).numpy()
    shape = (str(pixels.dtype), tuple(pixels.shape), None if grid is None else grid.tolist())
    return hashlib.blake2b(numbers.tobytes() + repr(shape).encode(), digest_size=32).digest()


class Tower:
    """Turns what a processor returns into visual tokens, and lets a pruner choose among them.

    Args:
        model: a loaded model (its language model is not called), or what `load_vision` returned.
        method: a pruner that needs no language model.
    Raises:
        UnsupportedModelError: as `served_family`. VlmpruneError: the method reads the language model.
    """

    def __init__(self, model: Any, method: Pruner) -> None:
        self.family = served_family(model.config)
        self.model, self.config, self.method = model.base_model, model.config, method
        text = self.config.get_text_config()
        self.width, self.longest = int(text.hidden_size), int(text.max_position_embeddings)
        levels = len(self.config.vision_config.deepstack_visual_indexes) if self.family.deepstack else 0
        self.row_width = self.width * (1 + levels)
        self._arguments = frozenset(inspect.signature(self.model.get_image_features).parameters)
        self._lock = threading.Lock()
        self._reader: TowerReader | None = None
        if method.reads_vision:
            self._reader = TowerReader(self.family, self.model, type(method).__name__, as_one=method.vision_as_one)

    def image_tokens(self) -> int:
        """V of an image, for families in which all images have as many."""
        enough = torch.ones(1, 1 << 16, dtype=torch.bool)
        return self.family.grids(self.config, Media(visual=enough))[0].count

    def layouts(self, inputs: Mapping[str, Any]) -> list[SampleLayout]:
        """Where the visual tokens of each sample are.

        Raises:
            VlmpruneError: ids and images do not fit together.
        """
        ids: Tensor = inputs["input_ids"]
        wanted = torch.tensor(self.family.visual_ids(self.config), device=ids.device)
        visual = torch.isin(ids, wanted) & padding_mask(inputs.get("attention_mask"), ids)
        grids = self.family.grids(self.config, Media(media_metadata(dict(inputs)), ids, visual))
        return layouts_from_mask(visual, grids)

    def _features(self, inputs: Mapping[str, Any], counts: list[int], memory: Memory | None) -> list[Tensor]:
        """What the language model is given of the images: per sample [V, R], of which V are expected."""
        given = {name: value for name, value in inputs.items() if name in self._arguments}
        if given.get("pixel_values") is None:
            raise VlmpruneError("The prompt has no pixel_values; pass everything the processor returns for an image.")
        # Attention is read while the tower runs; where there is more than pixels and grids, images are not alone.
        remembered = memory is not None and self._reader is None and given.keys() <= {"pixel_values", GRID}
        rows = self._remembered(given, memory) if remembered and memory is not None else self._rows(given)
        if len(rows) != sum(counts):
            raise VlmpruneError(
                f"The vision tower makes {len(rows)} visual tokens and the prompt has {sum(counts)}; prepare text and "
                "images with the model's own processor."
            )
        return list(rows.split(counts))

    def _rows(self, given: dict[str, Any]) -> Tensor:
        """Of all images, [V, R]."""
        out = self.model.get_image_features(**to_device(self.family.vision_tower(self.model), given))
        levels = [out.pooler_output, *(out.deepstack_features if self.family.deepstack else ())]
        # The rows of all images, which families give as one tensor or one an image.
        flat = [level.flatten(0, -2) if isinstance(level, Tensor) else torch.cat(list(level)) for level in levels]
        return torch.cat(flat, dim=-1)

    def _remembered(self, given: dict[str, Any], memory: Memory) -> Tensor:
        """The same, of which only those images are computed that are not remembered by their pixels."""
        pixels, grids = given["pixel_values"], given.get(GRID)
        sizes = [1] * len(pixels) if grids is None else grids.prod(dim=-1).tolist()
        each = pixels.split(sizes)
        keys = [_digest(image, None if grids is None else grids[at]) for at, image in enumerate(each)]
        found = {key: memory.get(key) for key in keys}
        new = [at for at, key in enumerate(keys) if found[key] is None and key not in keys[:at]]
        if new:
            some = {"pixel_values": torch.cat([each[at] for at in new])}
            rows = self._rows(some if grids is None else {**some, GRID: grids[new]})
            total = sum(sizes[at] for at in new)  # an image's rows are as many as its pixels allow
            for at, own in zip(new, rows.split([len(rows) * sizes[at] // total for at in new]), strict=True):
                found[keys[at]] = own
                if bool(torch.isfinite(own).all()):
                    kept = own.to("cpu", copy=True)
                    memory.put(keys[at], kept, kept.nbytes)
        device = self.family.vision_tower(self.model).device
        return torch.cat([found[key].to(device) for key in keys])

    @torch.no_grad()
    def see(
        self,
        inputs: Mapping[str, Any],
        layouts: list[SampleLayout],
        importance: list[Tensor] | None = None,
        memory: Memory | None = None,
    ) -> tuple[list[Tensor], PruningContext]:
        """The rows of every sample [V, R], and the prompt as a pruner sees it before decoder layer 0.

        Args:
            importance: a guide's, per sample [V]. memory: holds the rows of images that were seen before, and gets
                those of the others; unused where the method reads the tower's attention.
        Raises:
            VlmpruneError: no pixels, or the tower makes another number of tokens than the prompt has.
        """
        with self._lock, ExitStack() as after:
            if self._reader is not None:
                after.callback(ProbedLayer(self._reader.module).remove)
                self._reader.begin()
                after.callback(self._reader.end)
            features = self._features(inputs, [layout.count for layout in layouts], memory)
        vision = self._reader.take(layouts, 1) if self._reader is not None else None
        ids: Tensor = inputs["input_ids"]
        hidden = torch.zeros(*ids.shape, self.width, dtype=features[0].dtype, device=features[0].device)
        for row, (layout, own) in enumerate(zip(layouts, features, strict=True)):
            hidden[row, layout.slots.to(hidden.device)] = own[:, : self.width]
        return features, PruningContext(
            layouts=layouts,
            hidden=hidden,
            input_ids=ids,
            valid=padding_mask(inputs.get("attention_mask"), ids),
            layer=0,
            importance=importance,
            vision=vision,
            unpruned=layouts,
        )
