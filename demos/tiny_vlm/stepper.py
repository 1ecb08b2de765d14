"""Steps of a training that can be stopped at any time and goes on exactly where it was."""

from __future__ import annotations

import random
import signal
import time
from abc import ABC, abstractmethod

from torch import Tensor

from .common import State, log

WARMUP, DECAY = 100, 0.3  # steps; the last fraction of a run, over which the rate falls to zero
SAVE_EVERY, LOOK_EVERY = 600, 900  # seconds


class Stepper(ABC):
    """A stage of a training. What a step does follows from its number and the state alone."""

    state: State

    @abstractmethod
    def loss(self, rng: random.Random, progress: float) -> tuple[Tensor, float, int]:
        """Of one step: the loss, the number that is watched, how many images it took."""

    @abstractmethod
    def look(self, number: int) -> None:
        """Validation accuracy of the moving average into the log, over some questions a family."""

    def rate(self, total: int, start: int) -> float:
        """Learning rate of the next step of a run from step `start` to `total`."""
        step = self.state.meta["step"]
        fall = min(1.0, (total - step) / max(1.0, DECAY * (total - start)))
        return self.state.lr * fall * min(1.0, (step - start + 1) / WARMUP)

    def step(self, total: int, start: int = 0) -> float:
        """One step. Returns the number that is watched."""
        meta = self.state.meta
        loss, watched, images = self.loss(random.Random(meta["step"]), 1.0 if start else meta["step"] / total)
        loss.backward()
        self.state.step(self.rate(total, start))
        meta["images"] += images
        return watched

    def train(self, total: int, start: int = 0) -> bool:
        """Up to step `total`; False where it was asked to stop before."""
        stop: list[int] = []
        before = signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
        saved = looked = time.time()
        self.state.pause()
        watched: list[float] = []
        meta = self.state.meta
        while meta["step"] < total and not stop:
            watched.append(self.step(total, start))
            if meta["step"] % 50 == 0:
                log(self.state.folder, step=meta["step"], seconds=meta["seconds"], images=meta["images"],
                    watched=sum(watched) / len(watched), lr=self.rate(total, start))  # fmt: skip
                watched = []
            if time.time() - saved > SAVE_EVERY:
                self.state.save()
                saved = time.time()
                self.state.pause()
            if time.time() - looked > LOOK_EVERY:
                self.look(32)
                looked = time.time()
                self.state.pause()
        self.state.save()
        signal.signal(signal.SIGTERM, before)
        return not stop
