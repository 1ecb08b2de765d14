"""Run benchmarks: every task x method x budget, resumable, on one process or many.

    python -m eval.run --task gqa pope --model ID_OR_DIR --method fastv --keep 0.25 0.1 --baselines --out results
    torchrun --nproc-per-node 2 -m eval.run ...      (or accelerate launch; sharded by question)
    python -m eval.run --engine ray --workers 4 ...  (Ray Data, on many machines)

The same command again goes on where a killed one stopped. Tables: python -m eval.tables results
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from vlmprune.errors import VlmpruneError
from vlmprune.harness.baselines import EXIT_AT
from vlmprune.harness.format import console, note
from vlmprune.harness.models import method_class, quiet

from .exits import BAD_INPUT, Arguments, ended
from .provenance import provenance
from .record import Record, folder_at, write_json
from .scorers.boxes import UNITS
from .settings import BASELINES, ROWS, SGL_EXIT, VIDEO_BASELINES, Run, Settings, canonical, registered
from .summary import summarise
from .tasks.base import OFFICIAL, READINGS
from .tasks.registry import TASKS, task_class
from .worker import LINE, SCORERS, Worker, sha

Todo = dict[int, list[list[int]]]  # by run: the batches that are still to be answered
ENGINES = ("local", "ray")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = Arguments(
        prog="python -m eval.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rows = "; ".join(f"{name}: {what}" for name, what in ROWS.items())
    rows += f"; {SGL_EXIT}: SGL whose small model answers alone where it is sure enough; NAME+OPTION=VALUE: its options"
    out.add_argument("--task", nargs="+", required=True, metavar="NAME", help=", ".join(TASKS))
    out.add_argument("--method", nargs="+", default=[], metavar="NAME", help=f"a method's name, or {rows}")
    out.add_argument(
        "--keep", nargs="+", default=["0.25"], metavar="K", help="budgets: fractions like 0.25, or token counts"
    )
    out.add_argument(
        "--baselines",
        action="store_true",
        help=f"also run {', '.join(BASELINES)}; of videos {', '.join(VIDEO_BASELINES)} too",
    )
    out.add_argument("--out", required=True, metavar="DIR", help="where records go; an interrupted run goes on there")
    out.add_argument("--model", metavar="ID_OR_DIR", help="a Hugging Face image-text model; default: the bundled pair")
    out.add_argument(
        "--guide", metavar="ID_OR_DIR", help="the small model, for the small-alone row and methods that need one"
    )
    out.add_argument("--layer", metavar="K", help="drop tokens just before decoder layer K; default: the method's own")
    out.add_argument("--exit-at", type=float, default=EXIT_AT, metavar="S", help=f"how sure is enough for {SGL_EXIT}")
    out.add_argument(
        "--share", action="store_true", help="run the vision tower and a guide once a batch for all methods; charge all"
    )
    out.add_argument("--data", default="data", metavar="DIR", help="holds one folder a task with its official files")
    out.add_argument("--hub", action="store_true", help="read the data from the Hugging Face Hub")
    out.add_argument(
        "--dataset",
        metavar="WHERE",
        help="a folder or file with the data, a name of VLMEvalKit's like MMBench_DEV_EN_V11, or an id of the Hub; "
        "default: the task's folder below --data",
    )
    out.add_argument("--config", metavar="NAME", help="the configuration to read; default: the one of the task")
    out.add_argument("--split", metavar="NAME", help="the split to read; default: the one of the task")
    out.add_argument("--frames", type=int, metavar="N", help="of videos: so many frames; default: the task's number")
    out.add_argument(
        "--reading", choices=READINGS, default=OFFICIAL,
        help="how answers are read: as the official scripts do, or as a person would (eval/README.md)",
    )  # fmt: skip
    out.add_argument("--limit", type=int, metavar="N", help="only the first N questions of a task")
    out.add_argument("--batch-size", type=int, default=1, metavar="N", help="questions at a time; 1 gives honest times")
    out.add_argument("--max-new-tokens", type=int, metavar="N", help="the longest answer; default: the task's own")
    boxes = "what numbers above 1 in a box are; auto = pixels, resized ones for Qwen2.5-VL"
    out.add_argument("--boxes", choices=UNITS, default="auto", help=boxes)
    out.add_argument("--seed", type=int, default=0, help="for methods that draw")
    out.add_argument("--strict", action="store_true", help="stop at the first fault in the data instead of counting it")
    out.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    out.add_argument("--engine", choices=ENGINES, default="local", help="ray: Ray Data's actors, on many machines")
    out.add_argument(
        "--workers", type=int, default=1, metavar="N", help="actors of --engine ray, each with its own model"
    )
    return out


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings behind the arguments, checked as far as no model is needed.

    Raises:
        VlmpruneError: an unknown name or a bad value.
    """
    for option in ("limit", "batch_size", "max_new_tokens", "workers", "frames"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise VlmpruneError(f"--{option.replace('_', '-')} {value} is too small; give 1 or more")
    methods = [*((*BASELINES, *VIDEO_BASELINES) if args.baselines else ()), *args.method]
    if not methods:
        raise VlmpruneError("there is nothing to run; name a method with --method, or pass --baselines")
    for name in args.task:
        task_class(name)
    videos = {name for name in args.task if TASKS[name].frames is not None}
    if args.frames is not None and not videos:
        raise VlmpruneError(f"--frames {args.frames} is about videos, and {args.task[0]!r} has none; leave it out")
    if others := [name for name in args.method if name in VIDEO_BASELINES and not videos]:
        raise VlmpruneError(f"the row {others[0]!r} is about videos, and {args.task[0]!r} has none; leave it out")
    for option in ("out", "model", "guide", "dataset", "config", "split"):
        if (given := getattr(args, option)) is not None and not str(given).strip():
            raise VlmpruneError(f"--{option} is empty; name something, or leave it out")
    several = len(set(args.task)) > 1
    if several and (one := next((o for o in ("dataset", "config", "split") if getattr(args, o) is not None), None)):
        raise VlmpruneError(f"--{one} is for one task, and --task names {len(set(args.task))}; run them one by one")
    for name in methods:
        if name not in ROWS:
            method_class(registered(name))
    same = {field.name for field in fields(Settings)} & set(vars(args))
    settings = Settings(
        tasks=tuple(dict.fromkeys(args.task)),
        methods=tuple(methods),
        keeps=tuple(canonical(keep) for keep in args.keep),
        **{name: getattr(args, name) for name in sorted(same)},
    )
    for run in settings.runs():
        settings.method(run, None)
    return settings


def shard() -> tuple[int, int]:
    """This process and how many there are, as torchrun, accelerate launch and MPI (under it, on CPUs) say it."""

    def first(*names: str, default: int) -> int:
        return next((int(os.environ[name]) for name in names if name in os.environ), default)

    rank = first("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", default=0)
    return rank, first("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", default=1)


def use_one_gpu() -> None:
    """Of several processes on a machine each sees its own GPU; set before torch looks."""
    local = os.environ.get("LOCAL_RANK")
    if local is not None and shard()[1] > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        cards = visible.split(",") if visible else [str(i) for i in range(int(local) + 1)]
        os.environ["CUDA_VISIBLE_DEVICES"] = cards[int(local) % len(cards)]


def evaluate(settings: Settings, *, engine: str = "local", workers: int = 1) -> list[dict[str, Any]]:
    """Answer what is still open in every run, and write the summaries of those that are complete.

    Returns:
        The summaries; with several processes, of the runs that this one completed.
    Raises:
        VlmpruneError: missing data, a model that cannot be loaded, a folder that holds another run.
    """
    worker, (rank, world) = Worker(settings), shard()
    folder_at(Path(settings.out))
    runs = list(settings.runs())
    for name in settings.tasks:  # what is missing is said before a model is loaded
        worker.data(name)
    records = [Record(settings.folder(run), worker.identity(run), (rank, world), needs=LINE) for run in runs]
    todo: Todo = {}
    for at, (run, record) in enumerate(zip(runs, records, strict=True)):
        check_prompts(worker, run, record)
        samples = worker.data(run.task)[1].samples
        mine = worker.batches(run)[rank::world]
        todo[at] = [batch for batch in mine if any(samples[n].id not in record.done for n in batch)]
    summaries = [
        summary for at, run in enumerate(runs) if not todo[at] for summary in finish(worker, run, records[at], engine)
    ]
    with progress(sum(len(batches) for batches in todo.values()), rank) as step:
        for at, lines in answers(worker, runs, todo, engine, workers):
            records[at].append(lines)
            todo[at].pop(0)
            step(runs[at].name)
            if not todo[at]:
                summaries += finish(worker, runs[at], records[at], engine)
    return summaries


def answers(
    worker: Worker, runs: list[Run], todo: Todo, engine: str, workers: int
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The record lines of every open batch, with the number of its run."""
    if engine == "ray":
        from .ray_engine import ray_answers

        yield from ray_answers(worker.settings, todo, workers)
        return
    for task in dict.fromkeys(run.task for run in runs):
        mine = [at for at, run in enumerate(runs) if run.task == task]
        # The runs of a task take turns, so that what slows the machine slows every method alike.
        for turn in itertools.zip_longest(*(list(todo[at]) for at in mine)):
            for at, batch in zip(mine, turn, strict=True):
                if batch is not None:
                    yield at, worker.answer(runs[at], batch)


def check_prompts(worker: Worker, run: Run, record: Record) -> None:
    """Refuse to mix answers to different prompts in one record.

    Raises:
        VlmpruneError: a question in the record was asked in other words.
    """
    for sample in worker.data(run.task)[1].samples:
        before = record.done.get(sample.id)
        if before is not None and before["prompt_sha256"] != sha(sample.prompt):
            raise VlmpruneError(
                f"The record in {str(record.folder)!r} asked question {sample.id!r} in other words than the data has "
                "now; give another --out or remove that folder."
            )


def finish(worker: Worker, run: Run, record: Record, engine: str) -> list[dict[str, Any]]:
    """Write the summary where every question of the run has its line, from whichever process; else nothing."""
    task, data = worker.data(run.task)
    with record.locked():
        mend = None
        if record.before.get("scorers") != SCORERS:  # its answers were scored otherwise
            mend = partial(worker.rescored, run, {sample.id: sample for sample in data.samples})
        lines = record.complete([sample.id for sample in data.samples], mend)
        if lines is None:
            return []
        identity = worker.identity(run)
        source = provenance(
            engine=engine, processes=shard()[1], seed=worker.settings.seed, backend=identity["backend"],
            limit=worker.settings.limit, data="hub" if worker.settings.hub else "files", source=data.source,
        )  # fmt: skip
        summary = summarise(task, data, lines, identity, source)
        write_json(record.folder / "summary.json", summary)
        if cut := summary["incomplete"]:
            units = len({sample.group for sample in data.samples})
            note(
                f"{run.name}: {len(cut)} of {units} units were left out of the score, because not all of their "
                "questions are there and answered; summary.json names them"
            )
        if any(line.get("score") is None and "error" not in line for line in lines):
            predictions = {line["id"]: line["answer"] for line in lines if "error" not in line}
            write_json(record.folder / "predictions.json", predictions)
    return [summary]


@contextmanager
def progress(total: int, rank: int) -> Iterator[Callable[[str], None]]:
    """A bar with the time left on the first process's stderr; a line every fiftieth where stderr is no terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    screen = console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left:"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal or rank > 0) as bar:
        row, done, start = bar.add_task("starting", total=total), 0, time.monotonic()

        def step(name: str) -> None:
            nonlocal done
            done += 1
            bar.update(row, advance=1, description=name)
            if not screen.is_terminal and rank == 0 and (done * 50) // total > ((done - 1) * 50) // total:
                left = (time.monotonic() - start) / done * (total - done) / 60
                note(f"{name}: {done} of {total} batches, about {left:.0f} min left")

        yield step


def say_what_is_bad(summary: dict[str, Any]) -> None:
    """What of the data could not be used, on stderr."""
    if summary["bad"]:
        first, more = summary["bad"][0], summary["bad_count"] - 1
        also = f" and {more} more, which its summary.json names" if more else ""
        note(f"{summary['task']}, {summary['method']}: not used: {first['where']} ({first['why']}){also}")
    elif not summary["answered"]:
        note(f"{summary['task']}, {summary['method']}: the data holds no question; check its files")


def main(arguments: list[str] | None = None) -> int:
    """Run, and print one line per summary; what is wrong is one line on stderr: status 2, or 130 after Ctrl-C."""
    use_one_gpu()

    def body() -> int:
        args = parser().parse_args(arguments)
        with quiet():
            summaries = evaluate(settings_of(args), engine=args.engine, workers=args.workers)
        for summary in summaries:
            say_what_is_bad(summary)
            if summary["answered"]:
                shown = ("task", "method", "keep", "main", "value", "standard_error", "bad_count")
                print(json.dumps({name: summary[name] for name in shown}))
        return 0 if all(summary["answered"] for summary in summaries) else BAD_INPUT

    return ended(body)


if __name__ == "__main__":
    sys.exit(main())
