"""Ray Data as the engine: batches of questions go through a pool of actors that each hold the models."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from vlmprune.errors import VlmpruneError

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
    try:
        import ray
        import ray.data
    except ImportError:
        raise VlmpruneError("--engine ray needs the package ray; install vlmprune[ray].") from None
    import torch

    rows = [{"run": run, "numbers": json.dumps(numbers)} for run, batches in todo.items() for numbers in batches]
    if not rows:
        return
    if not ray.is_initialized():
        # Actors import `eval` and `vlmprune` from where this process runs, and must not share one core's threads out.
        passed = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "PYTHONPATH") if name in os.environ}
        ray.init(
            num_cpus=None if os.environ.get("RAY_ADDRESS") else max(workers + 1, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            runtime_env={"env_vars": passed},
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    answered = ray.data.from_items(rows, override_num_blocks=min(len(rows), 4 * workers)).map_batches(
        Answerer,
        fn_constructor_args=(asdict(settings),),
        batch_size=1,
        concurrency=workers,
        num_gpus=1 if torch.cuda.is_available() else 0,
    )
    for row in answered.iter_rows():
        yield int(row["run"]), json.loads(row["lines"])
