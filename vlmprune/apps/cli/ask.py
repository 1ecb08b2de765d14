"""``vlmprune ask``: one question, answered with all visual tokens and with some of them, side by side."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from ...accounting.hardware import hardware, machine
from ...errors import VlmpruneError
from ...harness.baselines import EXIT_AT, default_method
from ...harness.format import amount, console, milliseconds, print_json, saved, spinner, table
from ...harness.measure import MethodRun, backend, faster, interleaved
from ...harness.models import BUNDLED_LARGE, CLIPS_LARGE, Models, load_models, make, options_of, quiet
from ...harness.parse import writable_image
from . import options

ALBUM_KEEP = 0.1  # of what is shown where nothing is asked for: few, so that random pruning shows what it costs


def ask(
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="The file of an image or a video; none: bundled images.")
    ] = None,
    question: options.Question = None,
    frames: Annotated[
        int | None,
        options.count(
            "Of a video or an animated image: so many evenly spaced frames.", shown="32 of a video; 8 without --model"
        ),
    ] = None,
    method: Annotated[
        str | None,
        options.text("NAME", options.HOW, shown="sgl where there is a small model, else fastv"),
    ] = None,
    keep: options.Keep = None,
    layer: options.Layer = None,
    exit_at: Annotated[
        float | None,
        options.amount(
            "S", "With sgl: where the small model is at least this sure, its answer is taken.", shown=str(EXIT_AT)
        ),
    ] = None,
    model: options.Model = None,
    guide: options.Guide = None,
    overlay: options.Overlay = None,
    max_new_tokens: options.MaxNewTokens = 32,
    repeats: options.Repeats = 5,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Answer a question about an image or a video, unpruned and pruned, and show what pruning saves."""
    budget: dict[str, Any] = {"keep": keep, "layer": layer, "exit_at": exit_at}
    bundled = (image, frames, method, model, guide, *budget.values()) == (None,) * 8
    if bundled:
        budget["keep"] = ALBUM_KEEP
    shown, text = album() if bundled else prompt(image, question, frames, model is None)
    method = method or default_method(model, guide)
    writable_image(overlay, source=image)
    with quiet():
        make(method, guide=guide, **budget)  # report bad options before loading anything
        with spinner("loading"):
            models = load_models(model, guide, trust_remote_code=trust_remote_code, video=is_clip(shown))
        runs = sides(models, method, budget, floor=bundled and not json)
        with spinner("answering"):
            interleaved(list(runs.values()), [([shown], [text])] * repeats, max_new_tokens=max_new_tokens)
        if overlay is not None:
            save(dimmed(shown, runs["pruned"].typical()[1]), overlay)
    if json:
        found = {side: run.typical() for side, run in runs.items()}
        print_json({side: {"text": text, "report": report.to_dict()} for side, ((text,), report) in found.items()})
    else:
        show(runs, text, models, repeats)
        if overlay is not None:
            console().print(f"What was kept: {overlay}")


def sides(models: Models, method: str, budget: dict[str, Any], *, floor: bool) -> dict[str, MethodRun]:
    """What answers: the unpruned model, the method, and where it has exits, the method with them.

    `floor`: also as many tokens as the method keeps, drawn at random, which any method has to beat.
    """
    exits = "exit_at" in options_of(method)
    plain = budget | {"exit_at": None} if exits else budget
    pruned = make(method, models, **plain)
    made = {"unpruned": ("unpruned", make("none"))}
    if floor:
        made["random"] = "random", make("random", keep=pruned.keep)
    made["pruned"] = method, pruned
    if exits:
        at = EXIT_AT if budget["exit_at"] is None else budget["exit_at"]
        made["exit"] = f"{method} + exit", make(method, models, **budget | {"exit_at": at})
    return {side: MethodRun(models.model, models.processor, one, name) for side, (name, one) in made.items()}


def prompt(image: Path | None, question: str | None, frames: int | None = None, tiny: bool = False) -> tuple[Any, str]:
    """The image or clip and the question, or the bundled ones if there is no image.

    `tiny`: the bundled pair for clips is asked, which learnt with eight frames.
    """
    if image is None:
        if frames is not None:
            raise VlmpruneError(f"--frames {frames} is about videos, and none is given; put its file first")
        from ...tiny import example

        return example()
    if question is None or not question.strip():
        raise VlmpruneError("the question is empty or there is no question; put it in quotes after the image")
    from ...inputs.images import ANIMATED, read_image
    from ...inputs.video import is_video_path, read_clip
    from ...tiny import CLIP_FRAMES

    if is_video_path(image) or (frames is not None and image.suffix.lower() in ANIMATED):
        return read_clip(image, frames=frames or (CLIP_FRAMES if tiny else None)), question
    if frames is not None:
        raise VlmpruneError(f"--frames {frames} is about videos, and {str(image)!r} is none; leave it out")
    return read_image(image), question


def is_clip(shown: Any) -> bool:
    """Whether it is a clip, not an image or several."""
    from ...inputs.video import Clip

    return isinstance(shown, Clip)


def album() -> tuple[Any, str]:
    """The bundled images of one prompt, and a question about one of them."""
    from ...tiny import album

    return album()


def dimmed(shown: Any, report: Any) -> Image.Image:
    """The image with what was dropped dimmed; several stand side by side, frames of a clip on one sheet."""
    if is_clip(shown):
        return report.overlay(shown.frames)
    images = shown if isinstance(shown, list) else [shown]
    parts = [report.overlay(one, number=number) for number, one in enumerate(images)]
    sheet = Image.new("RGB", (sum(part.width for part in parts), max(part.height for part in parts)))
    left = 0
    for part in parts:
        sheet.paste(part, (left, 0))
        left += part.width
    return sheet


def save(image: Any, path: Path) -> None:
    """Write an overlay; an error of the file system becomes one sentence."""
    try:
        image.save(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VlmpruneError(f"{str(path)!r} cannot be written ({reason}); choose another place") from None


def show(runs: dict[str, MethodRun], question: str, models: Models, repeats: int) -> None:
    """Print the answers side by side with their costs."""
    found = [run.typical() for run in runs.values()]
    answers, reports = [text for (text,), _ in found], [report for _, report in found]
    rows = table(("", *(run.name for run in runs.values())), title=question)
    rows.add_row("answer", *answers, style="bold")
    rows.add_row("visual tokens kept", *(str(sum(report.kept_tokens)) for report in reports))
    measures: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("  averaged over layers", "layer_avg_tokens", "{:.1f}".format),
        ("prefill FLOPs", "prefill_flops", amount),
        ("KV cache", "kv_bytes", partial(amount, unit="B")),
    )
    for label, field, written in measures:
        values = [getattr(report, field) for report in reports]
        less = [f"{written(value)} (-{saved(values[0], value)})" for value in values[1:]]
        rows.add_row(label, written(values[0]), *less)
    if any(report.guide_flops is not None for report in reports):
        spent = [report.guide_flops for report in reports]
        rows.add_row("guide FLOPs", *("" if flops is None else amount(flops) for flops in spent))
    for stage in ("vision", "guide", "score", "prefill", "decode"):
        if any(stage in report.seconds for report in reports):
            taken = (run.seconds(stage) for run in runs.values())
            rows.add_row(f"{stage} time", *(milliseconds(one) if one else "-" for one in taken))
    rows.add_row("total time", *(milliseconds(run.seconds()) for run in runs.values()))
    unpruned, *pruned = runs.values()
    gains = [faster(unpruned, run) for run in pruned]
    rows.add_row("times as fast", "", *("not told apart" if gain is None else f"{gain:.2f}" for gain in gains))
    if any(report.exited is not None and report.exited[0] for report in reports):
        alone = (report.exited is not None and report.exited[0] for report in reports)
        rows.add_row("answered by", *("the guide alone" if one else "" for one in alone))
    out = console()
    out.print(rows)
    out.print(*(note for report in reports for note in report.notes), *said(list(runs.values()), gains), sep="\n")
    out.print(f"Model: {models.name} ({backend(models.model)}). Times: median of {repeats} runs, all in turns, after")
    out.print("one run each to warm up, the same backend on all sides; a time counts as another only where every run")
    out.print(f"of one side was faster than every one of the other; {machine()}.")
    if models.name in (BUNDLED_LARGE, CLIPS_LARGE):
        out.print("On a model of yours: vlmprune ask photo.jpg 'What is this?' --model ORG/NAME")


def said(runs: list[MethodRun], gains: list[float | None]) -> list[str]:
    """The result in a sentence; where no time was saved, why, and what a model of the usual size would save."""
    (full,), before = runs[0].typical()
    (last,), after = runs[-1].typical()
    same = "same answer" if last == full else f"another answer ({last!r} for {full!r})"
    fewer = saved(before.prefill_flops, after.prefill_flops + (after.guide_flops or 0))
    if gains[-1] is not None and gains[-1] > 1:
        return [f"{runs[-1].name}: {same}, {fewer} fewer FLOPs, {gains[-1]:.1f} times as fast."]
    return [
        f"{runs[-1].name}: {same}, {fewer} fewer FLOPs, but no time saved beyond the noise: with "
        f"{sum(before.visual_tokens)} visual tokens in a small model, what a layer costs besides its arithmetic weighs "
        "as much.",
        predicted(),
    ]


def predicted() -> str:
    """What pruning would save where it pays."""
    from ...harness.plan_rows import llava_7b, planned

    made = ("fastv", 0.25)
    plan = planned(llava_7b(), None, hardware("h100"), [made], None, visual=2880, text=64, new=32, dtype="bf16")
    full, part = plan["rows"]
    return (
        f"Predicted for {plan['config']} with 2,880 visual tokens on an H100 (`vlmprune plan`): fastv at 0.25 takes "
        f"{part['prefill'] / full['prefill']:.0%} of the prefill's time."
    )
