"""Where the seconds of one call go; a GPU is waited for whenever the clock is read."""

import time
from typing import Any

import torch


class Clock:
    """The stages of one call: the vision tower's passes, and forwards of the base model, which may hold such passes.

    `vision`: seconds of the tower so far.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.vision = 0.0
        self._vision_started = self._forward_started = self._vision_before = 0.0

    def now(self) -> float:
        """Seconds since some fixed time, once the device has done what it was given."""
        device = next(self._model.parameters()).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def begin_vision(self) -> None:
        self._vision_started = self.now()

    def end_vision(self) -> None:
        self.vision += self.now() - self._vision_started

    def begin_forward(self) -> None:
        self._forward_started, self._vision_before = self.now(), self.vision

    def forward(self) -> float:
        """Seconds since the base model's forward began."""
        return self.now() - self._forward_started

    def prompt(self) -> dict[str, float]:
        """The stages of a prompt whose forward just ended."""
        vision = {"vision": self.vision} if self.vision else {}
        return {**vision, "prefill": self.forward() - (self.vision - self._vision_before)}
