"""Work that the runs of a task have in common, done once a batch: pictures, the vision tower's pass, a guide's run.

Answers, tokens and FLOPs are what they are without it, since the same values go in. Seconds of shared work are measured
where it is done and charged to every run that would have had to do it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from vlmprune.api import plain_model
from vlmprune.families import family_of
from vlmprune.guide.runner import Guidance, guide_for
from vlmprune.guide.vision import VisionMemo
from vlmprune.harness.measure import Contender
from vlmprune.methods.base import Pruner
from vlmprune.methods.combined import parts_of
from vlmprune.methods.guided import Guided

_NOT_THE_GUIDES = ("keep", "layer", "positions", "exit_at")  # options that change nothing about its run


class Shared:
    """What is known about the batch at hand; the next one starts anew."""

    def __init__(self) -> None:
        self._batch: Hashable = None
        self._start()

    def _start(self) -> None:
        self._made: dict[Hashable, Any] = {}
        self._towers: dict[int, VisionMemo] = {}
        self._guides: dict[Hashable, dict[bool, Guidance]] = {}
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

    @contextmanager
    def running(self, contender: Contender) -> Iterator[Contender]:
        """The contender to run within the block, once, recorded, on pictures; its report is charged at the end."""
        plain = plain_model(contender.model)
        tower, known = family_of(plain).vision_tower(plain), self._towers.get(id(plain))
        method = contender.method
        pruner = next((part for part in parts_of(method) if isinstance(part, Pruner)), None)
        guided = isinstance(method, Guided)
        reading = pruner is not None and pruner.reads_vision  # the tower must run for what is read in it
        runner = contender
        guide: _Once | None = None
        if guided:
            guide = _Once(method, plain, self._guides)
            runner = copy.copy(contender)
            runner.method = guide.method
        # A guide's own run comes first, and its tower's time is part of the guide's.
        if reading or (known is None and guided):
            yield runner
        elif known is None:
            memo = VisionMemo()
            with memo.recording(tower):
                yield runner
            self._towers[id(plain)] = memo
            self._spent[id(plain)] = contender.reports[-1].seconds.get("vision", 0.0)
        else:
            before = known.hits
            with known.replaying(tower):
                yield runner
            # An oracle's guide is the model itself: its tower was answered from here when it ran.
            if known.hits > before or (guide is not None and guide.model is plain):
                _charge(contender, "vision", self._spent[id(plain)])
        if guide is not None:
            if guide.ran:
                self._spent[guide.name] = contender.reports[-1].seconds["guide"]
            _charge(contender, "guide", self._spent[guide.name])


def _charge(contender: Contender, stage: str, seconds: float) -> None:
    """Set a stage's seconds in the last report, and move its total by the difference."""
    spent = contender.reports[-1].seconds
    spent["total"] += seconds - spent.get(stage, 0.0)
    spent[stage] = seconds


class _Once:
    """`method`: the given guided method with a guide that runs once a batch; `ran`: whether it did; `model`: its."""

    def __init__(self, method: Guided, model: Any, found: dict[Hashable, dict[bool, Guidance]]) -> None:
        options = {k: str(v) for k, v in method.describe().items() if k not in _NOT_THE_GUIDES}
        self.name = tuple(sorted(options.items()))
        self.found = found.setdefault(self.name, {})
        self.ran = False
        guide = guide_for(method, model)
        self.model = guide.model
        settings = replace(method.guide_settings(), runner=self._stand_in(guide))
        self.method = copy.copy(method)
        # The dataclass is frozen, and a subclass made here would not be the same method in a report.
        object.__setattr__(self.method, "guide_settings", lambda: settings)

    def _stand_in(self, guide: Any) -> Any:
        run = guide.answer

        def answer(inputs: Any, settings: Any, *, whole: bool) -> Guidance:
            # Without a limit of steps the answer is the whole one anyway.
            key = whole and guide.steps is not None
            if key not in self.found:
                self.ran = True
                self.found[key] = run(inputs, settings, whole=whole)
            return self.found[key]

        guide.answer = answer
        return guide
