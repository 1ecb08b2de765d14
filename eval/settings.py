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

SMALL, BLIND = "small-alone", "blind"
SGL_EXIT = "sgl+exit"  # SGL whose small model answers alone where it is sure enough
DIVERSE = "sgl+diversity=1"  # guided diversity; the exponent was chosen on validation scenes
ROWS = {
    SMALL: "the small model unpruned: what a pruned large model has to beat",
    BLIND: "the large model without the image: what the words alone give",
}
BASELINES = ("none", SMALL, BLIND, "random", "uniform", "downsample")  # what every table needs


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
    strict: bool = False
    trust_remote_code: bool = False

    def runs(self) -> Iterator[Run]:
        """Every task x method x budget; a method without a budget runs once."""
        for task in self.tasks:
            for method in dict.fromkeys(self.methods):
                takes = set() if method in ROWS else options_of(registered(method))
                layer = self.layer if "layer" in takes else None
                for keep in dict.fromkeys(self.keeps) if "keep" in takes else (None,):
                    yield Run(task, method, keep, layer)

    def method(self, run: Run, models: Models | None) -> Any:
        """The run's method object; without `models` only what can be checked before loading any."""
        if run.method in ROWS:
            return make("none")
        takes = options_of(registered(run.method))
        given: dict[str, Any] = {"seed": self.seed} if "seed" in takes else {}
        for extra in run.method.split("+")[1:]:
            name, _, value = extra.partition("=")
            given |= {"exit_at": self.exit_at} if extra == "exit" else {name: plain(value, extra)}
        if run.keep is not None:
            given["keep"] = number(run.keep, "--keep")
        if run.layer is not None:
            given["layer"] = number(run.layer, "--layer")
        return make(registered(run.method), models, **given)

    def folder(self, run: Run) -> Path:
        return Path(self.out) / run.name


def registered(method: str) -> str:
    """The registered name of a run's method: options may stand behind it, as in `sgl+diversity=1+exit`."""
    return method.partition("+")[0]


def plain(value: str, what: str) -> bool | float:
    """The value of an option.

    Raises:
        VlmpruneError: neither true, false nor a number.
    """
    words = {"true": True, "false": False}
    return words[value] if value in words else number(value, f"--method ...+{what}:")
