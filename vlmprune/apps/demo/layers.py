"""What one decoder layer of an answer sees, and what it looks at."""

from typing import Any

from PIL import Image

from ...inputs.video import Clip
from .draw import in_sheets, overlay
from .page import html
from .result import AskResult

LARGE, SMALL, NONE = "large model, this layer", "small model, all layers", "none"


def looked(run: AskResult, layer: int, heat: str) -> str:
    """The image with the tokens that one decoder layer sees and the heat map, and the heat map alone."""
    alive, visual = run.alive(layer), run.unpruned.report.visual_tokens[0]
    left = f"Decoder layer {layer} of 0 to {run.layers - 1} sees {alive} of {visual} visual tokens"
    if 0 < alive < visual and alive != run.pruned.report.kept_tokens[0]:
        left += "; bright are those that stay to the end"
    kept = run.span if alive < visual else None
    warmth, what = warm(run, layer, heat)
    both = drawn(run.image, kept=kept, heat=warmth)
    thing = "Frames of the clip" if isinstance(run.image, Clip) else "The image"
    cells = [html.figure(both, f"{thing}. {left}; the dropped ones are dark. {what}", f"{left}.")]
    if warmth is not None:
        alone = drawn(run.image, heat=warmth)
        cells.append(html.figure(alone, f"Heat map for the question {run.question!r}: {what}", what))
    return str(html.grid(cells))


def drawn(image: Image.Image | Clip, **marks: Any) -> Image.Image:
    """The image with its overlay, or the clip's frames side by side with theirs."""
    return in_sheets(image.frames, **marks) if isinstance(image, Clip) else overlay(image, **marks)


def warm(run: AskResult, layer: int, heat: str) -> tuple[Any, str]:
    """The heat map (a span and its values) and a sentence that explains it."""
    if heat == SMALL and run.small is not None:
        what = "Attention of the small model to the image, summed over its layers and its answer: what SGL ranks by."
        return (run.small.span, run.small.importance), what
    if heat == LARGE:
        if layer not in run.attention:
            return None, f"Layer {layer} of the large model does not look at the image."
        values = run.attention[layer][run.span.positions]
        part = float(run.attention[layer].sum())
        return (run.span, values), (
            f"Attention of the large model's last prompt token in layer {layer}, unpruned: {part:.0%} of it goes to "
            "the image."
        )
    return None, ""
