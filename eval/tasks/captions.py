"""Long captions: DetailCaps-4870 (Dong et al., 2024) and DID-Bench; objects named against those of the references.

CAPTURE, DetailCaps' own metric, needs a scene-graph parser and is not computed; CHAIR and the F1 of objects are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..scorers.chair import chair, mentions, read_synonyms
from .base import Hub, Line, Sample, Task, each, mean
from .files import Folder
from .readers import Bad, BadRow, read_json_lines, read_text, text
from .source import HERE, Source

PROMPT = "Describe this image in detail."
REFERENCES = ("GT_Caption_GPT4O", "GT_Caption_GPT4V", "GT_Caption_Gemini15Pro")
SYNONYMS = "synonyms.txt"


class DetailCaps(Task):
    """F1 of the objects named, with CHAIR-i, CHAIR-s and recall; an object is in the image if a reference says so."""

    name = "detailcaps"
    main = "object_f1"
    max_new_tokens = 512
    files: ClassVar = {
        "*.parquet": "from foundation-multimodal-models/DetailCaps-4870",
        SYNONYMS: "from data/ of LisaAnne/Hallucination, the CHAIR authors' table",
    }
    hub: ClassVar[Hub | None] = Hub("foundation-multimodal-models/DetailCaps-4870", None, "test")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._synonyms: dict[str, str] = {}

    def samples(self, root: Path, source: Source = HERE) -> Iterator[Sample | Bad]:
        folder = Folder(root / self.name, self.name, self.files, on_hub=False)
        self._synonyms = read_synonyms(read_text(folder.file(SYNONYMS)))
        yield from super().samples(root, source)

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        references = [text(row, name) for name in REFERENCES if row.get(name)]
        yield self._sample(self.next_row(), references, row["image"])

    def _sample(self, name: str, references: list[str], image: Any) -> Sample:
        if not references:
            raise BadRow("there is no reference caption")
        objects = {named for caption in references for named in mentions(caption, self._synonyms)}
        return Sample(name, PROMPT, image, sorted(objects), name, {"objects": sorted(objects)})

    def read(self, sample: Sample, answer: str) -> list[str]:
        return mentions(answer, self._synonyms)

    def score(self, sample: Sample, parsed: Any) -> float:
        """F1 of one caption's objects; a caption that names none of an image without any is right."""
        above, below = _f1(parsed, sample.truth)
        return above / below if below else 1.0

    def units(self, lines: Sequence[Line]) -> dict[str, tuple[float, float]]:
        return {line["id"]: _f1(line["parsed"], line["meta"]["objects"]) for line in lines}

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        counts = [chair(line["parsed"], line["meta"]["objects"]) for line in lines]
        total = {name: sum(one[name] for one in counts) for name in counts[0]}
        above, below = (sum(part) for part in zip(*self.units(lines).values(), strict=True))
        return {
            "object_f1": above / below if below else 0.0,
            "chair_i": total["hallucinated"] / total["mentions"] if total["mentions"] else 0.0,
            "chair_s": mean(one["hallucinated"] > 0 for one in counts),
            "recall": total["recalled"] / total["objects"] if total["objects"] else 0.0,
            "words": mean(len(line["answer"].split()) for line in lines),
        }


class DIDBench(DetailCaps):
    """DID-Bench: detailed descriptions of COCO images as JSON lines."""

    name = "did"
    files: ClassVar = {
        "did_bench.jsonl": "DID-Bench as one JSON object a line: image, description",
        "images/": "its COCO images",
        SYNONYMS: DetailCaps.files[SYNONYMS],
    }
    hub = None

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        images = folder.folder("images")

        def build(row: Any) -> Iterable[Sample]:
            image = text(row, "image").rsplit("/", 1)[-1]
            yield self._sample(image, [text(row, "description")], images / image)

        yield from each(read_json_lines(folder.file("did_bench.jsonl")), build, "did_bench.jsonl")


def _f1(said: Sequence[str], truths: Sequence[str]) -> tuple[int, int]:
    named, there = set(said), set(truths)
    return 2 * len(named & there), len(named) + len(there)
