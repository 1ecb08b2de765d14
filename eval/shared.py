"""Work that the runs of a task have in common, done once a batch: images, the vision tower's pass, a guide's run.

Answers, tokens and FLOPs are what they are without it, since the same values go in. Seconds of shared work are measured
where it is done and charged to every run that would have had to do it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

from vlmprune.accounting.report import Report
from vlmprune.api import unwrap_peft
from vlmprune.families import family_of
from vlmprune.guide.runner import GuideOutput, guide_for
from vlmprune.guide.vision import VisionMemo
from vlmprune.harness.measure import MethodRun
from vlmprune.methods.base import Pruner
from vlmprune.methods.combined import parts_of
from vlmprune.methods.guided import Guided

# Options that change nothing about the guide's run.
_NOT_THE_GUIDES = ("keep", "layer", "positions", "exit_at", "diversity", "top_p", "floor")


class BatchCache:
    """What is known about the current batch; the next one starts empty."""

    def __init__(self) -> None:
        self._batch: Hashable = None
        self._start()

    def _start(self) -> None:
        self._made: dict[Hashable, Any] = {}
        self._towers: dict[int, VisionMemo] = {}
        self._guides: dict[Hashable, dict[bool, GuideOutput]] = {}
        self._spent: dict[Hashable, float] = {}

    def batch(self, name: Hashable) -> None:
        """Say which batch comes next."""
        if name != self._batch:
            self._batch = name
            self._start()

    def once(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once a batch."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def answer(
        self, run: MethodRun, images: Sequence[Any], questions: Sequence[str], **generation: Any
    ) -> tuple[list[str], Report]:
        """`run.answer` on this batch's images; the report is charged with the shared work that the run relies on."""
        plain = unwrap_peft(run.model)
        tower, known = family_of(plain).vision_tower(plain), self._towers.get(id(plain))
        pruner = next((part for part in parts_of(run.method) if isinstance(part, Pruner)), None)
        reading = pruner is not None and pruner.reads_vision  # the tower must run for what is read in it
        guide: _Once | None = None
        if isinstance(run.method, Guided):
            guide = _Once(run.method, plain, self._guides)
            run = replace(run, method=guide.method)
        # A guide's own run comes first, and its tower's time is part of the guide's.
        if reading or (known is None and guide is not None):
            answers, report = run.answer(images, questions, **generation)
        elif known is None:
            memo = VisionMemo()
            with memo.recording(tower):
                answers, report = run.answer(images, questions, **generation)
            self._towers[id(plain)] = memo
            self._spent[id(plain)] = report.seconds.get("vision", 0.0)
        else:
            before = known.hits
            with known.replaying(tower):
                answers, report = run.answer(images, questions, **generation)
            # An oracle's guide is the model itself: its tower was answered from here when it ran.
            if known.hits > before or (guide is not None and guide.model is plain):
                _charge(report, "vision", self._spent[id(plain)])
        if guide is not None:
            if guide.ran:
                self._spent[guide.name] = report.seconds["guide"]
            _charge(report, "guide", self._spent[guide.name])
        return answers, report


def _charge(report: Report, stage: str, seconds: float) -> None:
    """Set a stage's seconds in a report, and move its total by the difference."""
    spent = report.seconds
    spent["total"] += seconds - spent.get(stage, 0.0)
    spent[stage] = seconds


class _Once:
    """`method`: the given guided method with a guide that runs once a batch; `ran`: whether it did; `model`: its."""

    def __init__(self, method: Guided, model: Any, found: dict[Hashable, dict[bool, GuideOutput]]) -> None:
        options = {k: str(v) for k, v in method.describe().items() if k not in _NOT_THE_GUIDES}
        self.name = tuple(sorted(options.items()))
        self.found = found.setdefault(self.name, {})
        self.ran = False
        guide = guide_for(method, model)
        self.model = guide.model
        self.method = copy.copy(method)
        # The dataclass is frozen, and a subclass made here would not be the same method in a report.
        object.__setattr__(self.method, "runner", self._stand_in(guide))

    def _stand_in(self, guide: Any) -> Any:
        run = guide.answer

        def answer(inputs: Any, settings: Any, *, whole: bool) -> GuideOutput:
            # Without a limit of steps the answer is the whole one anyway.
            key = whole and guide.steps is not None
            if key not in self.found:
                self.ran = True
                self.found[key] = run(inputs, settings, whole=whole)
            return self.found[key]

        guide.answer = answer
        return guide
