"""What is inside a video file: when its frames are, and the pictures of some of them.

Opening one reads headers and packets and checks the limits; only `decode` decodes.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image, UnidentifiedImageError

from ..errors import VlmpruneError
from .images import as_rgb

# Of FFmpeg's 300 readers those of files that cameras and the web make. Playlists (HLS, DASH, concat) open other files.
CONTAINERS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,h264,hevc,ivf,obu,av1,m4v,mjpeg,gif,apng,nut,mxf"
UNKNOWN = "{!r} is no video that can be read here; give an MP4, MOV, MKV, WebM, AVI, GIF, WebP or APNG file."
PILLOW = ("GIF", "WEBP", "PNG")
NO_DELAY = 0.1  # seconds of a frame whose delay is 0, as browsers show it


@dataclass(frozen=True)
class ClipLimits:
    """What is read at most; more is refused before anything is decoded.

    `bytes` of a file, its `seconds`, `pixels` of one of its frames and times its seconds (`pixel_seconds`: an hour of
    1920 x 1080 fits, an hour of 4K does not), `packets` in the file; `frames` that are passed on, and their pixels
    together (`held_pixels`, 3 bytes each).
    """

    bytes: int = 4 * 10**9
    seconds: float = 4 * 3600.0
    pixels: int = 4096 * 2304
    pixel_seconds: float = 1.0e10
    packets: int = 1_000_000
    frames: int = 1024
    held_pixels: int = 10**9


class OpenVideo(ABC):
    """A file whose limits hold: `times` in seconds of all its frames, ascending from 0, its `duration` (None where
    nothing says when frames are), and how large they are."""

    times: list[float]
    duration: float | None
    width: int
    height: int

    @abstractmethod
    def decode(self, taken: Sequence[int]) -> list[Image.Image]:
        """The frames at these ascending indices, as a person sees them.

        Raises:
            VlmpruneError: one of them is damaged.
        """


def check_limits(name: str, limits: ClipLimits, *, size: tuple[int, int], seconds: float, frames: int = 0) -> None:
    """Refuse a clip by its header, or as soon as it has more frames than are read.

    Raises:
        VlmpruneError: it is beyond a limit.
    """
    width, height = size
    if width * height > limits.pixels:
        raise VlmpruneError(
            f"The frames of {name!r} have {width} x {height} pixels, of which at most {limits.pixels:,} are decoded; "
            "make it smaller first."
        )
    if seconds > limits.seconds:
        raise VlmpruneError(f"{name!r} takes {seconds:,.0f} s, more than {limits.seconds:,.0f}; cut it first.")
    if seconds * width * height > limits.pixel_seconds:
        raise VlmpruneError(
            f"{name!r} takes {seconds:,.0f} s of {width} x {height} pixels, more than is decoded here (at most "
            f"{limits.pixel_seconds / (width * height):,.0f} s of that size); cut it or make it smaller first."
        )
    if frames > limits.packets:
        raise VlmpruneError(f"{name!r} has more than {limits.packets:,} frames; cut it first.")


# -- PyAV -------------------------------------------------------------------------------------------------------------


@contextmanager
def video_file(path: Path, limits: ClipLimits) -> Iterator[OpenVideo]:
    """A file of one of `CONTAINERS`.

    Raises:
        VlmpruneError: PyAV is missing, it is no video, it is damaged, or it is beyond the limits.
    """
    name = str(path)
    try:
        import av  # costs 0.1 s, and only files need it
    except ImportError:
        raise VlmpruneError(
            f"Reading {name!r} needs PyAV; install it with pip install 'vlmprune[video]', or pass the frames as a list."
        ) from None
    try:
        with opened_by(av, name) as opened:
            yield PyAVVideo(av, opened, name, limits)
    except VlmpruneError:
        raise
    except (av.error.FFmpegError, OSError, ValueError) as error:
        said = " ".join(str(error).split())[:120]
        raise VlmpruneError(f"{name!r} cannot be read as a video ({said}); check the file.") from None


def opened_by(av: Any, name: str) -> Any:
    """A container; no other file is opened with it.

    Raises:
        VlmpruneError: FFmpeg finds none of `CONTAINERS` in the file.
    """
    try:
        return av.open(name, container_options={"format_whitelist": CONTAINERS, "protocol_whitelist": "file"})
    except (av.error.InvalidDataError, av.error.ArgumentError, av.error.EOFError):
        with open(name, "rb") as file:
            if file.read(8)[4:] == b"ftyp":  # an MP4, whose index stands at its end
                raise VlmpruneError(f"{name!r} has no index: it is damaged or was not copied whole.") from None
        raise VlmpruneError(UNKNOWN.format(name)) from None


class PyAVVideo(OpenVideo):
    """The first video stream of a container."""

    def __init__(self, av: Any, opened: Any, name: str, limits: ClipLimits) -> None:
        self.av, self.opened, self.name = av, opened, name
        covers = opened.streams.video  # an audio file's cover is a stream of one picture
        streams = [one for one in covers if not one.disposition & type(one.disposition).attached_pic]
        if not streams:
            raise VlmpruneError(f"{name!r} has no video stream; give a file that shows something.")
        self.stream = streams[0]
        context = self.stream.codec_context
        self.width, self.height = context.width, context.height
        self.base = float(self.stream.time_base or 0)
        check_limits(name, limits, size=(self.width, self.height), seconds=self._declared())
        self.stream.thread_type = "AUTO"
        self.packets = self._packets(limits)
        self._check_whole()
        stamps = [at for at, _ in self.packets]
        self.stamped = bool(self.base) and None not in stamps and len(set(stamps)) == len(stamps)
        if not self.stamped:  # a bare stream: frames in order, and nothing says when they are
            self.times, self.duration = [float(i) for i in range(len(stamps))], None
            return
        self.packets.sort()
        first = self.packets[0][0]
        self.times = [(at - first) * self.base for at, _ in self.packets]
        self.duration = self.times[-1] + self._last_step()
        check_limits(name, limits, size=(self.width, self.height), seconds=self.duration)
        if len(opened.streams) == 1 and self.duration < 0.9 * self._declared() - 1:  # else the sound may be longer
            self._cut_off(f"{self.duration:,.0f} of its {self._declared():,.0f} s")

    def _declared(self) -> float:
        """Seconds by the header, 0 where it does not say."""
        if self.stream.duration and self.base:
            return float(self.stream.duration) * self.base
        return (self.opened.duration or 0) / 1e6

    def _packets(self, limits: ClipLimits) -> list[tuple[Any, bool]]:
        """Time stamp, and whether decoding can start there, of every frame; in the order of the file."""
        found: list[tuple[Any, bool]] = []
        self.last = 0
        for packet in self.opened.demux(self.stream):
            if packet.size and not packet.is_discard:
                found.append((packet.pts, packet.is_keyframe))
                self.last = packet.duration or self.last
                check_limits(self.name, limits, size=(0, 0), seconds=0, frames=len(found))
        if not found:
            raise VlmpruneError(f"{self.name!r} has no frames; check the file.")
        return found

    def _check_whole(self) -> None:
        """An MP4's index knows how many frames there are, also where the file was cut off."""
        if "mp4" in self.opened.format.name and len(self.packets) < 0.9 * self.stream.frames:
            self._cut_off(f"{len(self.packets):,} of its {self.stream.frames:,} frames")

    def _cut_off(self, where: str) -> NoReturn:
        raise VlmpruneError(f"{self.name!r} ends after {where}; it is damaged or was not copied whole.")

    def _last_step(self) -> float:
        if len(self.times) > 1:
            return float(self.times[-1] / (len(self.times) - 1))
        rate = self.stream.average_rate
        return self.last * self.base or (1 / float(rate) if rate else 0.0)

    def decode(self, taken: Sequence[int]) -> list[Image.Image]:
        if not self.stamped:
            return self._in_order(taken)
        try:
            return self._sought(taken)
        except (LookupError, self.av.error.FFmpegError):  # seeking landed behind the frame, or something is damaged
            return self._in_order(taken)

    def _sought(self, taken: Sequence[int]) -> list[Image.Image]:
        """Only the groups of frames that hold one of those asked for are decoded.

        Raises:
            LookupError: a frame did not come out whole.
        """
        starts = [i for i, (_, key) in enumerate(self.packets) if key]
        images: list[Image.Image] = []
        frames: Iterator[Any] = iter(())
        at = -1  # the key frame from which on `frames` is being decoded
        for index in taken:
            stamp = self.packets[index][0]
            start = max((i for i in starts if i <= index), default=-1)
            if start < 0:
                raise LookupError
            if start > at:
                self.opened.seek(self.packets[start][0], stream=self.stream, backward=True)
                frames, at = self.opened.decode(self.stream), start
            found = next((frame for frame in frames if frame.pts is not None and frame.pts >= stamp), None)
            if found is None or found.pts != stamp or found.is_corrupt:
                raise LookupError
            images.append(seen(found))
        return images

    def _in_order(self, taken: Sequence[int]) -> list[Image.Image]:
        wanted, images = set(taken), []
        with opened_by(self.av, self.name) as again:  # a bare stream cannot be wound back
            try:
                for number, frame in enumerate(again.decode(again.streams[self.stream.index])):
                    if number in wanted:
                        if frame.is_corrupt:
                            break
                        images.append(seen(frame))
                    if len(images) == len(taken):
                        return images
            except self.av.error.FFmpegError:
                pass
        at = taken[len(images)]
        when = f" at {self.times[at]:.1f} s" if self.stamped else ""
        raise VlmpruneError(f"Frame {at} of {self.name!r}{when} is damaged; repair the file or pass other frames.")


def seen(frame: Any) -> Image.Image:
    """A decoded frame in RGB, turned as a phone's display matrix says."""
    image = frame.to_image()
    turns = (round(frame.rotation / 90) % 4) if frame.rotation else 0
    turned = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
    return image.transpose(turned[turns]) if turns else image


# -- Pillow -----------------------------------------------------------------------------------------------------------


@contextmanager
def animation(path: Path, limits: ClipLimits) -> Iterator[OpenVideo]:
    """An animated GIF, WebP or PNG; one without animation is a clip of one frame.

    Raises:
        VlmpruneError: it is none, it is damaged, or it is beyond the limits.
    """
    name = str(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limits are ours
            with Image.open(path, formats=PILLOW) as opened:
                yield PillowVideo(opened, name, limits)
    except VlmpruneError:
        raise
    except UnidentifiedImageError:
        raise VlmpruneError(UNKNOWN.format(name)) from None
    except Exception as error:  # whatever a damaged file makes decoders raise
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise VlmpruneError(f"{name!r} cannot be read as a video ({said}); check the file.") from None


class PillowVideo(OpenVideo):
    """An animation that Pillow opens; its frames are differences, so all before the last one taken are unpacked."""

    def __init__(self, opened: Any, name: str, limits: ClipLimits) -> None:
        self.opened = opened
        self.width, self.height = opened.size
        count = getattr(opened, "n_frames", 1)
        # Nothing but the frames themselves says how long they stay; a GIF's least delay in use is 0.02 s.
        check_limits(name, limits, size=opened.size, seconds=count * 0.02, frames=count)
        self.times, end = [], 0.0
        for number in range(count):
            opened.seek(number)
            if opened.format == "WEBP":  # its delays come with the pixels
                opened.load()
            self.times.append(end)
            end += (opened.info.get("duration") or 0) / 1000 or NO_DELAY
        self.duration = end
        check_limits(name, limits, size=opened.size, seconds=end)

    def decode(self, taken: Sequence[int]) -> list[Image.Image]:
        images = []
        for number in taken:
            self.opened.seek(number)
            images.append(as_rgb(self.opened.copy()))
        return images
