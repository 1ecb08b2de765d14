"""``vlmprune sinks``: where a model's attention sinks are for one image, as a table and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import VlmpruneError
from ...harness.format import console, print_json, spinner
from ...harness.models import load_models, quiet
from ...harness.parse import number, writable_image
from .ask import prompt, save
from .options import ImageArgument, JsonOption, ModelOption, QuestionArgument, TrustOption

DEFAULT_QUESTION = "What is in the picture?"


def sinks(
    image: ImageArgument = None,
    question: QuestionArgument = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.png", help="Save the heat map, the norm curve and the sinks per layer."),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option("--layer", metavar="K", show_default="the highest of all", help="Whose phi the heat map shows."),
    ] = None,
    tau: Annotated[
        str | None,
        typer.Option("--tau", metavar="T", show_default="the model's own", help="From which phi a token is a sink."),
    ] = None,
    model: ModelOption = None,
    trust_remote_code: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Find the attention sinks of an image: how many, in which layers, and how much attention they take."""
    shown, text = prompt(image, question or (None if image is None else DEFAULT_QUESTION))
    threshold, chosen = number("--tau", tau), number("--layer", layer)
    if isinstance(chosen, float):
        raise VlmpruneError(f"--layer must be an int >= 0, got {layer}; it numbers a decoder layer.")
    if plot is not None:
        writable_image(plot, source=image)
    import vlmprune

    from ...hf.arguments import to_device
    from ...inputs.chat import prepare

    with quiet():
        with spinner("loading"):
            models = load_models(model, None, trust_remote_code=trust_remote_code)
        given = to_device(models.model, prepare(models.processor, shown, text))
        report: Any = vlmprune.find_sinks(models.model, tau=threshold, **given)
        if plot is not None:
            save(report.plot(shown, layer=chosen), plot)
    if json:
        print_json({"model": models.name, "question": text, **report.to_dict()})
        return
    console().print(f"{models.name}: {text}", str(report), sep="\n")
    if plot is not None:
        console().print(f"The plot: {plot}")
