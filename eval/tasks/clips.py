"""Our procedural clips' test split with exact answers: eight frames, what happens in them; no file is read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import ClassVar

from demos.tiny_vlm.video.clips import FRAMES
from demos.tiny_vlm.video.questions import FAMILIES, clip_benchmark

from .base import Sample, Task
from .files import Folder
from .readers import Bad
from .scenes import APART
from .video_files import DrawnVideo


class Clips(Task):
    """Exact match over eight families of questions, which take turns; two of them a single frame answers."""

    name = "clips"
    by = "family"
    max_new_tokens = 8
    frames = FRAMES
    each: ClassVar[int] = 125

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        streams = [clip_benchmark(one, self.each, start=i * APART) for i, one in enumerate(FAMILIES)]
        for clip, question in chain.from_iterable(zip(*streams, strict=True)):
            name = f"{question.family}/{clip.seed}"
            about = {"family": question.family}
            yield Sample(name, question.text, DrawnVideo(clip.frames), question.answer, str(clip.seed), about)
