"""What is known of one call of a wrapped model while it runs, and what a thread keeps between its calls."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..accounting.build_report import carry
from ..accounting.report import Report
from ..hf.per_thread import PerThread
from ..methods.kv.base import StepSelector
from .clock import Clock
from .decode import Decode
from .output_rows import Asked
from .prefill import Prefill


@dataclass
class Call:
    """A `generate`, or a forward outside of one; of a `generate` within another, that one.

    `generating`: it is a `generate`; `begins`: none of its forwards has run yet. `prompts` and `prompt_length`: rows
    and columns of the ids that it was given (beams repeat the rows). `media`: what the vision stage was told
    of the images and of the videos, by kind; `encoding`: it runs. `frames`: which images are frames of a video.
    `brought`: ids and image of a call whose base model gets neither. `importance`: a guide's ranking
    of the prompt, per sample [V]. `complete`: adds to the prompt's report what only a special session knows.

    `own_cache`: the caller did not pass the cache. `cache`: of the last forward, until the call is over.
    `selector`: chooses what of the cache a step reads.

    Of the forward that runs now: `asked`, what the caller of the whole model wants; `arguments` of the base model, once
    a prompt may be located in them; `forward`, from there on.

    `made`: the report of the prompt that ran. `standing`: that of the prompt that filled the cache before.
    """

    clock: Clock
    generating: bool = False
    begins: bool = False
    prompts: int | None = None
    prompt_length: int | None = None
    media: dict[str, dict[str, Any]] = field(default_factory=dict)
    encoding: bool = False
    frames: Any = None
    brought: dict[str, Any] | None = None
    importance: list[Tensor] | None = None
    own_cache: bool = True
    cache: Any = None
    selector: StepSelector | None = None
    complete: Callable[[Report], None] | None = None
    asked: Asked | None = None
    arguments: dict[str, Any] | None = None
    forward: Prefill | Decode | None = None
    made: Report | None = None
    standing: Report | None = None

    @property
    def report(self) -> Report | None:
        return self.made or self.standing

    def repeats(self, rows: int) -> int:
        """How many of so many rows are one prompt's: beams, return sequences."""
        return rows // (self.prompts or rows)

    def end_step(self) -> None:
        """A step has run: what it read of the cache goes into the report."""
        if self.cache is not None and self.report is not None and self.report.cache is not None:
            self.report.cache.stepped(self.cache, {} if self.selector is None else self.selector.attended)

    def end_cache(self) -> None:
        """The call's last forward has run: what its cache holds goes into the report."""
        if self.cache is not None and self.report is not None and self.report.cache is not None:
            self.report.cache.ended(self.cache, {} if self.selector is None else self.selector.attended)
        self.cache = None


@dataclass
class _Thread:
    """What a thread keeps: its call, the report of the last one, whether the model runs as if it were not wrapped."""

    call: Call
    report: Report | None = None
    bypassed: bool = False


class Calls:
    """The calls of one wrapped model, of which every thread sees its own.

    Args:
        text_model: the language model, on whose device the clock waits.
    """

    def __init__(self, text_model: Any) -> None:
        self._text = text_model
        self._threads = PerThread(lambda: _Thread(self._idle()))
        self._latest: Report | None = None

    def _idle(self) -> Call:
        """The state of a thread between two calls."""
        return Call(Clock(self._text))

    @property
    def now(self) -> Call:
        """This thread's."""
        return self._threads.own.call

    def end(self) -> None:
        """This thread's call is over."""
        self._threads.own.call = self._idle()

    @contextmanager
    def generating(self, ids: Any, importance: list[Tensor] | None) -> Iterator[Call]:
        """Within the block this thread's call is a `generate` of a prompt with these ids.

        One within another, of a model that drafts for itself, leaves the other's state.
        """
        prompts, length = ids.shape if isinstance(ids, Tensor) else (None, None)
        thread, outer = self._threads.own, self.now
        shown = outer.media
        thread.call = Call(Clock(self._text), True, True, prompts, length, shown, importance=importance)
        thread.call.frames = outer.frames
        try:
            yield thread.call
        finally:
            thread.call = outer if outer.generating else self._idle()

    @property
    def bypassed(self) -> bool:
        """Whether this thread's calls of the model run as if it were not wrapped."""
        return self._threads.own.bypassed

    @contextmanager
    def bypass(self) -> Iterator[None]:
        """Within the block they do."""
        thread = self._threads.own
        before, thread.bypassed = thread.bypassed, True
        try:
            yield
        finally:
            thread.bypassed = before

    @property
    def report(self) -> Report | None:
        """Of this thread's last call; in a thread that made none, of any thread's."""
        return self._threads.own.report or self._latest

    def publish(self, out: Any, report: Report | None) -> Any:
        """The output of a call, which carries the call's report as `report`."""
        if report is not None:
            if not self.now.generating:  # else one within another
                self._threads.own.report = self._latest = report
            carry(out, report)
        return out
