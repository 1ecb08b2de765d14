"""Ray Data as the engine: batches of questions go through a pool of actors that each hold the models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from vlmprune.integrations.ray import map_actors

from .settings import Settings
from .worker import Worker


class Answerer:
    """One actor: reads the data and loads the models on its own machine, then answers batch after batch."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.worker = Worker(Settings(**settings))
        self.runs = list(self.worker.settings.runs())

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Rows `run` and `numbers` (JSON: Arrow would turn ragged lists into objects) become `run` and `lines`."""
        lines = [
            json.dumps(self.worker.answer(self.runs[int(run)], json.loads(str(numbers))))
            for run, numbers in zip(batch["run"], batch["numbers"], strict=True)
        ]
        return {"run": batch["run"], "lines": lines}


def ray_answers(
    settings: Settings, todo: Mapping[int, list[list[int]]], workers: int
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The record lines of every open batch with the number of its run, in the order they are done.

    A cluster that `RAY_ADDRESS` names is used; without one Ray starts on this machine. The data folder must be where
    the settings say on every machine.

    Raises:
        VlmpruneError: ray is not installed.
    """
    rows = [{"run": run, "numbers": json.dumps(numbers)} for run, batches in todo.items() for numbers in batches]
    if not rows:
        return
    for row in map_actors(rows, Answerer, (asdict(settings),), workers=workers).iter_rows():
        yield int(row["run"]), json.loads(row["lines"])
