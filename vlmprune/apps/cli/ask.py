"""``vlmprune ask``: one question about one image, answered with all visual tokens and with some of them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from ...accounting.hardware import machine
from ...errors import VlmpruneError
from ...harness.baselines import default_method
from ...harness.format import amount, console, milliseconds, print_json, saved, spinner, table
from ...harness.measure import MethodRun, backend, interleaved
from ...harness.models import Models, load_models, make, quiet
from ...harness.parse import writable_image
from . import options


def ask(
    image: options.Image = None,
    question: options.Question = None,
    method: Annotated[
        str | None,
        options.text("NAME", options.HOW, shown="sgl where there is a small model, else fastv"),
    ] = None,
    keep: options.Keep = None,
    layer: options.Layer = None,
    exit_at: Annotated[
        float | None,
        options.amount(
            "S", "With sgl: where the small model is at least this sure (0 to 1), its answer is taken.", shown="never"
        ),
    ] = None,
    model: options.Model = None,
    guide: options.Guide = None,
    overlay: options.Overlay = None,
    max_new_tokens: options.MaxNewTokens = 32,
    repeats: options.Repeats = 3,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Answer a question about an image, unpruned and pruned, and show what pruning saves."""
    shown, text = prompt(image, question)
    method = method or default_method(model, guide)
    budget: dict[str, Any] = {"keep": keep, "layer": layer, "exit_at": exit_at}
    writable_image(overlay, source=image)
    with quiet():
        make(method, guide=guide, **budget)  # report bad options before loading anything
        with spinner("loading"):
            models = load_models(model, guide, trust_remote_code=trust_remote_code)
        pair = [
            MethodRun(models.model, models.processor, made, name)
            for name, made in (("unpruned", make("none")), ("pruned", make(method, models, **budget)))
        ]
        with spinner("answering"):
            interleaved(pair, [([shown], [text])] * repeats, max_new_tokens=max_new_tokens)
        if overlay is not None:
            save(pair[1].typical()[1].overlay(shown), overlay)
    if json:
        found = {run.name: run.typical() for run in pair}
        print_json({side: {"text": text, "report": report.to_dict()} for side, ((text,), report) in found.items()})
    else:
        show(pair, text, models, repeats)
        if overlay is not None:
            console().print(f"What was kept: {overlay}")


def prompt(image: Path | None, question: str | None) -> tuple[Any, str]:
    """The image and the question, or the bundled ones if there is no image."""
    if image is None:
        from ...tiny import example

        return example()
    if question is None or not question.strip():
        raise VlmpruneError("the question is empty or there is no question; put it in quotes after the image")
    from ...inputs.images import read_image

    return read_image(image), question


def save(image: Any, path: Path) -> None:
    """Write an overlay; an error of the file system becomes one sentence."""
    try:
        image.save(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VlmpruneError(f"{str(path)!r} cannot be written ({reason}); choose another place") from None


def show(pair: list[MethodRun], question: str, models: Models, repeats: int) -> None:
    """Print both answers side by side with their costs."""
    ((first,), before), ((second,), after) = (run.typical() for run in pair)
    name = after.method["name"]
    rows = table(("", "unpruned", name, "saved"), title=question)
    rows.add_row("answer", first, second, "", style="bold")
    rows.add_row("visual tokens kept", str(sum(before.kept_tokens)), str(sum(after.kept_tokens)), "")
    measures: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("  entering the LM", "lm_tokens", "{:.1f}".format),
        ("  averaged over layers", "layer_avg_tokens", "{:.1f}".format),
        ("prefill FLOPs", "prefill_flops", amount),
        ("KV cache", "kv_bytes", partial(amount, unit="B")),
    )
    for label, field, written in measures:
        full, part = getattr(before, field), getattr(after, field)
        rows.add_row(label, written(full), written(part), saved(full, part))
    if after.guide_flops is not None:
        rows.add_row("guide FLOPs", "", amount(after.guide_flops), "")
    if after.exited is not None and after.exited[0]:
        rows.add_row("answered by", "", "the guide alone", "")
    for stage in ("vision", "guide", "score", "prefill", "decode"):
        if stage in before.seconds or stage in after.seconds:
            cells = (milliseconds(run.seconds(stage)) if run.seconds(stage) else "-" for run in pair)
            rows.add_row(f"{stage} time", *cells, "")
    times = [run.seconds() for run in pair]
    rows.add_row("total time", *map(milliseconds, times), saved(*times))
    out = console()
    out.print(rows)
    options = ", ".join(f"{key}={value}" for key, value in after.method.items() if key != "name")
    out.print(f"{name}: {options}", *after.notes, sep="\n")
    out.print(f"Model: {models.name} ({backend(models.model)}). Times: median of {repeats} runs, both in turns,")
    out.print(f"after one run each to warm up, the same backend on both sides; {machine()}.")
