"""Images and clips of own questions: each is looked at once, before a model is loaded, and known by its content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .own_files import BadQuestionError


@dataclass(frozen=True)
class OwnClip:
    """A clip as `inputs.video.read_clip` takes it: a file or frames, and how many of them the model sees."""

    source: Any
    frames: int | None = None
    fps: float | None = None

    def opened(self) -> Any:
        """The frames, decoded."""
        from ..inputs.video import read_clip

        return read_clip(self.source, frames=self.frames, fps=self.fps)


@dataclass(frozen=True)
class Medium:
    """One image (a path or a PIL image) or an `OwnClip`.

    `digest`: of its content; questions that share one are not independent. `seen`: of what the model sees of it, so
    that two samplings of a clip differ.
    """

    shown: Any
    digest: str
    seen: str

    def opened(self) -> Any:
        """The image or clip, read from its file."""
        from ..inputs.chat import opened

        return self.shown.opened() if isinstance(self.shown, OwnClip) else opened(self.shown)


def is_clip(one: Medium) -> bool:
    """Whether it is a clip, given by its file or frames or read already."""
    from ..inputs.video import Clip

    return isinstance(one.shown, OwnClip | Clip)


class MediaChecks:
    """Looks at each image and clip once: whether it can be read, and a digest of its content.

    Args:
        folder: where relative paths start. frames: of each clip, unless its question says another number.
    """

    def __init__(self, folder: Path, frames: int | None = None) -> None:
        self.folder, self.frames = folder, frames
        self.clips_seen = 0
        self._known: dict[Any, Medium] = {}

    def images(self, given: Iterable[Any], frames: Any = None, fps: Any = None) -> Iterator[Medium]:
        """Images, and clips where a path ends as videos do.

        Raises:
            BadQuestionError: one cannot be read.
        """
        from ..inputs.video import is_video_path

        for one in given:
            if is_video_path(one):
                yield from self.clips(one, frames, fps)
            else:
                with in_a_question():
                    yield self._image(one)

    def clips(self, given: Any, frames: Any = None, fps: Any = None) -> Iterator[Medium]:
        """One or several clips, in the forms of `ask`'s `video`.

        Raises:
            BadQuestionError: one cannot be read, or `frames` or `fps` is no number of them.
        """
        from ..inputs.video import each_clip

        with in_a_question():
            for one in each_clip(given):
                self.clips_seen += 1
                # Of a file either says how many; frames that are there already have both.
                usual = self.frames if fps is None or not isinstance(one, str | os.PathLike) else None
                yield self._clip(one, usual if frames is None else frames, fps)

    def _image(self, image: Any) -> Medium:
        from ..inputs.chat import build_messages, opened

        if not isinstance(image, str | os.PathLike):
            build_messages(image, "?")  # refuses what is no image
            return in_memory(image)
        path = self._path(image)
        if path not in self._known:
            opened(path)
            digest = digest_of(path)
            self._known[path] = Medium(path, digest, digest)
        return self._known[path]

    def _clip(self, source: Any, frames: Any, fps: Any) -> Medium:
        if isinstance(source, list | tuple):
            source = [self._path(one) if isinstance(one, str | os.PathLike) else one for one in source]
        elif isinstance(source, str | os.PathLike):
            source = self._path(source)
        asked = f"{source}, {frames!r}, {fps!r}" if isinstance(source, Path) else None
        if asked is not None and asked in self._known:
            return self._known[asked]
        clip = OwnClip(source, frames, fps)
        read = clip.opened()  # refuses what is none
        digest = digest_of(source) if isinstance(source, Path) else in_memory(read).digest
        found = Medium(clip, digest, sha256(f"{digest}, {frames!r}, {fps!r}".encode()))
        if asked is not None:
            self._known[asked] = found
        return found

    def _path(self, path: str | os.PathLike[str]) -> Path:
        """A path relative to the folder as one that leads there; web addresses are refused."""
        from ..inputs.images import refuse_address

        refuse_address(path)
        return self.folder / Path(path).expanduser()


def in_memory(shown: Any) -> Medium:
    """An image or a clip that has been read."""
    from ..inputs.images import as_rgb

    images = [as_rgb(shown)] if isinstance(shown, Image.Image) else shown.frames
    # In RGB, since the same bytes are other colours under another palette.
    digest = sha256(b"".join(f"{one.size}".encode() + one.tobytes() for one in images))
    return Medium(shown, digest, digest)


@contextmanager
def in_a_question() -> Iterator[None]:
    """Whatever is wrong with a file is wrong with its question."""
    try:
        yield
    except BadQuestionError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # "~nobody" is a RuntimeError, "\0" a ValueError
        reason = str(error).rstrip(".")
        raise BadQuestionError(reason[:1].lower() + reason[1:]) from None


def sha256(content: bytes) -> str:
    """16 digits of a hash."""
    return hashlib.sha256(content).hexdigest()[:16]


def digest_of(path: Path) -> str:
    """16 digits of a file's hash; clips may be larger than the memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
