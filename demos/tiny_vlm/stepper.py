"""Steps of a training that can be stopped at any time and goes on exactly where it was, or that fills so many seconds.

A step's lesson follows from its number and the run's progress alone, never from the model, so other processes can make
the next ones while the model, on a CPU or a GPU, learns this one.
"""

from __future__ import annotations

import argparse
import signal
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .common import State, log

WARMUP, DECAY = 100, 0.3  # steps; the last fraction of a run, over which the rate falls to zero
SAVE_EVERY, LOOK_EVERY = 600, 900  # seconds
SAVE_OFTEN = 60  # the same of a run of so many seconds, which may be on a machine that is lent
LAST_LOOK = 200  # questions a family, at its end
AHEAD = 3  # lessons a worker is ahead
CPU = torch.device("cpu")

Lessons = Callable[[int, float], Any]  # of a step's number and the progress; can be pickled


@dataclass
class Schedule:
    """A run from step `start` to step `total`, or of so many `seconds` from now on. One that starts after step 0 goes
    on after another: all of it is last lessons."""

    start: int
    total: int = 0
    seconds: float = 0.0
    began: float = field(default_factory=lambda: time.monotonic())

    def spent(self, step: int) -> float:
        """The fraction of the run that lies behind."""
        if self.seconds:
            return (time.monotonic() - self.began) / self.seconds
        return (step - self.start) / max(1, self.total - self.start)

    def progress(self, step: int) -> float:
        """What the lessons go by, 0 to 1."""
        return 1.0 if self.start else min(1.0, self.spent(step))

    def rate(self, step: int) -> float:
        """What the learning rate is multiplied by: it warms up, stays, and falls to zero."""
        fall = min(1.0, max(0.0, 1 - self.spent(step)) / DECAY)
        return fall * min(1.0, (step - self.start + 1) / WARMUP)


def each_tensor(thing: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of nested dataclasses and tuples with every tensor and array in them changed."""
    if isinstance(thing, Tensor | np.ndarray):
        return change(thing)
    if isinstance(thing, tuple):
        return tuple(each_tensor(part, change) for part in thing)
    if is_dataclass(thing) and not isinstance(thing, type):
        return replace(thing, **{f.name: each_tensor(getattr(thing, f.name), change) for f in fields(thing)})
    return thing


def moved(thing: Any, device: torch.device) -> Any:
    """The same with tensors on a device; a GPU copies them while the CPU goes on."""

    def move(part: Tensor | np.ndarray) -> Tensor:
        here = torch.as_tensor(part)
        return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here.to(device)

    return each_tensor(thing, move)


def _packed_up(lessons: Lessons, step: int, progress: float) -> Any:
    """A lesson in arrays: they are sent through a pipe, tensors through shared memory, of which there may be little."""
    torch.set_num_threads(1)
    return each_tensor(lessons(step, progress), lambda tensor: tensor.contiguous().numpy())


def ahead(lessons: Lessons, progress: Callable[[int], float], first: int, workers: int) -> Generator[Any, None, None]:
    """Lessons of all steps from `first` on, in order; made by so many processes ahead of time, by this one if 0."""
    if not workers:
        yield from (lessons(step, progress(step)) for step in count(first))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        waiting = deque(
            pool.submit(_packed_up, lessons, first + i, progress(first + i)) for i in range(AHEAD * workers)
        )
        try:
            for step in count(first + len(waiting)):
                lesson = waiting.popleft().result()
                waiting.append(pool.submit(_packed_up, lessons, step, progress(step)))
                yield lesson
        finally:
            pool.shutdown(cancel_futures=True)


class Stepper(ABC):
    """A stage of a training. What a step does follows from its number and the state alone.

    `batch`: how many times the images of a step. `begin`: a moving average to start from where there is no state of the
    stage on disk.
    """

    state: State
    resumed: bool
    lessons: Lessons

    def __init__(self, *, device: torch.device = CPU, batch: int = 1, begin: Path | None = None) -> None:
        torch.manual_seed(0)  # the model is made next
        self.device, self.batch, self.begin = device, batch, begin

    def resume(self, state: State) -> None:
        """Go on from what the state has on disk, else from `begin`."""
        self.state, self.resumed = state, state.load()
        if self.begin and not self.resumed:
            state.begin_from(self.begin)

    @abstractmethod
    def loss(self, lesson: Any) -> tuple[Tensor, Any, int]:
        """Of a lesson on the model's device: the loss, the number that is watched, how many images it took."""

    @abstractmethod
    def look(self, number: int) -> None:
        """Validation accuracy of the moving average into the log, over some questions a family."""

    def step(self, total: int, start: int = 0) -> None:
        """One step of a run from step `start` to `total`."""
        plan, step = Schedule(start, total), self.state.meta["step"]
        self.learn(self.lessons(step, plan.progress(step)), plan)

    def learn(self, lesson: Any, plan: Schedule) -> Any:
        """One step on a lesson. Returns the number that is watched."""
        loss, watched, images = self.loss(moved(lesson, self.device))
        loss.backward()
        self.state.step(self.state.lr * plan.rate(self.state.meta["step"]))
        self.state.meta["images"] += images
        return watched

    def train(
        self, total: int = 0, start: int = 0, *, seconds: float = 0.0, workers: int = 0, average: Path | None = None
    ) -> bool:
        """Up to step `total`, or for so many seconds; False where it was asked to stop before.

        `average`: where to write the moving average each time that the state is saved.
        """
        stop: list[int] = []
        before = signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
        meta = self.state.meta
        plan = Schedule(meta["step"] if seconds else start, total, seconds)
        saved = looked = time.time()
        self.state.pause()
        watched: list[Any] = []
        with closing(ahead(self.lessons, plan.progress, meta["step"], workers)) as lessons:
            while plan.spent(meta["step"]) < 1 and not stop:
                watched.append(self.learn(next(lessons), plan))
                if meta["step"] % 50 == 0:
                    log(self.state.folder, step=meta["step"], seconds=meta["seconds"], images=meta["images"],
                        watched=sum(map(float, watched)) / len(watched),
                        lr=self.state.lr * plan.rate(meta["step"]))  # fmt: skip
                    watched = []
                if time.time() - saved > (SAVE_OFTEN if seconds else SAVE_EVERY):
                    self.save(average)
                    saved = time.time()
                if time.time() - looked > LOOK_EVERY:
                    self.look(32)
                    looked = time.time()
                    self.state.pause()
        self.save(average)
        signal.signal(signal.SIGTERM, before)
        if seconds and not stop:
            self.look(LAST_LOOK)
        return not stop

    def run(self, total: int, more: int, args: argparse.Namespace) -> None:
        """What the options of `add_options` ask for: so many seconds, or up to step `total` and `more` on top."""
        rest: dict[str, Any] = {"workers": args.workers, "average": args.average}
        if args.seconds:
            self.train(seconds=args.seconds, **rest)
        elif self.train(total, **rest) and more:
            self.train(total + more, start=total, **rest)

    def save(self, average: Path | None) -> None:
        """The state, and where asked for its moving average."""
        self.state.save()
        if average:
            self.state.save_average(average)
        self.state.pause()


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every training of this kind can be told."""
    parser.add_argument("--device", type=torch.device, default=CPU, help="cpu, or cuda")
    parser.add_argument("--batch", type=int, default=1, help="how many times the images of a step")
    parser.add_argument("--seconds", type=float, default=0.0, help="train for so long instead of so many steps")
    parser.add_argument("--workers", type=int, default=0, help="processes that make lessons ahead of time")
    parser.add_argument("--from", dest="begin", type=Path, help="a moving average to go on from, with last lessons")
    parser.add_argument("--average", type=Path, help="write the moving average there whenever the state is saved")
