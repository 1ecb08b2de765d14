"""``vlmprune compare``: methods and budgets in one table, on one question or on held-out ones with accuracy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from ...accounting.hardware import machine
from ...accounting.scores import exact_match
from ...errors import VlmpruneError
from ...harness.format import console, milliseconds, print_json, share, spinner
from ...harness.measure import Contender, at_least_one, backend, in_turns
from ...harness.models import Models, load_models, make, options_of, quiet
from ...harness.parse import number
from .ask import prompt
from .options import (
    EXIT_AT,
    GuideOption,
    ImageArgument,
    JsonOption,
    LayerOption,
    MaxNewTokensOption,
    ModelOption,
    QuestionArgument,
    RepeatsOption,
    TrustOption,
)

# In every table, whatever else is asked for; the last two only where there is a small model.
BASELINES = ("random", "uniform", "downsample", "fastv", "fastv-oracle", "sgl", "sgl + exit")
WITH_EXIT = " + exit"
BUDGETS = ("0.5", "0.25", "0.1")
CHANCE = "most frequent answer"  # the row without any model, where questions are ours
CHANCE_DRAWS = 400  # validation questions a family that say which answer that is
NO_EXACT_ANSWER = "caption"  # the one family of questions that exact match cannot score
SEEDS_A_RUN = 1_000_000  # scenes of one --seed never meet those of another


def compare(
    image: ImageArgument = None,
    question: QuestionArgument = None,
    questions: Annotated[
        int | None,
        typer.Option(
            "--questions",
            metavar="N",
            show_default=False,
            help="Instead of one question: N held-out ones made for the bundled pair, with accuracy.",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", metavar="NAME", help="A method beside the baselines; may be repeated."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            metavar="K",
            show_default=", ".join(BUDGETS),
            help="A budget: a share of each image's tokens, or a number of tokens; may be repeated.",
        ),
    ] = None,
    layer: LayerOption = None,
    model: ModelOption = None,
    guide: GuideOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Draws the random method's tokens and the questions.")] = 0,
    max_new_tokens: MaxNewTokensOption = 16,
    repeats: RepeatsOption = 3,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Held-out questions at a time.")] = 16,
    trust_remote_code: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Compare methods and budgets, the unpruned model, the small one alone and simple baselines among them."""
    for option, value in (
        ("--max-new-tokens", max_new_tokens),
        ("--repeats", repeats),
        ("--batch-size", batch_size),
        ("--questions", 1 if questions is None else questions),
        ("--seed", seed + 1),
    ):
        at_least_one(option, value)
    if questions is not None and not (image is None and model is None):
        raise VlmpruneError("--questions are made for the bundled pair; leave out the image and --model")
    truths: list[str] | None = None
    if questions is None:
        shown, text = prompt(image, question)
        batches = [([shown], [text])] * repeats
    else:
        batches, truths = held_out(questions, seed, batch_size)
    usual = [name for name in BASELINES if model is None or guide is not None or not name.startswith("sgl")]
    names = list(dict.fromkeys([*usual, *(method or [])]))
    with quiet():
        list(entries(names, keep or BUDGETS, layer, seed, None))  # a bad option is said before anything is loaded
        with spinner("loading"):
            models = load_models(model, guide, trust_remote_code=trust_remote_code)
        rows = [
            Contender("none", "", models.model, models.processor, make("none")),
            *small_alone(models),
            *(
                Contender(name, budget, models.model, models.processor, made)
                for name, budget, made in entries(names, keep or BUDGETS, layer, seed, models)
            ),
        ]
        with progress((1 + len(batches)) * len(rows)) as step:
            in_turns(rows, batches, step, max_new_tokens=max_new_tokens)
    facts = caption(models, seed, truths, len(batches), batch_size)
    records = [record(row, rows[0], truths) for row in rows]
    if truths is not None:
        records.append(dict.fromkeys(records[0]) | by_chance(truths))
    if json:
        print_json({"about": facts, "rows": records})
    else:
        show(records, facts)


def entries(
    names: list[str], budgets: Any, layer: str | None, seed: int, models: Models | None
) -> Iterator[tuple[str, str, Any]]:
    """Name, budget and method object of every pruned row; a method without a budget has one row."""
    drop_before = number("--layer", layer)
    for name in names:
        method = name.removesuffix(WITH_EXIT)
        takes = options_of(method)
        given: dict[str, Any] = {"seed": seed} if "seed" in takes else {}
        if method != name:
            given["exit_at"] = EXIT_AT
        if "keep" not in takes:
            yield name, "", make(method, models, **given)
            continue
        for budget in budgets:
            yield name, budget, make(method, models, keep=number("--keep", budget), layer=drop_before, **given)


def small_alone(models: Models) -> list[Contender]:
    """The small model unpruned, where there is one: what a pruned large model has to beat."""
    if models.small is None:
        return []
    return [Contender("small alone", "", models.small, models.small_processor, make("none"))]


def held_out(count: int, seed: int, batch_size: int) -> tuple[list[tuple[list[Any], list[str]]], list[str]]:
    """Batches of pictures and questions from the test split, and the answers in order.

    The families take turns, and no picture comes twice in a family: the answers are independent, as the standard
    error assumes.
    """
    from PIL import Image

    from ...tiny.scenes import benchmark, render

    families = families_in_turn()
    streams = [
        benchmark(family, count, "test", start=seed * SEEDS_A_RUN + i * (SEEDS_A_RUN // len(families)), per_scene=1)
        for i, family in enumerate(families)
    ]
    drawn = [next(streams[i % len(streams)]) for i in range(count)]
    pairs = [(Image.fromarray(render(scene)), question) for scene, question in drawn]
    batches = [
        ([image for image, _ in part], [question.text for _, question in part])
        for part in (pairs[at : at + batch_size] for at in range(0, count, batch_size))
    ]
    return batches, [question.answer for _, question in pairs]


def families_in_turn() -> list[str]:
    """The families of held-out questions, in the order in which they take turns."""
    from ...tiny.scenes import FAMILIES

    return [family for family in FAMILIES if family != NO_EXACT_ANSWER]


def by_chance(truths: list[str]) -> dict[str, Any]:
    """The row of who always gives a family's most frequent answer, which validation questions tell."""
    from ...tiny.scenes import benchmark

    guesses = [
        Counter(question.answer for _, question in benchmark(family, CHANCE_DRAWS, "validation")).most_common(1)[0][0]
        for family in families_in_turn()
    ]
    right = [exact_match(guesses[i % len(guesses)], truth) for i, truth in enumerate(truths)]
    return {"method": CHANCE, "keep": None, **accuracy(right)}


@contextmanager
def progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr that one call moves by one; nothing where stderr is no terminal."""
    from rich.progress import Progress

    screen = console(stderr=True)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("comparing", total=total)
        yield lambda: bar.advance(task)


def caption(models: Models, seed: int, truths: list[str] | None, runs: int, batch_size: int) -> dict[str, Any]:
    """What a table must say about itself."""
    how = f"{runs} batches of up to {batch_size}" if truths else f"{runs} runs"
    return {
        "model": models.name,
        "small": models.small_name,
        "backend": backend(models.model),
        "seed": seed,
        "questions": len(truths or [""]),
        "scored": "exact match" if truths else None,
        "time": f"median over {how} of the seconds a question takes, all rows in turns after a warm-up",
        "machine": machine(),
    }


def record(row: Contender, unpruned: Contender, truths: list[str] | None) -> dict[str, Any]:
    """A row's numbers; shares are of the unpruned large model."""
    answers = [answer for run in row.answers for answer in run]
    out: dict[str, Any] = {
        "method": row.method_name,
        "keep": row.keep or None,
        "options": row.reports[0].method,
        "lm_tokens": row.mean("lm_tokens"),
        "layer_avg_tokens": row.mean("layer_avg_tokens"),
        "prefill_flops_share": row.total("prefill_flops") / unpruned.total("prefill_flops"),
        "guide_flops_share": row.total("guide_flops") / unpruned.total("prefill_flops"),
        "kv_share": row.total("kv_bytes") / unpruned.total("kv_bytes"),
        "seconds": row.seconds(),
    }
    if truths is None:
        return out | {"answer": answers[0]}
    return out | accuracy([exact_match(given, truth) for given, truth in zip(answers, truths, strict=True)])


def accuracy(right: list[float]) -> dict[str, float]:
    """Mean and standard error of scores that are 0 or 1."""
    mean = sum(right) / len(right)
    return {"accuracy": mean, "standard_error": math.sqrt(mean * (1 - mean) / len(right))}


def show(records: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """The table and its caption."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    scored = "accuracy" in records[0]
    for heading in ("method", "keep"):
        table.add_column(heading)
    counted = ("tokens\ninto LM", "layer\naverage", "prefill\nFLOPs", "guide\nFLOPs", "KV\ncache", "time a\nquestion")
    for heading in counted:
        table.add_column(heading, justify="right")
    table.add_column("accuracy" if scored else "answer", justify="right" if scored else "left")
    for row in records:
        result = f"{row['accuracy']:.3f} ± {row['standard_error']:.3f}" if scored else row["answer"]
        if row["method"] == CHANCE:
            table.add_row(CHANCE, *[""] * (len(counted) + 1), result)
            continue
        table.add_row(
            row["method"],
            row["keep"] or "",
            f"{row['lm_tokens']:.1f}",
            f"{row['layer_avg_tokens']:.1f}",
            share(row["prefill_flops_share"], 1),
            share(row["guide_flops_share"], 1) if row["guide_flops_share"] else "",
            share(row["kv_share"], 1),
            milliseconds(row["seconds"]),
            result,
        )
    out = console()
    out.print(table)
    if scored:
        out.print("accuracy ± its standard error; FLOPs and KV cache in percent of the unpruned large model's")
    out.print("; ".join(f"{name}: {value}" for name, value in facts.items() if value is not None))
