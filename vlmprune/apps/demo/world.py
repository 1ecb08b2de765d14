"""What the bundled pair was not trained on: words that its tokenizer lacks, and photographs."""

import numpy as np
from PIL import Image

from ...harness.models import BUNDLED_LARGE, BUNDLED_SMALL, Models
from ...inputs.chat import unknown_words
from ...inputs.images import as_rgb
from ...inputs.video import Clip

COMMAND = "vlmprune demo --model ORG/NAME"
SIDE = 112  # pixels of the pair's images; larger ones are looked at in this size
GREY = 2.0  # mean difference between channels; of 1,150 scenes the greyest has 2.3
# A neighbour's colour differs by so much: more than rounding makes, less than the edge of a thing.
STEP = (3, 40)
STEPS = 0.068  # fraction of neighbours; above it are 0.7 % of 1,500 scenes and none of the bundled images
FEWEST = 100  # neighbours to judge by


def is_photograph(image: Image.Image) -> bool:
    """Whether an image cannot be one of the pair's scenes.

    Their backgrounds have one colour or fade slowly, and their noise and stripes change all channels alike: from pixel
    to pixel the differences between channels stay equal, except at the edges of things. In photographs they never do,
    and in those without colour they are zero. Clipped pixels are left out, since clipping changes the differences.
    """
    small = as_rgb(image)
    small.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.float32)
    colour = pixels[..., :2] - pixels[..., 1:]
    if np.abs(colour).mean() < GREY:
        return True
    whole = np.asarray(((pixels > 3) & (pixels < 252)).all(axis=-1))
    across = np.abs(np.diff(colour, axis=1)).max(axis=-1)[whole[:, 1:] & whole[:, :-1]]
    down = np.abs(np.diff(colour, axis=0)).max(axis=-1)[whole[1:] & whole[:-1]]
    steps = np.concatenate([across, down])
    return len(steps) >= FEWEST and float(((steps >= STEP[0]) & (steps < STEP[1])).mean()) > STEPS


def outside(models: Models, image: Image.Image | Clip, question: str) -> str:
    """Why the answers of the bundled pair mean nothing here; "" where they may, and for any other model."""
    if models.name != BUNDLED_LARGE:
        return ""
    reasons = [unknown_words(models.processor, question)]
    if isinstance(image, Image.Image) and is_photograph(image):
        reasons.append("This looks like a photograph, and the bundled models know drawn shapes alone.")
    return " ".join(filter(None, reasons))


def is_pair(models: Models) -> bool:
    """Whether these are the bundled models, both."""
    return models.name == BUNDLED_LARGE and models.small_name == BUNDLED_SMALL
