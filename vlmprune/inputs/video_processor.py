"""A clip's frames as a family's video processor makes them into pixels, on torch alone.

The video processors of transformers need torchvision, which over a CPU build of torch does not load. This one stands in
their place inside a processor, which does everything else. Shapes: T frames, H height, W width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import BatchFeature
from transformers.image_transforms import get_resize_output_image_size, get_size_with_aspect_ratio
from transformers.utils import PushToHubMixin
from transformers.video_utils import make_batched_metadata

from ..errors import VlmpruneError
from .images import as_rgb
from .video_pixels import cropped, multiple_of, patchified, resized, scaled

CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
LARGEST = 4096  # pixels of a side that SmolVLM resizes to at most


class _SavedPart(PushToHubMixin):
    """A part of a processor that needs no torchvision to be read and saved; its settings are its attributes."""

    model_input_names = ()
    _auto_class = None

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "settings":
            raise AttributeError(name)
        # Processors read such values (SmolVLM its `fps`) for images too; what is unset is None there.
        return {**self._defaults(), **self.settings}.get(name)

    def _defaults(self) -> dict[str, Any]:
        return {}

    def to_dict(self) -> dict[str, Any]:
        """As the part itself is saved."""
        return dict(self.settings)


class OwnVideoProcessor(_SavedPart):
    """Stands where a processor keeps its video part: settings as saved, and pixels without torchvision.

    Frames are not sampled here, so calls take `do_sample_frames=False` and the `video_metadata` of sampled frames. A
    kind whose pixels are not known here can be read and saved, and refuses videos.
    """

    def _defaults(self) -> dict[str, Any]:
        kind = KINDS.get(str(self.settings.get("video_processor_type")).removesuffix("Fast"))
        return dict(kind.defaults) if kind else {}

    def __call__(self, videos: Any, *, return_tensors: str | None = None, **options: Any) -> BatchFeature:
        """Pixels of videos, under the names and in the layout of the family's own processor.

        Args:
            videos: lists of PIL images, arrays [T, H, W, 3] or tensors [T, 3, H, W] of bytes; nested as conversations.
            options: settings for this call, `video_metadata` and `return_metadata`.
        Raises:
            VlmpruneError: a kind of processor that is not known here, or frames that it does not take.
        """
        name = str(self.settings.get("video_processor_type")).removesuffix("Fast")
        if (kind := KINDS.get(name)) is None:
            raise VlmpruneError(
                "This processor was loaded without its video part, because torchvision cannot be imported; install the "
                "torchvision that belongs to your torch, or pass images."
            )
        given = {key: value for key, value in options.items() if value is not None}
        if given.get("do_sample_frames", self.do_sample_frames):
            raise VlmpruneError(
                "Without torchvision this processor samples no frames; pass do_sample_frames=False and video_metadata "
                "of frames that are sampled already, or let ask() read the clip."
            )
        settings: dict[str, Any] = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255}
        settings |= {"do_normalize": True, **kind.defaults, **self.settings, **given}
        settings["size"] = _size_setting(name, settings, named="size" in {**self.settings, **given})
        pixels = [_pixels(video) for video in _flat(videos)]
        data = kind.make(pixels, kind.size, settings)
        if settings.get("return_metadata"):
            data["video_metadata"] = make_batched_metadata(pixels, given.get("video_metadata"))
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=["video_metadata"])


class NoImageProcessor(_SavedPart):
    """Stands where a processor keeps its image part, in families whose own one needs torchvision: it can be read and
    saved, and refuses images."""

    def fetch_images(self, images: Any) -> Any:
        """Refuse the images of a conversation.

        Raises:
            VlmpruneError: always.
        """
        raise VlmpruneError(
            "This processor was loaded without its image part, because torchvision cannot be imported; install the "
            "torchvision that belongs to your torch, or pass a video."
        )

    def __call__(self, *images: Any, **options: Any) -> Any:
        """As `fetch_images`."""
        return self.fetch_images(images)


Size = Callable[[int, int, int, dict[str, Any]], tuple[int, int]]  # of T frames of H x W under settings


@dataclass(frozen=True)
class VideoKind:
    """A class of video processor: its `defaults`, how it chooses a `size`, and how it makes pixels its output."""

    defaults: dict[str, Any]
    size: Size
    make: Callable[[list[Tensor], Size, dict[str, Any]], dict[str, Any]]


def _size_setting(name: str, settings: dict[str, Any], *, named: bool) -> dict[str, Any]:
    """`size`, also where older files say it in other words; `named`: whether they say it in this one."""
    size = dict(settings["size"])
    if name == "Qwen2VLVideoProcessor":
        size["shortest_edge"] = settings.get("min_pixels") or size.get("shortest_edge")
        size["longest_edge"] = settings.get("max_pixels") or size.get("longest_edge")
    if name == "SmolVLMVideoProcessor" and not named and settings.get("video_sampling"):
        size = dict(settings["video_sampling"]["video_size"])
    return size


def _flat(videos: Any) -> list[Any]:
    """Every video of nested lists, in order; a list of frames is one."""
    if isinstance(videos, np.ndarray | Tensor) and videos.ndim == 4:
        return [videos]
    if isinstance(videos, np.ndarray | Tensor) and videos.ndim == 5:
        return list(videos)
    if isinstance(videos, Sequence) and videos and isinstance(videos[0], Image.Image):
        return [videos]
    if isinstance(videos, Sequence) and videos and getattr(videos[0], "ndim", 0) == 3:
        return [videos]
    if isinstance(videos, list | tuple):
        return [one for some in videos for one in _flat(some)]
    raise VlmpruneError(f"An object of type {type(videos).__name__!r} is no video; pass its frames as PIL images.")


def _pixels(video: Any) -> Tensor:
    """A video's frames as bytes: [T, 3, H, W]."""
    if isinstance(video, Sequence):
        frames = [as_rgb(one) if isinstance(one, Image.Image) else one for one in video]
        video = np.stack([np.asarray(one) for one in frames])
    video = torch.as_tensor(video)
    return video if video.shape[1] == 3 and video.shape[-1] != 3 else video.permute(0, 3, 1, 2).contiguous()


# -- families whose pixels are patches --------------------------------------------------------------------------------


def qwen2_size(frames: int, height: int, width: int, settings: dict[str, Any]) -> tuple[int, int]:
    """Every frame by itself: Qwen2-VL and Qwen2.5-VL."""
    factor = settings["patch_size"] * settings["merge_size"]
    least, most = settings["size"]["shortest_edge"], settings["size"]["longest_edge"]
    if settings.get("cap_pixels_per_frame"):
        whole = int(settings["max_video_tokens"] * factor * factor * 0.9)
        most = max(min(most, whole * settings["temporal_patch_size"] // frames), int(least * 1.05))
    return multiple_of(height, width, factor, least, most)


def qwen3_size(frames: int, height: int, width: int, settings: dict[str, Any]) -> tuple[int, int]:
    """All frames together, counted in pairs: Qwen3-VL, Qwen3.5 and GLM-4V."""
    factor, pair = settings["patch_size"] * settings["merge_size"], settings["temporal_patch_size"]
    least, most = settings["size"]["shortest_edge"], settings["size"]["longest_edge"]
    frames = max(frames, pair)  # transformers refuses fewer; here the last one is shown again, as of an odd number
    if settings.get("cap_pixels_per_frame"):
        cap = settings["max_video_tokens"] * factor * factor
        most = frames * max(min(cap, most // frames), int(least * 1.05))
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    return multiple_of(height, width, factor, least, most, frames=frames, counted=round(frames / pair) * pair)


def patches(videos: list[Tensor], size: Size, settings: dict[str, Any]) -> dict[str, Any]:
    """One row a patch: `pixel_values_videos` [sum T*H*W, 3 * pair * patch * patch] and `video_grid_thw` [videos, 3]."""
    rows, grids = [], []
    for video in videos:
        if settings["do_resize"]:
            video = resized(video, size(*_measured(video), settings), settings["resample"])
        made, grid = patchified(scaled(video, settings), settings)
        rows.append(made)
        grids.append(grid)
    return {"pixel_values_videos": torch.cat(rows), "video_grid_thw": torch.tensor(grids)}


# -- families whose pixels are frames ---------------------------------------------------------------------------------


def given_size(frames: int, height: int, width: int, settings: dict[str, Any]) -> tuple[int, int]:
    """What the settings name: both sides, or one that the other follows."""
    size = settings["size"]
    short, long = size.get("shortest_edge"), size.get("longest_edge")
    if short and long:
        return get_size_with_aspect_ratio((height, width), short, long)
    if short:
        blank = np.zeros((3, height, width), np.uint8)
        return get_resize_output_image_size(blank, short, default_to_square=False, input_data_format="channels_first")
    if size.get("height") and size.get("width"):
        return size["height"], size["width"]
    raise VlmpruneError(f"size={size!r} says no size; give height and width, or shortest_edge.")


def whole_frames(videos: list[Tensor], size: Size, settings: dict[str, Any]) -> dict[str, Any]:
    """`pixel_values_videos` [videos, T, 3, H, W]."""
    made = []
    for video in videos:
        if settings["do_resize"]:
            video = resized(video, size(*_measured(video), settings), settings["resample"])
        if settings.get("do_center_crop"):
            video = cropped(video, settings["crop_size"])
        made.append(scaled(video, settings))
    if len({video.shape for video in made}) > 1:
        counts = ", ".join(str(len(video)) for video in made)
        raise VlmpruneError(f"Videos of one call need equal numbers of frames in this family, got {counts}; thin them.")
    return {"pixel_values_videos": torch.stack(made)}


def smolvlm_size(frames: int, height: int, width: int, settings: dict[str, Any]) -> tuple[int, int]:
    """The longer side as the settings say, the other one after it and even."""
    longest = settings["size"].get("longest_edge")
    if not longest:
        return given_size(frames, height, width, settings)
    longest, ratio = min(LARGEST, longest), width / height
    if width >= height:
        rows, cols = int(longest / ratio), longest
        rows += rows % 2
    else:
        rows, cols = longest, int(longest * ratio)
        cols += cols % 2
    return max(rows, 1), max(cols, 1)


def padded_frames(videos: list[Tensor], size: Size, settings: dict[str, Any]) -> dict[str, Any]:
    """SmolVLM: `pixel_values` [videos, most T, 3, H, W], resized twice, and which of their pixels are no padding."""
    most = max(map(len, videos))
    side = settings["max_image_size"]["longest_edge"]
    pixels, masks = [], []
    for video in videos:
        if settings["do_resize"]:
            video = resized(video, size(*_measured(video), settings), settings["resample"])
            video = resized(video, (side, side), settings["resample"])
        video = scaled(video, settings)
        there = torch.ones(len(video), *video.shape[-2:], dtype=torch.int64)
        missing = most - len(video)
        pixels.append(functional.pad(video, (0, 0, 0, 0, 0, 0, 0, missing)))
        masks.append(functional.pad(there, (0, 0, 0, 0, 0, missing)))
    made: dict[str, Any] = {"pixel_values": torch.stack(pixels)}
    return made | ({"pixel_attention_mask": torch.stack(masks)} if settings.get("do_pad", True) else {})


def _measured(video: Tensor) -> tuple[int, int, int]:
    return len(video), video.shape[-2], video.shape[-1]


_PATCHES = {"resample": 3, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
# Classes of transformers by name, with the values that stand in the class and so not in every saved file.
KINDS = {
    "Qwen2VLVideoProcessor": VideoKind(
        {**_PATCHES, **CLIP, "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768},
         "max_video_tokens": 128_000, "do_sample_frames": False},
        qwen2_size, patches,
    ),
    "Qwen3VLVideoProcessor": VideoKind(
        {**_PATCHES, **HALF, "patch_size": 16, "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768},
         "max_video_tokens": 768, "do_sample_frames": True, "fps": 2},
        qwen3_size, patches,
    ),
    "Glm4vVideoProcessor": VideoKind(
        {**_PATCHES, **CLIP, "size": {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 2 * 30000},
         "do_sample_frames": True, "fps": 2, "num_frames": 16},
        qwen3_size, patches,
    ),
    "LlavaOnevisionVideoProcessor": VideoKind(
        {**CLIP, "resample": 3, "size": {"height": 384, "width": 384}, "do_sample_frames": False},
        given_size, whole_frames,
    ),
    "LlavaNextVideoVideoProcessor": VideoKind(
        {**CLIP, "resample": 3, "size": {"shortest_edge": 224}, "do_center_crop": True,
         "crop_size": {"height": 224, "width": 224}, "do_sample_frames": False},
        given_size, whole_frames,
    ),
    "InternVLVideoProcessor": VideoKind(
        {**CLIP, "resample": 3, "size": {"height": 384, "width": 384}, "do_sample_frames": False},
        given_size, whole_frames,
    ),
    "PerceptionLMVideoProcessor": VideoKind(
        {**HALF, "resample": 3, "size": {"height": 448, "width": 448}, "do_center_crop": False},
        given_size, whole_frames,
    ),
    "SmolVLMVideoProcessor": VideoKind(
        {**HALF, "resample": 1, "size": {"longest_edge": 4 * 364}, "max_image_size": {"longest_edge": 364},
         "do_pad": True, "do_sample_frames": False},
        smolvlm_size, padded_frames,
    ),
}  # fmt: skip
