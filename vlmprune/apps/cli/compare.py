"""``vlmprune compare``: methods and budgets in one table, on one question or on held-out ones with accuracy."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from ...accounting.hardware import machine
from ...accounting.scores import exact_match
from ...errors import VlmpruneError
from ...harness.baselines import BASELINES, accuracy, by_chance, compared, entries, held_out
from ...harness.format import console, milliseconds, print_json, spinner, table
from ...harness.measure import MethodRun, backend, interleaved
from ...harness.models import load_models, quiet
from . import options
from .ask import prompt

BUDGETS = (0.5, 0.25, 0.1)
# Columns of the table: heading, key in a record, format.
COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("tokens\ninto LM", "lm_tokens", "{:.1f}".format),
    ("layer\naverage", "layer_avg_tokens", "{:.1f}".format),
    ("prefill\nFLOPs", "prefill_flops_share", "{:.1%}".format),
    ("guide\nFLOPs", "guide_flops_share", lambda share: f"{share:.1%}" if share else ""),
    ("KV\ncache", "kv_share", "{:.1%}".format),
    ("time a\nquestion", "seconds", milliseconds),
)


def compare(
    image: options.Image = None,
    question: options.Question = None,
    questions: Annotated[
        int | None,
        options.count("Instead of one question: N held-out ones bundled with the pair, with accuracy."),
    ] = None,
    method: Annotated[list[str] | None, options.text("NAME", "A method beside the baselines; may be repeated.")] = None,
    keep: Annotated[
        list[float] | None,
        options.amount(
            "K",
            "A budget: a fraction of each image's tokens, or a number of tokens; may be repeated.",
            shown=", ".join(map(str, BUDGETS)),
        ),
    ] = None,
    layer: options.Layer = None,
    model: options.Model = None,
    guide: options.Guide = None,
    seed: Annotated[int, options.count("Draws the random method's tokens and the questions.", least=0)] = 0,
    max_new_tokens: options.MaxNewTokens = 16,
    repeats: options.Repeats = 3,
    batch_size: Annotated[int, options.count("Held-out questions at a time.")] = 16,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Compare methods and budgets with the unpruned model, the small one alone and simple baselines."""
    if questions is not None and not (image is None and model is None):
        raise VlmpruneError("--questions are made for the bundled pair; leave out the image and --model")
    truths: list[str] | None = None
    if questions is None:
        shown, text = prompt(image, question)
        batches = [([shown], [text])] * repeats
    else:
        batches, truths = held_out(questions, seed, batch_size)
    usual = [name for name in BASELINES if model is None or guide is not None or not name.startswith("sgl")]
    asked = dict.fromkeys([*usual, *(method or [])]), keep or BUDGETS
    with quiet():
        list(entries(*asked, None, layer=layer, seed=seed))  # report bad options before loading anything
        with spinner("loading"):
            models = load_models(model, guide, trust_remote_code=trust_remote_code)
        rows = compared(models, *asked, layer=layer, seed=seed)
        from ...calibrate.samples import progress

        interleaved(rows, batches, partial(progress, what="comparing"), max_new_tokens=max_new_tokens)
    how = f"{len(batches)} runs" if truths is None else f"{len(batches)} batches of up to {batch_size}"
    about = {
        "model": models.name,
        "small": models.small_name,
        "backend": backend(models.model),
        "seed": seed,
        "questions": questions or 1,
        "scored": None if truths is None else "exact match",
        "time": f"median over {how} of the seconds a question takes, all rows in turns after a warm-up",
        "machine": machine(),
    }
    records = [record(row, rows[0], truths) for row in rows]
    if truths is not None:
        records.append(dict.fromkeys(records[0]) | by_chance(truths))
    if json:
        print_json({"about": about, "rows": records})
    else:
        show(records, about)


def record(row: MethodRun, unpruned: MethodRun, truths: list[str] | None) -> dict[str, Any]:
    """The numbers of a row; fractions are relative to the unpruned large model."""
    answers = [answer for run in row.answers for answer in run]
    out: dict[str, Any] = {
        "method": row.name,
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


def show(records: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Print the table and its caption."""
    scored = "accuracy" in records[0]
    headings = ("method", "keep", *(heading for heading, _, _ in COLUMNS), "accuracy" if scored else "answer")
    rows = table(headings, left=(0, 1) if scored else (0, 1, len(headings) - 1))
    for row in records:
        result = f"{row['accuracy']:.3f} ± {row['standard_error']:.3f}" if scored else row["answer"]
        cells = ("" if row[name] is None else written(row[name]) for _, name, written in COLUMNS)
        rows.add_row(row["method"], row["keep"] or "", *cells, result)
    out = console()
    out.print(rows)
    if scored:
        out.print("accuracy ± its standard error; FLOPs and KV cache in percent of the unpruned large model's")
    out.print("; ".join(f"{name}: {value}" for name, value in about.items() if value is not None))
