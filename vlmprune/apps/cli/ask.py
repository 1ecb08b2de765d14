"""``vlmprune ask``: one question about one image, answered with all visual tokens and with some of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...accounting.hardware import machine
from ...errors import VlmpruneError
from ...harness.baselines import default_method
from ...harness.format import amount, console, milliseconds, print_json, saved, spinner, table
from ...harness.measure import MethodRun, at_least_one, backend, interleaved, stage_cell
from ...harness.models import Models, load_models, make, quiet
from ...harness.parse import asked, number, read_image, writable_image
from .options import (
    GuideOption,
    ImageArgument,
    JsonOption,
    KeepOption,
    LayerOption,
    MaxNewTokensOption,
    ModelOption,
    QuestionArgument,
    RepeatsOption,
    TrustOption,
)


def ask(
    image: ImageArgument = None,
    question: QuestionArgument = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="NAME",
            show_default="sgl where there is a small model, else fastv",
            help="How to prune; `vlmprune methods` lists the names.",
        ),
    ] = None,
    keep: KeepOption = None,
    layer: LayerOption = None,
    exit_at: Annotated[
        str | None,
        typer.Option(
            "--exit-at",
            metavar="S",
            show_default="never",
            help="With sgl: where the small model is at least this sure (0 to 1), its answer is taken.",
        ),
    ] = None,
    model: ModelOption = None,
    guide: GuideOption = None,
    overlay: Annotated[
        Path | None, typer.Option("--overlay", metavar="FILE.png", help="Save an image of what was kept.")
    ] = None,
    max_new_tokens: MaxNewTokensOption = 32,
    repeats: RepeatsOption = 3,
    trust_remote_code: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Answer a question about an image, unpruned and pruned, and show what pruning saves."""
    shown, text = prompt(image, question)
    method = method or default_method(model, guide)
    budget: dict[str, Any] = {
        "keep": number("--keep", keep),
        "layer": number("--layer", layer),
        "exit_at": number("--exit-at", exit_at),
    }
    at_least_one("--max-new-tokens", max_new_tokens)
    at_least_one("--repeats", repeats)
    if overlay is not None:
        writable_image(overlay, source=image)
    with quiet():
        make(method, guide=guide, **budget)  # a bad option is said before anything is loaded
        with spinner("loading"):
            models = load_models(model, guide, trust_remote_code=trust_remote_code)
        pair = [
            MethodRun(models.model, models.processor, made, name)
            for name, made in (("unpruned", make("none")), ("pruned", make(method, models, **budget)))
        ]
        with spinner("answering"):
            interleaved(pair, [([shown], [text])] * repeats, max_new_tokens=max_new_tokens)
        if overlay is not None:
            save(pair[1].reports[pair[1].typical()].overlay(shown), overlay)
    if json:
        print_json({c.name: {"text": c.answers[r][0], "report": c.reports[r].to_dict()} for c, r in runs(pair)})
    else:
        show(pair, text, models, repeats)
        if overlay is not None:
            console().print(f"What was kept: {overlay}")


def prompt(image: Path | None, question: str | None) -> tuple[Any, str]:
    """The image and the question; without any, the bundled ones."""
    if image is None:
        from ...tiny import example

        return example()
    if question is None:
        raise VlmpruneError("there is no question; put it in quotes after the image")
    return read_image(image), asked(question)


def runs(pair: list[MethodRun]) -> list[tuple[MethodRun, int]]:
    """Each side with its run of median time."""
    return [(contender, contender.typical()) for contender in pair]


def save(image: Any, path: Path) -> None:
    """Write the overlay; a full disk or a read-only folder is the user's to know."""
    try:
        image.save(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VlmpruneError(f"{str(path)!r} cannot be written ({reason}); choose another place") from None


def show(pair: list[MethodRun], question: str, models: Models, repeats: int) -> None:
    """The two answers side by side with what each cost."""
    (unpruned, first), (pruned, second) = runs(pair)
    before, after = unpruned.reports[first], pruned.reports[second]
    options = ", ".join(f"{key}={value}" for key, value in after.method.items() if key != "name")
    rows = table(("", "unpruned", after.method["name"], "saved"), title=question)
    rows.add_row("answer", unpruned.answers[first][0], pruned.answers[second][0], "", style="bold")
    rows.add_row("visual tokens kept", str(sum(before.kept_tokens)), str(sum(after.kept_tokens)), "")
    for label, name in (("  entering the LM", "lm_tokens"), ("  averaged over layers", "layer_avg_tokens")):
        full, part = getattr(before, name), getattr(after, name)
        rows.add_row(label, f"{full:.1f}", f"{part:.1f}", saved(full, part))
    for label, name, unit in (("prefill FLOPs", "prefill_flops", ""), ("KV cache", "kv_bytes", "B")):
        full, part = getattr(before, name), getattr(after, name)
        rows.add_row(label, amount(full, unit), amount(part, unit), saved(full, part))
    if after.guide_flops is not None:
        rows.add_row("guide FLOPs", "", amount(after.guide_flops), "")
    if after.exited is not None and after.exited[0]:
        rows.add_row("answered by", "", "the guide alone", "")
    for stage in ("vision", "guide", "score", "prefill", "decode"):
        if any(stage in report.seconds for report in (before, after)):
            rows.add_row(f"{stage} time", stage_cell(unpruned, stage), stage_cell(pruned, stage), "")
    slow, fast = unpruned.seconds(), pruned.seconds()
    rows.add_row("total time", milliseconds(slow), milliseconds(fast), saved(slow, fast))
    out = console()
    out.print(rows)
    out.print(f"{after.method['name']}: {options}", *after.notes, sep="\n")
    out.print(f"Model: {models.name} ({backend(models.model)}). Times: median of {repeats} runs, both in turns,")
    out.print(f"after one run each to warm up, the same backend on both sides; {machine()}.")
