"""Reading a clip: evenly spaced frames of a file, or frames that are there already, with the second each shows.

Files go through PyAV (`pip install vlmprune[video]`), animated GIF, WebP and PNG through Pillow. Every limit is checked
on what headers and packets say, before a frame is decoded. Shapes: T frames, H height, W width.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import VlmpruneError
from .images import ANIMATED, VIDEOS, as_rgb, read_image, refuse_address
from .video_file import ClipLimits, animation, video_file

FRAMES = 32  # of a file, unless asked otherwise
FPS = 2.0  # of frames that come without times; the rate at which Qwen samples
TIMELINE = 1000  # ticks a second for clips of a variable frame rate


@dataclass(frozen=True)
class Clip:
    """Frames of a video in order, all of one size, and where they come from.

    `frames`: RGB. `seconds`: of each frame from the clip's start, None where nothing says. `duration` in seconds, `fps`
    and `total` frames: of the whole clip, of which `indices` were taken. With a variable frame rate these three count
    milliseconds, so that index / fps stays the frame's second.
    """

    frames: list[Image.Image]
    seconds: list[float] | None
    fps: float
    duration: float
    total: int
    indices: list[int]

    @property
    def metadata(self) -> dict[str, Any]:
        """What transformers' processors want to know of frames that were sampled before."""
        return {
            "fps": self.fps,
            "total_num_frames": self.total,
            "frames_indices": list(self.indices),
            "duration": self.duration,
            "width": self.frames[0].width,
            "height": self.frames[0].height,
        }

    def thinned(self, frames: int) -> "Clip":
        """The same clip with at most that many evenly spaced frames."""
        at = evenly_spaced(np.arange(len(self.frames)), frames)
        seconds = None if self.seconds is None else [self.seconds[i] for i in at]
        taken = [self.frames[i] for i in at], seconds, [self.indices[i] for i in at]
        return replace(self, frames=taken[0], seconds=taken[1], indices=taken[2])

    def scaled(self, scale: float) -> "Clip":
        """The same clip, the sides of its frames `scale` times as long, 1 pixel at least."""
        width, height = (max(1, round(side * scale)) for side in self.frames[0].size)
        return replace(self, frames=[one.resize((width, height), Image.Resampling.BICUBIC) for one in self.frames])


def evenly_spaced(times: Any, count: int) -> list[int]:
    """Indices of the frames nearest to `count` evenly spaced moments from the first to the last of ascending `times`.

    A moment between two frames that are equally near takes the earlier one; a frame is taken once.
    """
    times = np.asarray(times, dtype=np.float64)
    if count >= len(times):
        return list(range(len(times)))
    moments = np.linspace(times[0], times[-1], count) if count > 1 else times[:1] + (times[-1] - times[0]) / 2
    right = np.searchsorted(times, moments).clip(1, len(times) - 1)
    nearer_left = moments - times[right - 1] <= times[right] - moments + 1e-9
    return sorted({int(i) for i in np.where(nearer_left, right - 1, right)})


def is_video_path(thing: Any) -> bool:
    """Whether it is a path that ends as video files do."""
    return isinstance(thing, str | os.PathLike) and Path(thing).suffix.lower() in VIDEOS


def check_sampling(frames: int | None, fps: float | None) -> None:
    """Refuse a number of frames or a rate that is none.

    Raises:
        VlmpruneError: anything but an int >= 1 and a number from a millionth to a million.
    """
    if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
        raise VlmpruneError(f"frames={frames!r:.60} is no number of frames; use an int >= 1.")
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, int | float) or not 1e-6 <= fps <= 1e6):
        raise VlmpruneError(f"fps={fps!r:.60} is no number of frames a second; use one above 0, at most a million.")


def _check_between(between: Any) -> None:
    """Refuse what is no part of a clip."""
    pair = isinstance(between, tuple | list) and len(between) == 2
    if not pair or not all(isinstance(at, int | float) for at in between) or not between[0] <= between[1]:
        raise VlmpruneError(f"between={between!r:.60} is no part of a clip; give the seconds from and to, as (1.5, 4).")


def read_clip(
    source: Any,
    *,
    frames: int | None = None,
    fps: float | None = None,
    between: tuple[float, float] | None = None,
    limits: ClipLimits | None = None,
) -> Clip:
    """A clip from a file or from frames.

    Args:
        source: the path of a video or of an animated GIF, WebP or PNG; a list of PIL images, arrays [H, W, 3] or paths
            of images; an array [T, H, W, 3] or tensor [T, 3, H, W] of bytes, or of floats in 0..1.
        frames: how many evenly spaced frames are taken at most; 32 of a file and all of a list unless given.
        fps: of a file, how many frames a second are taken, instead of `frames`; of a list, how many a second it has.
        between: of a file, the seconds from and to which frames are taken; of a part without a frame the nearest one.
    Raises:
        VlmpruneError: not a clip, a damaged one, or one beyond the limits; each in one sentence.
    Warns:
        UserWarning: nothing says when the frames were; they are taken for 2 a second.
    """
    check_sampling(frames, fps)
    limits, is_file = limits or ClipLimits(), isinstance(source, str | os.PathLike)
    if between is not None:
        _check_between(between)
        if not is_file:
            raise VlmpruneError(f"between={between!r:.60} is about a file; pass the frames of that part alone.")
    if isinstance(source, Clip):
        return source if frames is None else source.thinned(frames)
    if is_file:
        return _from_file(Path(source), frames, fps, between, limits)
    return _from_frames(source, frames, fps, limits)


def _from_file(
    path: Path, frames: int | None, fps: float | None, between: tuple[float, float] | None, limits: ClipLimits
) -> Clip:
    name = str(path)
    refuse_address(path, "video")
    if frames is not None and fps is not None:
        raise VlmpruneError(f"frames={frames} and fps={fps} both say how many frames to take of {name!r}; give one.")
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise VlmpruneError(f"There is no file {name!r}; give the path of a video.") from None
    except (OSError, ValueError) as error:  # a path with a null byte, or one too long
        raise VlmpruneError(f"{name!r:.80} cannot be opened ({error}); check the path.") from None
    if not path.is_file():
        raise VlmpruneError(f"{name!r} is not a file; give the path of a video.")
    if not size:
        raise VlmpruneError(f"{name!r} is empty, so it is no video; check the file.")
    if size > limits.bytes:
        raise VlmpruneError(f"{name!r} has {size:,} bytes, of which at most {limits.bytes:,} are read; cut it first.")
    with (animation if path.suffix.lower() in ANIMATED else video_file)(path, limits) as opened:
        times, duration = np.asarray(opened.times, dtype=np.float64), opened.duration
        if duration is None:
            duration = len(times) / FPS
            times = np.arange(len(times)) / FPS
            _warn_no_times(repr(name))
        inside = _inside(times, between)
        count = FRAMES if frames is None else frames
        if fps is not None:
            shown = duration if between is None else min(between[1], duration) - max(between[0], 0.0)
            count = max(1, round(shown * fps))
        _check_held(name, min(count, len(inside)), opened.width * opened.height, limits)
        taken = [int(inside[i]) for i in evenly_spaced(times[inside], count)]
        images = opened.decode(taken)
    return _timed(images, times, taken, duration, None if opened.duration is None else [float(times[i]) for i in taken])


def _inside(times: Any, between: tuple[float, float] | None) -> Any:
    """Indices of the frames that are shown between two seconds, or of the one nearest to their middle."""
    if between is None:
        return np.arange(len(times))
    start, end = between
    inside = np.flatnonzero((times >= start - 1e-6) & (times <= end + 1e-6))  # 12 tenths are more than 1.2
    return inside if len(inside) else np.array([int(np.abs(times - (start + end) / 2).argmin())])


def _timed(
    images: list[Image.Image], times: Any, taken: list[int], duration: float, seconds: list[float] | None
) -> Clip:
    """The clip with its metadata: counted in its own frames where these are evenly spaced, else in milliseconds."""
    steps = np.diff(times)
    if len(times) == 1 or steps.max() - steps.min() <= max(0.02 * steps.mean(), 2e-3):
        fps = round(len(times) / duration, 6) if duration > 0 else FPS
        return Clip(images, seconds, fps, len(times) / fps, len(times), taken)
    ticks = [round(float(times[i]) * TIMELINE) for i in taken]
    return Clip(images, seconds, float(TIMELINE), duration, max(round(duration * TIMELINE), ticks[-1] + 1), ticks)


def _from_frames(source: Any, frames: int | None, fps: float | None, limits: ClipLimits) -> Clip:
    if isinstance(source, np.ndarray | torch.Tensor):
        _check_shape(source)
    elif not isinstance(source, Sequence) or isinstance(source, bytes):
        raise VlmpruneError(
            f"An object of type {type(source).__name__!r} is no video; pass the path of one, a list of PIL images or "
            "an array of frames."
        )
    if not len(source):
        raise VlmpruneError("The video has no frames; pass a list of at least one image.")
    taken = list(range(len(source))) if frames is None else evenly_spaced(np.arange(len(source)), frames)
    _check_held("the video", len(taken), 1, limits)
    first = _frame(source[taken[0]])
    _check_held("the video", len(taken), first.width * first.height, limits)
    images = [first, *(_frame(source[i]) for i in taken[1:])]
    if sizes := {image.size for image in images} - {first.size}:
        other = " x ".join(map(str, sizes.pop()))
        raise VlmpruneError(
            f"The frames of a video have one size, and these have {first.width} x {first.height} and {other} pixels; "
            "resize them first, or pass them as images."
        )
    if fps is None:
        _warn_no_times("The video's list of frames")
        return Clip(images, None, FPS, len(source) / FPS, len(source), taken)
    return Clip(images, [i / fps for i in taken], float(fps), len(source) / fps, len(source), taken)


def _warn_no_times(what: str) -> None:
    warnings.warn(
        f"{what} does not say when its frames were, so {FPS:g} a second are assumed; pass the frames as video=[...] "
        "with fps=... .",
        stacklevel=6,
    )


def _check_held(name: str, count: int, pixels: int, limits: ClipLimits) -> None:
    if count > limits.frames:
        raise VlmpruneError(f"{count:,} frames of {name!r} are more than {limits.frames:,}; ask for fewer.")
    if count * pixels > limits.held_pixels:
        raise VlmpruneError(
            f"{count:,} frames of {name!r} have {count * pixels:,} pixels, more than {limits.held_pixels:,}; ask for "
            "fewer frames or make them smaller."
        )


def _frame(frame: Any) -> Image.Image:
    if isinstance(frame, Image.Image):
        if not frame.width or not frame.height:
            raise VlmpruneError(f"A frame of {frame.width} x {frame.height} pixels shows nothing; leave it out.")
        return as_rgb(frame)
    if isinstance(frame, str | os.PathLike):
        return read_image(Path(frame))
    if isinstance(frame, np.ndarray | torch.Tensor) and frame.ndim == 3:
        _check_shape(frame[None])
        return _array_frame(frame)
    shape = f" of shape {tuple(frame.shape)}" if hasattr(frame, "shape") else ""
    raise VlmpruneError(f"An object of type {type(frame).__name__!r}{shape} is no frame; pass PIL images.")


def _check_shape(array: Any) -> None:
    shape = tuple(array.shape)
    if len(shape) != 4 or 3 not in (shape[1], shape[3]) or not all(shape[1:]):
        raise VlmpruneError(f"A video of shape {shape} has no frames in RGB; pass [T, H, W, 3] or [T, 3, H, W].")


def _array_frame(frame: Any) -> Image.Image:
    """A PIL image of [H, W, 3] or [3, H, W], bytes or floats in 0..1."""
    if isinstance(frame, torch.Tensor):  # NumPy knows no bf16
        frame = (frame.float() if frame.is_floating_point() else frame).detach().cpu().numpy()
    values = frame if frame.shape[-1] == 3 else frame.transpose(1, 2, 0)
    if values.dtype != np.uint8:
        if not np.issubdtype(values.dtype, np.floating) or not _within(values):
            raise VlmpruneError(
                f"A video of {values.dtype} is not read unless all values lie in 0..1; pass bytes, 0 to 255."
            )
        values = np.rint(values * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(values))


def _within(values: Any) -> bool:
    return bool(np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1)


def clips(video: Any, *, frames: int | None = None, fps: float | None = None) -> list[Clip]:
    """One or several videos, each in a form of `read_clip`: a list of paths of videos, or of lists, is several."""
    return [read_clip(one, frames=frames, fps=fps) for one in each_clip(video)]


def each_clip(video: Any) -> list[Any]:
    """The videos of an argument that may be one or several, not yet read."""
    several = isinstance(video, list | tuple) and len(video) and all(map(_is_whole, video))
    return list(video) if several else [video]


def _is_whole(thing: Any) -> bool:
    """Whether a member of a list is a video of its own, not a frame."""
    if isinstance(thing, str | os.PathLike):
        return Path(thing).suffix.lower() in VIDEOS | {".gif"}
    return isinstance(thing, Clip | list | tuple) or (isinstance(thing, np.ndarray | torch.Tensor) and thing.ndim == 4)
