"""Where objects are: a default without weights, a Hugging Face detector, or the describing model's own answers."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..inputs.images import as_rgb
from .divide import Detection
from .prompts import Prompts
from .sampling import seed_of
from .vlm import VisionModel

Detector = Callable[[Image.Image], Sequence[Detection]]  # boxes in pixels of the image, in any order
# An answer, the image's size and the scale of coordinates in the answer -> boxes.
Reader = Callable[[str, tuple[int, int], float], list[Detection]]


@dataclass(frozen=True)
class SaliencyDetector:
    """What stands out from a smooth background: no weights, no classes.

    The background is a quadratic surface in CIELAB colour fitted to the pixels it explains; pixels far from it (Otsu's
    threshold, at least `least_contrast`) form regions. A region's score is 1 - exp(-contrast / 15), so one of contrast
    6 passes the captioner's 0.3. Made for images with a fairly even background; a busy photograph gives one big box.

    `longest` side in pixels that it works at; `least_area` of a region as a fraction of the image; `most` regions.
    """

    longest: int = 320
    least_contrast: float = 6.0
    least_area: float = 0.003
    most: int = 50

    def __call__(self, image: Image.Image) -> list[Detection]:
        """Boxes around what stands out, the highest score first."""
        from skimage.color import rgb2lab
        from skimage.filters import gaussian, threshold_otsu
        from skimage.measure import label, regionprops

        shrink = min(1.0, self.longest / max(image.size))
        small = as_rgb(image).resize([max(1, round(side * shrink)) for side in image.size], Image.Resampling.BOX)
        lab = gaussian(rgb2lab(np.asarray(small)), sigma=0.8, channel_axis=-1)
        contrast = np.linalg.norm(lab - background(lab), axis=-1)
        if contrast.max() < self.least_contrast:
            return []
        mask = contrast > max(self.least_contrast, 0.6 * float(threshold_otsu(contrast)))
        to_x, to_y = image.width / small.width, image.height / small.height
        found = []
        for region in regionprops(label(mask, connectivity=1), intensity_image=contrast):
            if region.area >= self.least_area * mask.size:
                y0, x0, y1, x1 = region.bbox
                score = 1 - float(np.exp(-region.intensity_mean / 15))
                found.append(Detection((x0 * to_x, y0 * to_y, x1 * to_x, y1 * to_y), score))
        return sorted(found, key=lambda one: -one.score)[: self.most]


def background(lab: np.ndarray) -> np.ndarray:
    """A quadratic surface through the pixels that lie near it, [H, W, 3]; objects drop out in a few rounds."""
    height, width = lab.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1).reshape(-1, 6)
    colours = lab.reshape(-1, 3)
    # Started from the median colour, not from a fit that large objects have already bent.
    surface = np.broadcast_to(np.median(colours, axis=0), colours.shape)
    for _ in range(6):
        far = np.linalg.norm(colours - surface, axis=-1)
        near = far <= max(np.quantile(far, 0.4) * 2.0, 3.0)
        surface = terms @ np.linalg.lstsq(terms[near], colours[near], rcond=None)[0]
    return surface.reshape(lab.shape)


@dataclass(frozen=True)
class HFDetector:
    """A Hugging Face object detector (DETR and its kin): model and image processor.

    Every box comes back with its score, so that the captioner's own threshold and its two-best rule decide.
    """

    model: Any
    processor: Any

    def __call__(self, image: Image.Image) -> list[Detection]:
        """Boxes with class names."""
        inputs = self.processor(images=as_rgb(image), return_tensors="pt").to(self.model.device)
        with torch.no_grad():
            outputs = self.model(**inputs)
        sizes = torch.tensor([[image.height, image.width]])
        (found,) = self.processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        names = self.model.config.id2label
        boxes, scores, labels = (found[key].tolist() for key in ("boxes", "scores", "labels"))
        return [
            Detection((x0, y0, x1, y1), score, str(names.get(label, label)))
            for (x0, y0, x1, y1), score, label in zip(boxes, scores, labels, strict=True)
        ]


def read_json_boxes(text: str, size: tuple[int, int], scale: float) -> list[Detection]:
    """Boxes from a JSON list of `{"label", "box" | "bbox" | "bbox_2d"}` in an answer; what is malformed is left out."""
    match = re.search(r"\[.*\]", text, flags=re.DOTALL)
    try:
        entries = json.loads(match.group()) if match else []
    except ValueError:
        entries = []
    found = []
    for entry in entries:
        box = next((entry[k] for k in ("box", "bbox", "bbox_2d") if k in entry), 0) if isinstance(entry, dict) else 0
        if isinstance(box, list) and [type(v) in (int, float) for v in box] == [True] * 4:  # a bool is no number here
            x0, y0, x1, y1 = (v / scale * side for v, side in zip(box, size * 2, strict=True))
            found.append(Detection((x0, y0, x1, y1), 1.0, str(entry.get("label", ""))))
    return found


@dataclass(frozen=True)
class VLMDetector:
    """Ask the describing model itself where objects are; `read` turns its answer into boxes.

    `scale` is what the prompt says coordinates run to. An answer without a readable box means no detections.
    """

    vision: VisionModel
    prompts: Prompts = field(default_factory=Prompts)
    read: Reader = read_json_boxes
    scale: float = 1000
    max_new_tokens: int = 512

    def __call__(self, image: Image.Image) -> list[Detection]:
        """Boxes the model names, each with score 1."""
        question = self.prompts.boxes.format(scale=f"{self.scale:g}")
        ((answer,),) = self.vision.describe(
            [image], question, seeds=[[seed_of("boxes")]], temperature=0.0, max_new_tokens=self.max_new_tokens
        )
        return self.read(answer, image.size, self.scale)
