"""One call from an image to a caption: divide, describe, aggregate."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import VlmpruneError, checked
from ..inputs.images import as_rgb
from .aggregate import IMAGE, Aggregator
from .caption import Caption, tree_of
from .config import CaptionConfig
from .detect import Detector, SaliencyDetector
from .divide import Box, Detection, Patch, confident, hull, pixel_box, semantic_patch, spatial_patches, usable
from .folder import ALL, RECORDS, claim, image_paths, left_out, one_record, write_whole
from .hierarchy import Hierarchy
from .llm import StructuredAggregator
from .match import Matcher, VLMMatcher, checked_scores
from .prompts import BUNDLED
from .rules import WordAggregator
from .sampling import seed_of
from .text import BUNDLED_LEXICON, joined
from .vlm import CaptionCost, VisionModel

BUNDLED_CONFIG = CaptionConfig(
    # The pair's words for place and size hold for a canvas of 112 px: a crop blown up to it would turn small things
    # large and move everything. Its longest caption has 8 sentences of about 13 tokens.
    prompts=BUNDLED,
    view="in_place",
    max_new_tokens=128,
    batch_size=16,
    # What `python -m eval.captions.tune --scenes 48` picks on validation scenes: the least that costs no precision
    # against one caption (recall .92 against .66, precision .84 against .67).
    keep_score=0.3,
)


@dataclass(frozen=True)
class Described:
    """An image before aggregation: the caption of the whole, its patches with their samples, what to know of them."""

    whole: str
    patches: tuple[Patch, ...]
    notes: tuple[str, ...] = ()


class PatchCaptioner:
    """Patch Matters (arXiv 2504.06666): `captioner(image)` describes patches of an image and keeps what holds.

    Args:
        model: a loaded Hugging Face vision-language model, or what `vlmprune.wrap` returned: then every crop is pruned.
        processor: its processor; a wrapped model's own when None.
        detector: image -> `Detection`s; default `SaliencyDetector()`, which needs no weights and knows no classes.
        matcher: (image, sentence) pairs -> scores; default the model's own answer to "Is this true?".
        aggregator: groups and rewrites sentences; default the deterministic `WordAggregator`, which needs no language
            model.
        config: a `CaptionConfig`; default the paper's values, or for the bundled pair `BUNDLED_CONFIG`.
        seed: every sample has a generator of its own, seeded from this, the pixels, the patch and the sample's number.
    Raises:
        VlmpruneError: an argument does not fit.
    """

    @checked
    def __init__(
        self,
        model: Any,
        processor: Any = None,
        *,
        detector: Detector | None = None,
        matcher: Matcher | None = None,
        aggregator: Aggregator | None = None,
        config: CaptionConfig | None = None,
        seed: int = 0,
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise VlmpruneError(f"seed must be an int, got {seed!r}.")
        if config is not None and not isinstance(config, CaptionConfig):
            raise VlmpruneError(f"config must be a vlmprune.captioner.CaptionConfig, got {config!r:.80}.")
        self.vision = VisionModel(model, processor)
        bundled = is_bundled(self.vision.processor)
        self.config = config or (BUNDLED_CONFIG if bundled else CaptionConfig())
        self.vision.batch_size = self.config.batch_size
        self.seed = seed
        self.detector: Detector = detector or SaliencyDetector()
        self.matcher: Matcher = matcher or VLMMatcher(self.vision, self.config.prompts)
        self.aggregator: Aggregator = aggregator or (WordAggregator(BUNDLED_LEXICON) if bundled else WordAggregator())
        if isinstance(self.aggregator, StructuredAggregator):
            self.aggregator.seed = seed

    @checked
    def __call__(self, image: Image.Image) -> Caption:
        """The caption of an image.

        Raises:
            VlmpruneError: no image, or a detector, matcher or aggregator that gives what cannot be used.
        """
        image = checked_image(image)
        self.vision.cost = cost = CaptionCost()
        before = self.aggregator.calls
        (described,) = self.describe([image])
        caption = self.aggregate(image, described)
        cost.calls["aggregate"] = self.aggregator.calls - before
        cost.seconds["total"] = sum(cost.seconds.values())
        return caption

    @checked
    def map(
        self, images: str | Path | Iterable[str | Path], out: str | Path, *, progress: bool = True
    ) -> list[dict[str, Any]]:
        """Caption the images of a folder, or those at the paths, with one record each written into the folder `out`.

        Resumable: what is finished there is not done again. An image that fails gets a record with `error`, is tried
        again by the next run, and stops nothing.

        Returns:
            One record per path, in order: `path`, and what `Caption.to_dict` gives, or `error`.
        Raises:
            VlmpruneError: no images, or `out` holds captions made in another way.

        Of a folder the image files are captioned; sub-folders and other files are named in a warning.
        """
        from rich.console import Console
        from rich.progress import track

        paths, folder, screen = image_paths(images), Path(out), Console(stderr=True)
        if note := left_out(images):
            warnings.warn(note, stacklevel=2)
        claim(folder, self.identity())
        hidden = not (progress and screen.is_terminal)
        shown = track(paths, "captioning", console=screen, transient=True, disable=hidden, show_speed=False)
        records = [one_record(self, path, folder / RECORDS) for path in shown]
        write_whole(folder / ALL, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        return records

    # -- divide and describe -----------------------------------------------------------------------------------

    def describe(self, images: Sequence[Image.Image]) -> list[Described]:
        """Divide each image and describe it and its patches, with the crops of all images batched together.

        The samples of a patch share one encoding and one prefill of it. Every sample has its own randomness, so an
        image is described alike alone and among others. What it takes is added to `vision.cost`.
        """
        config, cost = self.config, self.vision.cost
        digests = [
            hashlib.sha256(f"{image.size}".encode() + np.asarray(image).tobytes()).hexdigest()[:16] for image in images
        ]
        with cost.clock("detect"):
            found = [usable(self.detector(image), image.size) for image in images]
        cost.calls["detect"] += len(images)
        with cost.clock("describe"):
            seeds = [[seed_of(self.seed, digest, IMAGE, 0)] for digest in digests]
            wholes = self.sample(images, config.prompts.describe, seeds, config.global_temperature)
            divided = [self._divide(*one) for one in zip(images, found, digests, strict=True)]
            views, seeds = [], []
            for image, digest, (patches, _) in zip(images, digests, divided, strict=True):
                views += [self.view(image, one.box, objects_of(patches)) for one in patches]
                seeds += [[seed_of(self.seed, digest, one.name, k) for k in range(config.samples)] for one in patches]
            samples = iter(self.sample(views, config.prompts.describe, seeds, config.temperature))
        return [
            Described(whole, tuple(replace(one, samples=tuple(next(samples))) for one in patches), notes)
            for (whole,), (patches, notes) in zip(wholes, divided, strict=True)
        ]

    def sample(
        self, images: Sequence[Image.Image], question: str, seeds: Sequence[Sequence[int]], temperature: float
    ) -> list[list[str]]:
        """What the describing model says of each image, once for each of its seeds."""
        self.vision.cost.calls["describe"] += sum(map(len, seeds))
        most = self.config.max_new_tokens
        return self.vision.describe(images, question, seeds=seeds, temperature=temperature, max_new_tokens=most)

    def _divide(
        self, image: Image.Image, found: Sequence[Detection], digest: str
    ) -> tuple[list[Patch], tuple[str, ...]]:
        """The patches of an image, and why there is no semantic one."""
        config = self.config
        named = confident(found, threshold=config.score_threshold, fallback=config.fallback_boxes)
        patches = spatial_patches(
            [one.box for one in named], image.size, merge_above=config.merge_iou, fraction=config.assign_share
        )
        if not config.semantic:
            return patches, ("no semantic patch: it is switched off",)
        classes = list(dict.fromkeys(one.label for one in named if one.label))
        if not classes:
            # No class can match, so the patch would be the whole image, which is never used.
            return patches, ("no semantic patch: the detector names no classes",)
        seeds = [[seed_of(self.seed, digest, "short", 0)]]
        ((short,),) = self.sample([image], config.prompts.short, seeds, config.global_temperature)
        spoken = set(self.aggregator.objects(short, classes))
        matched = [one.box for one in named if one.label in spoken]
        patch = semantic_patch(matched, image.size, most_iou=config.semantic_iou)
        if patch is None:
            return patches, ("no semantic patch: what the short caption names covers too much of the image",)
        return [*patches, patch], ()

    def view(self, image: Image.Image, box: Box, objects: Sequence[Box] = ()) -> Image.Image:
        """What the models see of a patch.

        Args:
            box: of the patch. objects: all object boxes of the image.
        Returns:
            The crop; or, `in_place`, the whole canvas with everything else painted in its middle colour, the pieces of
            objects that the box cuts as well: a piece would be described as another thing.
        """
        pixels = pixel_box(box, image.size)
        if self.config.view == "crop":
            return image.crop(pixels)
        red, green, blue = (int(v) for v in np.median(np.asarray(image).reshape(-1, 3), axis=0))
        canvas = Image.new("RGB", image.size, (red, green, blue))
        canvas.paste(image.crop(pixels), pixels[:2])
        cut = [one for one in objects if hull((one, box)) != box]
        for one in cut:
            canvas.paste((red, green, blue), pixel_box(one, image.size))
        for one in (one for one in objects if cut and one not in cut):  # whole ones, should a painted box touch them
            piece = pixel_box(one, image.size)
            canvas.paste(image.crop(piece), piece[:2])
        return canvas

    # -- aggregate ---------------------------------------------------------------------------------------------

    def aggregate(self, image: Image.Image, described: Described) -> Caption:
        """The caption of an image from its descriptions; what it takes is added to `vision.cost`."""
        cost, objects = self.vision.cost, objects_of(described.patches)

        def score(pairs: Sequence[tuple[Box, str]]) -> list[float]:
            cost.calls["match"] += len(pairs)
            with cost.clock("match"):
                return checked_scores(self.matcher, [(self.view(image, box, objects), text) for box, text in pairs])

        matching = cost.seconds["match"]
        with cost.clock("aggregate"):
            work = Hierarchy(image.size, self.config, self.aggregator, score)
            final, regions = work.run(described.whole, described.patches)
            sentences = work.provenance.close(final)
        cost.seconds["aggregate"] -= cost.seconds["match"] - matching
        tree, nodes = tree_of(described.whole, described.patches, regions, sentences)
        text = joined(work.provenance.texts(final))
        return Caption(text, tuple(sentences), nodes, tree, cost, described.notes, image)

    def identity(self) -> dict[str, Any]:
        """What decides the captions, JSON-serialisable; two captioners with the same one write the same."""
        return {
            "seed": self.seed,
            "config": asdict(self.config),
            "model": self.vision.identity(),
            "detector": identity_of(self.detector),
            "matcher": identity_of(self.matcher),
            "aggregator": identity_of(self.aggregator),
        }


def objects_of(patches: Sequence[Patch]) -> list[Box]:
    """Every object box of the patches once."""
    return list(dict.fromkeys(box for patch in patches for box in patch.objects))


def identity_of(component: Any) -> dict[str, Any]:
    """A component's name and the settings that decide its output: of a dataclass the fields that are compared."""
    name = getattr(component, "__qualname__", None) or type(component).__qualname__
    hidden = {one.name for one in fields(component) if not one.compare} if is_dataclass(component) else {"calls"}
    held = {k: v for k, v in getattr(component, "__dict__", {}).items() if k not in hidden}
    plain = {k: v for k, v in held.items() if isinstance(v, str | int | float | bool)}
    models = {k: getattr(getattr(v, "config", None), "_name_or_path", None) for k, v in held.items()}
    return {"name": name, **plain, **{k: v for k, v in models.items() if v is not None}}


def checked_image(image: Any) -> Image.Image:
    """The image in RGB.

    Raises:
        VlmpruneError: it is something else, or has no pixels.
    """
    if not isinstance(image, Image.Image):
        raise VlmpruneError(f"image must be a PIL image, got {image!r:.80}; pass paths to map().")
    if not all(image.size):
        raise VlmpruneError(f"The image of size {image.size} has no pixels; pass another one.")
    return as_rgb(image)


def is_bundled(processor: Any) -> bool:
    """Whether this is the processor of the bundled pair, by its vocabulary."""
    from ..tiny import known_words

    vocabulary: dict[str, int] = getattr(getattr(processor, "tokenizer", None), "get_vocab", dict)()
    return vocabulary.keys() == known_words()
