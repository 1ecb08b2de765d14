"""The result of captioning: the text, its sentences by place, and the cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from PIL import Image, ImageDraw

from ..errors import VlmpruneError
from ..inputs.images import as_rgb
from .divide import Box, Patch
from .hierarchy import Region
from .provenance import Sentence
from .vlm import Spent

STAGES = ("detect", "describe", "match", "aggregate")
EDGES = ((230, 60, 60), (60, 120, 230), (40, 170, 80), (235, 160, 30), (160, 80, 200))


@dataclass(frozen=True)
class Node:
    """A part of the image in the tree: its samples as the model gave them, its sentences, and the parts inside it.

    `objects`: the boxes that the patch was made to hold whole. Sentences rewritten from several patches stand at the
    node of their region, those of the final text that were rewritten at the root.
    """

    name: str
    box: Box
    objects: tuple[Box, ...] = ()
    samples: tuple[str, ...] = ()
    sentences: tuple[Sentence, ...] = ()
    children: tuple[Node, ...] = ()

    def __str__(self) -> str:
        return "\n".join(self._lines(""))

    def _lines(self, indent: str) -> list[str]:
        lines = [f"{indent}{self.name} ({', '.join(f'{v:g}' for v in self.box)})"]
        for one in self.sentences:
            who = f"sample {one.sample}" if one.sample is not None else f"from {list(one.sources)}"
            score = "" if one.score is None else f" {one.score:.3f}"
            what = f"{who}; {one.label or '-'}{score}; {one.reason}"
            lines.append(f"{indent}  {'+' if one.kept else '-'} [{one.number}] {one.text}  ({what})")
        return lines + [line for child in self.children for line in child._lines(indent + "  ")]


@dataclass
class CaptionCost:
    """What a caption cost.

    `calls`: by stage, detector runs, sequences described, statements matched, generative calls of the aggregator.
    `visual_tokens`: rows of visual tokens that entered the language model in all calls of the describing model, once
    for all samples of a crop, since they share its prefill (the paper counts each sample's),
    `layer_avg_tokens` the same averaged over its layers, `prefill_flops` of its language model (None: the model was
    not wrapped, so nothing was counted). `images_encoded`: images through the vision tower. `seconds`: by stage.
    """

    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    visual_tokens: int = 0
    layer_avg_tokens: float = 0.0
    prefill_flops: float | None = 0.0
    images_encoded: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def charge(self, spent: Spent) -> None:
        """Take over what the describing model spent."""
        self.visual_tokens = round(spent.visual_tokens)
        self.layer_avg_tokens = spent.layer_avg_tokens
        self.prefill_flops = spent.prefill_flops
        self.images_encoded = spent.images


@dataclass(frozen=True)
class Caption:
    """The caption of one image.

    `text`: what to show. `sentences`: provenance of every sentence about the image, in the order they were generated.
    `tree`: the same by place. `patches`: the parts that were described (the four spatial ones, then the semantic one if
    there was one). `cost`: what it took.
    """

    text: str
    sentences: tuple[Sentence, ...]
    patches: tuple[Node, ...]
    tree: Node
    cost: CaptionCost
    notes: tuple[str, ...] = ()
    image: Image.Image | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable; boxes in pixels."""
        return {
            "text": self.text,
            "patches": [
                {
                    "name": one.name,
                    "box": list(one.box),
                    "objects": [list(box) for box in one.objects],
                    "samples": list(one.samples),
                }
                for one in self.patches
            ],
            "global": list(self.tree.samples),
            "sentences": [one.to_dict() for one in self.sentences],
            "cost": asdict(self.cost),
            "notes": list(self.notes),
        }

    def overlay(self, image: Image.Image | None = None) -> Image.Image:
        """The image with the patches (coloured) and the object boxes in them (white).

        Args:
            image: the captioned one, where the caption no longer holds it; of another size, the boxes are scaled.
        Returns:
            An RGB image of the same size.
        Raises:
            VlmpruneError: there is no image.
        """
        shown = image if image is not None else self.image
        if not isinstance(shown, Image.Image):
            raise VlmpruneError("This caption holds no image; pass overlay() the PIL image that was captioned.")
        out = as_rgb(shown)
        draw = ImageDraw.Draw(out)
        line = max(1, round(max(out.size) / 250))
        scale = (out.width / self.tree.box[2], out.height / self.tree.box[3])
        for one in dict.fromkeys(box for patch in self.patches for box in patch.objects):
            _frame(draw, one, scale, (255, 255, 255), line, 0)
        for number, patch in enumerate(self.patches):
            # A step inwards for each: patches of one box would hide each other.
            _frame(draw, patch.box, scale, EDGES[number % len(EDGES)], line, number * line)
        return out


def _frame(
    draw: ImageDraw.ImageDraw,
    box: Box,
    scale: tuple[float, float],
    colour: tuple[int, int, int],
    line: int,
    inset: int,
) -> None:
    x0, y0, x1, y1 = (value * scale[i % 2] for i, value in enumerate(box))
    x0, y0, x1, y1 = x0 + inset, y0 + inset, x1 - 1 - inset, y1 - 1 - inset
    if x0 <= x1 and y0 <= y1:
        draw.rectangle((x0, y0, x1, y1), outline=colour, width=line)


def tree_of(
    whole: str,
    image: Box,
    patches: Sequence[Patch],
    samples: Sequence[tuple[str, ...]],
    regions: Sequence[Region],
    sentences: Sequence[Sentence],
) -> tuple[Node, tuple[Node, ...]]:
    """The tree, and the patches with their sentences.

    Args:
        whole: the caption of the whole image. samples: of each patch. regions: what went into the fusion; one of
            several patches gets a node of its own.
    """
    place: dict[str, list[Sentence]] = {}
    for one in sentences:
        place.setdefault(one.patch, []).append(one)
    filled = {
        one.name: Node(one.name, one.box, one.objects, own, tuple(place.pop(one.name, ())))
        for one, own in zip(patches, samples, strict=True)
    }
    children: list[Node] = []
    left = dict(filled)
    for region in regions:
        if len(region.patches) > 1:
            inside = tuple(left.pop(member) for member in region.patches)
            # Pairs inside a longer chain have names of their own.
            pairs = [key for key in place if key != "image" and all(p in region.patches for p in key.split(" + "))]
            own = tuple(s for key in pairs for s in place.pop(key))
            children.append(Node(region.name, region.box, sentences=own, children=inside))
    rest = tuple(place.pop("image", ()))
    stray = tuple(s for group in place.values() for s in group)
    root = Node("image", image, (), (whole,), rest + stray, (*children, *left.values()))
    return root, tuple(filled.values())
