"""What to evaluate: everything the command line says, and the single runs it stands for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmprune.harness.baselines import EXIT_AT
from vlmprune.harness.models import Models, make, options_of
from vlmprune.harness.parse import number

from .frames import FEWER, ONE, SMALLER
from .tasks.registry import TASKS

SMALL, BLIND = "small-alone", "blind"
SGL_EXIT = "sgl+exit"  # SGL whose small model answers alone where it is sure enough
DIVERSE = "sgl+diversity=1"  # guided diversity; the exponent was chosen on validation scenes
DIVERSE_EXIT = f"{DIVERSE}+exit"
# What makes the guide cheaper: it reads the prompt alone, and drops visual tokens of its own too.
SHORTCUTS = ("sgl+guide_steps=1", "sgl+guide_steps=1+guide_keep=0.25")
ROWS = {
    SMALL: "the small model unpruned: what a pruned large model has to beat",
    BLIND: "the large model without the image: what the words alone give",
    FEWER: "of videos, the large model with as many evenly spaced frames as have the tokens of the budget",
    SMALLER: "of videos, the large model with all frames, so small that they have the tokens of the budget",
    ONE: "of videos, the large model with the frame in the middle",
}
BASELINES = ("none", SMALL, BLIND, "random", "uniform", "downsample")  # what every table needs
VIDEO_BASELINES = (FEWER, SMALLER, ONE)  # what a table about videos needs too


@dataclass(frozen=True)
class Run:
    """One task under one method at one budget."""

    task: str
    method: str
    keep: str | None
    layer: str | None

    @property
    def name(self) -> str:
        """The run's folder below the output folder."""
        parts = [
            self.method,
            *([f"keep{self.keep}"] if self.keep else []),
            *([f"layer{self.layer}"] if self.layer else []),
        ]
        return f"{self.task}/{re.sub(r'[^A-Za-z0-9.+_-]', '_', '-'.join(parts))}"


@dataclass(frozen=True)
class Settings:
    """The command line, as plain values: it travels to other processes and machines."""

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    keeps: tuple[str, ...]
    out: str
    data: str = "data"
    model: str | None = None
    guide: str | None = None
    layer: str | None = None
    seed: int = 0
    limit: int | None = None
    batch_size: int = 1
    max_new_tokens: int | None = None
    exit_at: float = EXIT_AT
    boxes: str = "auto"
    share: bool = False
    hub: bool = False
    dataset: str | None = None
    config: str | None = None
    split: str | None = None
    frames: int | None = None
    reading: str = "official"
    strict: bool = False
    trust_remote_code: bool = False

    @property
    def where(self) -> dict[str, Any]:
        """Where the data is, as `load` takes it."""
        return {"hub": self.hub, "dataset": self.dataset, "config": self.config, "split": self.split}

    def runs(self) -> Iterator[Run]:
        """Every task x method x budget; a method without a budget runs once, one about videos on videos."""
        for task in self.tasks:
            for method in dict.fromkeys(self.methods):
                if method in VIDEO_BASELINES and TASKS[task].frames is None:
                    continue
                takes = set() if method in ROWS else options_of(registered(method))
                takes |= {"keep"} if method in (FEWER, SMALLER) else set()
                layer = self.layer if "layer" in takes else None
                for keep in dict.fromkeys(self.keeps) if "keep" in takes else (None,):
                    yield Run(task, method, keep, layer)

    def method(self, run: Run, models: Models | None) -> Any:
        """The run's method object; without `models` only what can be checked before loading any."""
        if run.method in ROWS:
            if run.keep is not None:
                make("uniform", keep=number(run.keep, "--keep"))  # refuses what is no budget
            return make("none")
        takes = options_of(registered(run.method))
        given: dict[str, Any] = {"seed": self.seed} if "seed" in takes else {}
        given |= extras(run.method, self.exit_at)
        if run.keep is not None:
            given["keep"] = number(run.keep, "--keep")
        if run.layer is not None:
            given["layer"] = number(run.layer, "--layer")
        return make(registered(run.method), models, **given)

    def folder(self, run: Run) -> Path:
        return Path(self.out) / run.name

    def finished(self) -> bool:
        """Whether every run has its summary; where not, another process has questions left."""
        return all((self.folder(run) / "summary.json").exists() for run in self.runs())


def canonical(keep: str) -> str:
    """A budget as it is written everywhere, so that .25 and 0.250 are one: `1` and `1.0` stay two.

    Raises:
        VlmpruneError: it is no number.
    """
    return str(number(keep, "--keep"))


def registered(method: str) -> str:
    """The registered name of a run's method: options may stand behind it, as in `sgl+diversity=1+exit`."""
    return method.partition("+")[0]


def extras(method: str, exit_at: float) -> dict[str, Any]:
    """The options behind a run's method; `exit` stands for `exit_at`."""
    out: dict[str, Any] = {}
    for part in method.split("+")[1:]:
        name, _, value = part.partition("=")
        out |= {"exit_at": exit_at} if part == "exit" else {name: plain(value, name)}
    return out


def plain(value: str, name: str) -> bool | float:
    """The value of an option.

    Raises:
        VlmpruneError: neither true, false nor a number.
    """
    words = {"true": True, "false": False}
    return words[value] if value in words else number(value, f"--method ...+{name}:")
