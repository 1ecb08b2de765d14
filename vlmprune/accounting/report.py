"""What happened in the last call: tokens, FLOPs, cache, seconds, and an image of what was kept.

Shapes: B batch, V visual tokens of a sample, K kept, L decoder layers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..errors import VlmpruneError
from ..flow.frames import frame_of
from ..flow.locate import ImageSpan, check_places
from ..flow.select import evenly
from ..flow.transfer import cell_sizes
from ..inputs.images import as_rgb
from .cache_report import CacheReport
from .scores import sureness
from .sheet import BARS, GROUND, INK, LABEL, bars_over_time, on_a_sheet, small, when


@dataclass
class Report:
    """Of the last `forward` or `generate`; one entry a prompt, not a beam.

    `visual_tokens`, `kept_tokens`: V and K of each sample. `kept`: per sample [K], ascending indices into its visual
    tokens; for merging methods the index whose position the merged token takes. `images`: per sample the span of each
    image and video, its grid and coordinates. `layer_lengths`: prefill length (max over the batch) seen by each decoder
    layer; of a cross-attention layer, its visual keys. `lm_tokens`: visual tokens entering the language model,
    `layer_avg_tokens`: averaged over its layers (those that see visual tokens), `retention`: that average / V; means
    over the batch. `prefill_flops`: of the language model, counted from shapes, summed over the batch. `kv_bytes`:
    cache after prefill. `*_full`: the same unpruned. `exited`, `confidence`, `consistency`: of guided methods, per
    sample whether the guide answered alone, and how sure it was; a sample that exited has nothing kept. `guide_flops`:
    of the guide's language model. `adapter`: the family's, "declared" or "generic". `rows`: per sample, ascending, the
    positions of `input_ids` that the last layers saw; a pruned forward's logits are right-aligned, so
    `logits[b, -len(rows[b]):]` belongs to them (an output's own `rows` say the same of that output, and where labels
    or training lined the logits up, of all positions). `seconds`: the stages that took place. `notes`: what a reader
    should know, for example that there was nothing to prune. `cache`: of a method that acts on the cache.
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
    adapter: str = "declared"
    rows: list[Tensor] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    cache: CacheReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable; coordinates that do not exist are null."""
        record = dict(vars(self))
        record["kept"] = [kept.tolist() for kept in self.kept]
        record["rows"] = [rows.tolist() for rows in self.rows]
        record["images"] = [[span_dict(span) for span in spans] for spans in self.images]
        record["seconds"] = dict(self.seconds)
        record["notes"] = list(self.notes)
        record["cache"] = None if self.cache is None else self.cache.to_dict()
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
            *self._videos(),
            ("  entering the LM", f"{self.lm_tokens:.1f} a sample"),
            ("  layer average", f"{self.layer_avg_tokens:.1f} a sample ({100 * self.retention:.1f} %)"),
            ("prefill GFLOPs", f"{self.prefill_flops / 1e9:.3f} ({flops} of the full prompt's)"),
            ("KV cache MB", f"{self.kv_bytes / 1e6:.3f} ({cache})"),
            *([] if self.cache is None else self.cache.rows()),
            *guided,
            ("seconds", ", ".join(f"{k} {v:.3f}" for k, v in self.seconds.items()) or "-"),
            *(("note", note) for note in self.notes),
        ]
        return "\n".join(f"{name:<20}{value}" for name, value in rows)

    def _videos(self) -> list[tuple[str, str]]:
        """A line about the frames of the videos, where there are any."""
        each = [span.frames_kept for spans in self.images for span in spans if span.kind == "video"]
        counts = [count for own in each for count in own]
        if not counts:
            return []
        empty = sum(not count for count in counts)
        return [("  of video frames", f"{min(counts)} to {max(counts)} of each of {len(counts)}, {empty} keep none")]

    def overlay(self, image: Any, *, sample: int = 0, number: int = 0) -> Image.Image:
        """The image with the dropped parts dimmed, RGB, of the same size; of a video a sheet of up to 16 of its frames.

        Args:
            image: the PIL image that was asked about; of a video the list of its frames, in order.
            sample, number: which sample of the batch, which of its images and videos.
        Raises:
            VlmpruneError: there is no such sample or image, `image` is not a PIL image or a list of them where it is a
                video, or it is not known where its tokens lie.
        """
        frames = list(image) if isinstance(image, list | tuple) else [image]
        if not frames or not all(isinstance(one, Image.Image) for one in frames):
            raise VlmpruneError(f"overlay() needs the PIL image that was asked about, got {image!r:.80}.")
        try:
            span = self.images[sample][number]
        except IndexError:
            raise VlmpruneError(
                f"The last call had no image {number} in sample {sample}; it had "
                f"{[len(spans) for spans in self.images]} images in its samples."
            ) from None
        check_places(span, "overlay()")
        t = span.grid[0] if span.kind == "video" else 1
        if len(frames) < t or len(frames) > t == 1:
            raise VlmpruneError(
                f"overlay() got {len(frames)} frames of {span.kind} {number} of sample {sample}, of which the model saw"
                f" {t}; give all that it was given."
            )
        return dimmed(frames[0], span) if span.kind == "image" else contact_sheet(frames, span)


def dimmed(image: Image.Image, span: ImageSpan) -> Image.Image:
    """The image with what `span` has dropped of it dimmed, RGB, of the same size."""
    bright = as_rgb(image)
    dim = Image.blend(bright, Image.new("RGB", bright.size, (18, 18, 24)), 0.78)
    mask = painted(Image.new("L", bright.size), span, [255 if stay else None for stay in span.stays.tolist()])
    return Image.composite(bright, dim, mask)


def contact_sheet(frames: Sequence[Image.Image], span: ImageSpan) -> Image.Image:
    """Evenly spaced frames of a video, dimmed as in `dimmed`, with their time and how many tokens of each were kept;
    below them a bar for each of all t frames, as high as the fraction of its tokens that was kept.

    Args:
        frames: of the whole video in order; where they are more than the t that the model sees, as some models merge
            neighbours, each of the t is shown by the one in its middle.
    """
    shown = on_a_sheet(span.grid[0])
    given = evenly(span.grid[0], len(frames)).tolist()
    sheet, scaled = small([frames[given[at]] for at in shown])
    parts, kept = [frame_of(span, at) for at in shown], span.frames_kept
    labels = [f"{when(at, span.seconds)}: {kept[at]} of {part.count}" for at, part in zip(shown, parts, strict=True)]
    frames_shown = sheet.drawn([dimmed(one, part) for one, part in zip(scaled, parts, strict=True)], labels)
    width, height = frames_shown.size
    whole = Image.new("RGB", (width, height + BARS + LABEL), GROUND)
    whole.paste(frames_shown)
    pen = ImageDraw.Draw(whole)
    bars_over_time(pen, span, (2, height + 4, width - 2, height + BARS))
    ends = ["first frame", "last frame"] if span.seconds is None else [when(at, span.seconds) for at in (0, -1)]
    pen.text((2, height + BARS), ends[0], fill=INK)
    pen.text((width - 2 - pen.textlength(ends[1]), height + BARS), ends[1], fill=INK)
    return whole


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
    """A span in plain lists; NaN coordinates become None, which JSON has.

    Of a video, whose tokens are many, only where its positions begin (they are `count` in a row), not where each lies:
    `grid` says that; and how many tokens of each frame were kept.
    """
    kept = None if span.kept is None else span.kept.tolist()
    whole = {"image": span.image, "kind": span.kind, "count": span.count, "grid": list(span.grid), "kept": kept}
    if span.frame is not None:
        seconds = None if span.seconds is None else list(span.seconds)
        start = int(span.positions[0]) if span.count else 0
        return whole | {"start": start, "seconds": seconds, "frames_kept": span.frames_kept}
    xy = [[None if v != v else round(v, 6) for v in pair] for pair in span.xy.tolist()]
    return whole | {"positions": span.positions.tolist(), "xy": xy}
