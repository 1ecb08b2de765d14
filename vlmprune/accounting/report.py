"""What happened in the last call: tokens, FLOPs, cache, seconds, and an image of what was kept.

Shapes: B batch, V visual tokens of a sample, K kept, L decoder layers.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..errors import VlmpruneError
from ..flow.locate import ImageSpan
from ..flow.transfer import cell_sizes
from ..inputs.images import as_rgb
from .scores import sureness


@dataclass
class Report:
    """Of the last `forward` or `generate`; one entry a prompt, not a beam.

    `visual_tokens`, `kept_tokens`: V and K of each sample. `kept`: per sample [K], ascending indices into its visual
    tokens; for merging methods the index whose position the merged token takes. `images`: per sample and image the
    span, its grid and coordinates. `layer_lengths`: prefill length (max over the batch) seen by each decoder layer;
    of a cross-attention layer, its visual keys. `lm_tokens`: visual tokens entering the language model,
    `layer_avg_tokens`: averaged over its layers (those that see visual tokens), `retention`: that average / V; means
    over the batch. `prefill_flops`: of the language model, counted from shapes, summed over the batch. `kv_bytes`:
    cache after prefill. `*_full`: the same unpruned. `exited`, `confidence`, `consistency`: of guided methods, per
    sample whether the guide answered alone, and how sure it was; a sample that exited has nothing kept. `guide_flops`:
    of the guide's language model. `rows`: per sample, ascending, the positions of `input_ids` that the last layers
    saw; a pruned forward's logits are right-aligned, so `logits[b, -len(rows[b]):]` belongs to them (an output's own
    `rows` say the same of that output, and where labels or training lined the logits up, of all positions). `seconds`:
    the stages that took place. `notes`: what a reader should know, for example that there was nothing to prune.
    """

    visual_tokens: list[int]
    kept_tokens: list[int]
    kept: list[Tensor]
    images: list[list[ImageSpan]]
    layer_lengths: list[int]
    lm_tokens: float
    layer_avg_tokens: float
    retention: float
    prefill_flops: int
    prefill_flops_full: int
    kv_bytes: int
    kv_bytes_full: int
    method: dict[str, Any]
    exited: list[bool] | None = None
    confidence: list[float] | None = None
    consistency: list[float] | None = None
    guide_flops: int | None = None
    rows: list[Tensor] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable; coordinates that do not exist are null."""
        record = dict(vars(self))
        record["kept"] = [kept.tolist() for kept in self.kept]
        record["rows"] = [rows.tolist() for rows in self.rows]
        record["images"] = [[span_dict(span) for span in spans] for spans in self.images]
        record["seconds"] = dict(self.seconds)
        record["notes"] = list(self.notes)
        return record

    def __str__(self) -> str:
        def percent(part: float, whole: float) -> str:
            return f"{100 * part / whole:.1f} %" if whole else "-"

        kept, visual = sum(self.kept_tokens), sum(self.visual_tokens)
        flops, cache = percent(self.prefill_flops, self.prefill_flops_full), percent(self.kv_bytes, self.kv_bytes_full)
        guided = []
        if self.guide_flops is not None:
            guided.append(("guide GFLOPs", f"{self.guide_flops / 1e9:.3f}"))
        if self.exited is not None and self.confidence is not None and self.consistency is not None:
            sure = [sureness(*pair) for pair in zip(self.confidence, self.consistency, strict=True)]
            guided.append(("guide answered", f"{sum(self.exited)} of {len(self.exited)}"))
            guided.append(("  how sure", ", ".join(f"{s:.2f}" for s in sure[:8]) + (", ..." if len(sure) > 8 else "")))
        rows = [
            ("method", format_method(self.method)),
            ("visual tokens kept", f"{kept} of {visual} ({percent(kept, visual)})"),
            ("  entering the LM", f"{self.lm_tokens:.1f} a sample"),
            ("  layer average", f"{self.layer_avg_tokens:.1f} a sample ({100 * self.retention:.1f} %)"),
            ("prefill GFLOPs", f"{self.prefill_flops / 1e9:.3f} ({flops} of the full prompt's)"),
            ("KV cache MB", f"{self.kv_bytes / 1e6:.3f} ({cache})"),
            *guided,
            ("seconds", ", ".join(f"{k} {v:.3f}" for k, v in self.seconds.items()) or "-"),
            *(("note", note) for note in self.notes),
        ]
        return "\n".join(f"{name:<20}{value}" for name, value in rows)

    def overlay(self, image: Image.Image, *, sample: int = 0, number: int = 0) -> Image.Image:
        """The image with the dropped parts dimmed, RGB, of the same size.

        Args:
            image: the image that was asked about. sample, number: which sample of the batch, which of its images.
        Raises:
            VlmpruneError: there is no such sample or image, or `image` is not a PIL image.
        """
        if not isinstance(image, Image.Image):
            raise VlmpruneError(f"overlay() needs the PIL image that was asked about, got {image!r:.80}.")
        try:
            span = self.images[sample][number]
        except IndexError:
            raise VlmpruneError(
                f"The last call had no image {number} in sample {sample}; it had "
                f"{[len(spans) for spans in self.images]} images in its samples."
            ) from None
        bright = as_rgb(image)
        dim = Image.blend(bright, Image.new("RGB", bright.size, (18, 18, 24)), 0.78)
        stays = torch.ones(span.count) if span.kept is None else torch.isin(span.positions, span.kept)
        mask = painted(Image.new("L", bright.size), span, [255 if stay else None for stay in stays.tolist()])
        return Image.composite(bright, dim, mask)


def painted(canvas: Image.Image, span: ImageSpan, colours: Iterable[Any], *, frame: int = 0) -> Image.Image:
    """The canvas with each token's pixels in its colour, or in frames of this width; tokens of colour None are left."""
    centre, half, whole = span.xy.double(), cell_sizes(span).double() / 2, torch.tensor(canvas.size)
    first = ((centre - half) * whole).round().clamp(min=0)
    last = torch.minimum(((centre + half) * whole).round(), whole) - 1
    boxes = torch.cat([first, torch.maximum(first, last)], dim=1)  # left, top, right, bottom, inclusive
    pen = ImageDraw.Draw(canvas)
    for box, colour in zip(boxes.tolist(), colours, strict=True):
        if box[0] == box[0] and colour is not None:  # NaN: a token of no place, as newlines are
            pen.rectangle(box, fill=None if frame else colour, outline=colour, width=frame)
    return canvas


def format_method(method: dict[str, Any]) -> str:
    """A method's record as it would be written: `fastv(keep=0.25, layer=2) + var(p=0.4)`."""
    parts = [{"name": name, **options} for name, options in method.items() if isinstance(options, dict)] or [method]
    texts = []
    for part in parts:
        options = ", ".join(f"{k}={v}" for k, v in part.items() if k != "name")
        texts.append(f"{part.get('name')}({options})")
    return " + ".join(texts)


def span_dict(span: ImageSpan) -> dict[str, Any]:
    """A span in plain lists; NaN coordinates become None, which JSON has."""
    return {
        "image": span.image,
        "positions": span.positions.tolist(),
        "count": span.count,
        "grid": list(span.grid),
        "xy": [[None if v != v else round(v, 6) for v in pair] for pair in span.xy.tolist()],
        "kept": None if span.kept is None else span.kept.tolist(),
    }
