"""An aggregator whose language model plays back replies, and a small world to aggregate in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from demos.tiny_vlm.vocabulary import CELLS
from vlmprune.captioner import CaptionConfig, StructuredAggregator
from vlmprune.captioner.divide import Box, Detection, Patch, quadrants
from vlmprune.captioner.hierarchy import Hierarchy
from vlmprune.captioner.llm import Messages
from vlmprune.captioner.text import BUNDLED_LEXICON, sentences

SIZE = (100, 100)
NAMES = ("top left", "top right", "bottom left", "bottom right")
Reply = str | dict[str, Any] | Callable[[dict[int, str]], Any]


@dataclass
class Scripted(StructuredAggregator):
    """Each task has its replies, the last of which repeats; a function gets {number: text} of the prompt."""

    replies: dict[str, list[Reply]] = field(default_factory=dict)
    asked: list[tuple[str, Messages]] = field(default_factory=list)

    def complete(self, messages: Messages, *, task: str, temperature: float, seed: int) -> str:
        self.asked.append((task, messages))
        queue = self.replies.get(task) or [HONEST[task]]
        reply = queue.pop(0) if len(queue) > 1 else queue[0]
        if callable(reply):
            reply = reply(lines(messages[1]["content"]))
        return reply if isinstance(reply, str) else json.dumps(reply)

    def prompts(self, task: str) -> list[str]:
        return [messages[1]["content"] for name, messages in self.asked if name == task]


def lines(prompt: str) -> dict[int, str]:
    """The numbered sentences of a prompt."""
    found = re.findall(r"^(\d+) \| (?:[^|\n]+ \| )?([^|\n]+)$", prompt, flags=re.MULTILINE)
    return {int(number): text for number, text in found}


def everything_unique(numbered: dict[int, str]) -> dict[str, Any]:
    return {"similar": [], "contradictory": [], "unique": list(numbered)}


def as_they_are(numbered: dict[int, str]) -> dict[str, Any]:
    return {"sentences": [{"text": text, "numbers": [n]} for n, text in numbered.items()]}


HONEST: dict[str, Reply] = {
    "group": everything_unique,
    "merge": as_they_are,
    "fuse": lambda numbered: {**as_they_are(numbered), "dropped": []},
    "objects": {"classes": []},
}


def read_places(text: str, size: tuple[int, int], scale: float) -> list[Detection]:
    """Boxes from sentences of the bundled pair's world: "a red circle at the top left" is a box in that ninth."""
    width, height = size[0] / 3, size[1] / 3
    found = []
    for sentence in sentences(text):
        said = BUNDLED_LEXICON.read(sentence).properties
        shape, place = sorted(said.get("shape", ())), sorted(said.get("position", ()))
        if shape and place:
            row, column = CELLS[place[0]]
            box = (column * width, row * height, (column + 1) * width, (row + 1) * height)
            found.append(Detection(box, 1.0, shape[0]))
    return found


def patches(*boxes: Box) -> list[Patch]:
    """The four quadrants, the first few with boxes of their own."""
    own = [*boxes, *quadrants(SIZE)[len(boxes) :]]
    return [Patch(name, box) for name, box in zip(NAMES, own, strict=True)]


@dataclass
class World:
    """Runs a hierarchy and remembers what was scored in which box; sentences with "wrong" in them do not fit."""

    aggregator: Any
    config: CaptionConfig = field(default_factory=CaptionConfig)
    scored: list[tuple[Box, str]] = field(default_factory=list)
    work: Hierarchy = field(init=False)

    def __post_init__(self) -> None:
        self.work = Hierarchy(SIZE, self.config, self.aggregator, self.score)

    def score(self, pairs: Sequence[tuple[Box, str]]) -> list[float]:
        self.scored += pairs
        return [0.1 if "wrong" in text else 0.9 if "best" in text else 0.6 for _, text in pairs]

    def run(self, whole: str, parts: Sequence[Patch], samples: Sequence[Sequence[str]]) -> list[str]:
        described = [replace(part, samples=tuple(own)) for part, own in zip(parts, samples, strict=True)]
        final, self.regions = self.work.run(whole, described)
        self.sentences = self.work.provenance.close(final)
        return self.work.provenance.texts(final)

    def find(self, text: str, **where: Any) -> list[Any]:
        return [s for s in self.sentences if s.text == text and all(getattr(s, k) == v for k, v in where.items())]
