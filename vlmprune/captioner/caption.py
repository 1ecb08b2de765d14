"""The result of captioning: the text, its sentences by place, and the cost."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from PIL import Image, ImageDraw

from ..errors import VlmpruneError
from ..inputs.images import as_rgb
from .divide import Patch
from .hierarchy import Region
from .provenance import Sentence
from .vlm import CaptionCost

EDGES = ((230, 60, 60), (60, 120, 230), (40, 170, 80), (235, 160, 30), (160, 80, 200))


@dataclass(frozen=True)
class Node(Patch):
    """A patch in the tree: its sentences, and the parts inside it.

    Sentences rewritten from several patches stand at the node of their region, those of the final text that were
    rewritten at the root.
    """

    sentences: tuple[Sentence, ...] = ()
    children: tuple["Node", ...] = ()

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
        record = {
            "text": self.text,
            "patches": [{f.name: getattr(one, f.name) for f in fields(Patch)} for one in self.patches],
            "global": self.tree.samples,
            "sentences": [one.to_dict() for one in self.sentences],
            "cost": asdict(self.cost),
            "notes": self.notes,
        }
        return json.loads(json.dumps(record))  # tuples become the lists that a file gives back

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
        objects = dict.fromkeys(box for patch in self.patches for box in patch.objects)
        frames = [(box, (255, 255, 255), 0) for box in objects]
        # A step inwards for each: patches of one box would hide each other.
        frames += [(patch.box, EDGES[i % len(EDGES)], i * line) for i, patch in enumerate(self.patches)]
        for box, colour, inset in frames:
            x0, y0, x1, y1 = (value * scale[i % 2] for i, value in enumerate(box))
            inner = (x0 + inset, y0 + inset, x1 - 1 - inset, y1 - 1 - inset)
            if inner[0] <= inner[2] and inner[1] <= inner[3]:
                draw.rectangle(inner, outline=colour, width=line)
        return out


def tree_of(
    whole: str, patches: Sequence[Patch], regions: Sequence[Region], sentences: Sequence[Sentence]
) -> tuple[Node, tuple[Node, ...]]:
    """The tree, and the patches with their sentences.

    Args:
        whole: the caption of the whole image. patches: those that were described. regions: what went into the fusion,
            the whole image first; one of several patches gets a node of its own.
    """
    place: dict[str, list[Sentence]] = {}
    for one in sentences:
        place.setdefault(one.patch, []).append(one)
    nodes = {one.name: Node(**vars(one), sentences=tuple(place.pop(one.name, ()))) for one in patches}
    children, left = [], dict(nodes)
    for region in regions:
        if len(region.patches) > 1:
            inside = tuple(left.pop(one.name) for one in region.patches)
            # Pairs inside a longer chain have names of their own.
            names = [name for name in place if {one.name for one in inside}.issuperset(name.split(" + "))]
            own = tuple(s for name in names for s in place.pop(name))
            children.append(Node(region.patch.name, region.patch.box, sentences=own, children=inside))
    rest = tuple(s for group in place.values() for s in group)
    image = regions[0].patch
    root = Node(image.name, image.box, samples=(whole,), sentences=rest, children=(*children, *left.values()))
    return root, tuple(nodes.values())
