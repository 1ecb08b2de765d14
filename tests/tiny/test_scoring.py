"""What a model card's numbers are made of: the same answers that the stock models give when asked one by one."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from demos.tiny_vlm.photo_scenes import make_photo_scene
from demos.tiny_vlm.questions import FAMILIES, benchmark
from demos.tiny_vlm.scoring import COUNTING, ROWS, measure, scene_questions
from demos.tiny_vlm.second import evaluate
from vlmprune.inputs.processor import load_processor
from vlmprune.tiny import load_tiny


@pytest.mark.parametrize("name", ["large", "small"])
def test_questions_of_a_scene_at_once_are_answered_as_one_by_one(name: str) -> None:
    """The second pair: towers and grids differ, and the processor makes its own pixels."""
    folder = evaluate.WEIGHTS / name
    model, processor = evaluate.loaded(folder), load_processor(str(folder))
    hits: dict[str, list[bool]] = defaultdict(list)
    for family in FAMILIES:
        for scene, question in benchmark(family, 2, "validation", make=make_photo_scene):
            text = f"<image>{question.text}<ans>"
            inputs = processor(images=scene.image(), text=text, return_tensors="pt")
            with torch.no_grad():
                ids = model.generate(**inputs, max_new_tokens=80)[0, inputs["input_ids"].shape[1] :]
            said = processor.decode(ids, skip_special_tokens=True).strip()
            hits[family].append(said.replace(" ", "") == question.answer.lower().replace(" ", ""))
    found = measure({name: model}, scene_questions(2, "validation", make_photo_scene))
    assert {family: row[name] for family, row in found.items() if family != COUNTING} == {
        family: sum(right) / len(right) for family, right in hits.items()
    }


def test_high_counts_are_a_row_of_their_own_and_counts_too() -> None:
    large, small, _ = load_tiny()
    asked = scene_questions(12, "validation")
    found = measure({"large": large, "small": small}, asked)
    high = [q for _, row in asked for q in row if q.family == "count" and int(q.answer) >= 3]
    assert 1 < len(high) == found[COUNTING]["questions"] < found["count"]["questions"] == 12
    assert set(found) == set(ROWS)
    for row in found.values():
        assert row["difference"]["difference"] == pytest.approx(row["large"] - row["small"])
        assert row["difference"]["low"] <= row["difference"]["difference"] <= row["difference"]["high"]


def test_what_the_card_says_of_counting_follows_from_the_interval() -> None:
    """Ten points ahead is reached only where the interval lies above zero."""

    def said(difference: float, low: float) -> str:
        gap = {"difference": difference, "low": low, "high": 2 * difference - low}
        row = {"questions": 9, "chance": 0.3, "difference": gap}
        row |= {f"{name}{end}": 0.5 for name in ("large", "small", "control") for end in ("", "_standard_error")}
        record = {"worlds": {"plain": {"count": row, COUNTING: row}}}
        assert evaluate.table(record).count("| plain |") == 2
        return evaluate.findings(record)

    assert "**reached**" in said(0.11, 0.01)
    assert "**missed**" in said(0.11, -0.01) and "**missed**" in said(0.09, 0.05)
