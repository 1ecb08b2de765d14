"""``vlmprune caption``: a detailed, checked caption of one image, or of every image in a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import VlmpruneError
from ...harness.format import console, facts, note, print_json, spinner
from ...harness.models import Models, build_captioner, load_models, make, quiet
from ...harness.parse import writable_image
from . import options
from .ask import prompt, save

if TYPE_CHECKING:
    from ...captioner import Caption

KEY = "VLMPRUNE_API_KEY"
OUT = Path("captions")


def caption(
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE_OR_FOLDER", help="An image file or a folder of them.")
    ] = None,
    out: Annotated[
        Path | None,
        options.text("DIR", "Where the captions of a folder go; a run that was stopped goes on there.", shown=str(OUT)),
    ] = None,
    method: Annotated[str, options.text("NAME", options.HOW)] = "none",
    keep: options.Keep = None,
    layer: options.Layer = None,
    model: options.Model = None,
    guide: options.Guide = None,
    samples: Annotated[int, options.count("Descriptions of each patch.")] = 3,
    filtering: Annotated[
        bool, typer.Option("--filter/--no-filter", help="Drop sentences that do not fit the image.")
    ] = True,
    max_new_tokens: Annotated[
        int | None, options.count("The longest description, in tokens.", shown="512; the bundled pair: 128")
    ] = None,
    aggregator: Annotated[
        str | None,
        options.text(
            "URL",
            f"An OpenAI-compatible endpoint that merges sentences; its key is read from {KEY}.",
            shown="by words, without a language model",
        ),
    ] = None,
    aggregator_model: Annotated[str | None, options.text("NAME", "The model to ask there.")] = None,
    overlay: options.Overlay = None,
    seed: Annotated[int, typer.Option(help="Draws the descriptions.")] = 0,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Caption an image, or a folder of them: describe patches, drop what does not fit, merge the rest."""
    folder = image is not None and image.is_dir()
    if not folder and out is not None:
        raise VlmpruneError("--out is for the captions of a folder; leave it out, or name a folder")
    if folder and overlay is not None:
        raise VlmpruneError("--overlay is for one image; leave it out, or name an image instead of the folder")
    writable_image(overlay, source=image)
    if (aggregator is None) != (aggregator_model is None):
        raise VlmpruneError("--aggregator and --aggregator-model belong together; give both or neither")
    shown: Any = None if folder else prompt(image, "Describe it.")[0]
    budget: dict[str, Any] = {"keep": keep, "layer": layer}
    changes = {"samples": samples, "max_new_tokens": max_new_tokens, "filter": filtering}
    with quiet():
        make(method, guide=guide, **budget)  # report bad options before loading anything
        writer = None
        if aggregator is not None and aggregator_model is not None:
            from ...captioner import EndpointAggregator

            writer = EndpointAggregator(aggregator, aggregator_model, os.environ.get(KEY))
        with spinner("loading"):
            models = load_models(model, guide, trust_remote_code=trust_remote_code)
            captioner = build_captioner(models, make(method, models, **budget), writer, changes, seed)
        if folder:
            assert image is not None
            records = captioner.map(image, out or OUT, progress=True)
        else:
            with spinner("describing"):
                result = captioner(shown)
            if overlay is not None:
                save(result.overlay(), overlay)
    if folder:
        tell(records, out or OUT, json)
    elif json:
        print_json(result.to_dict())
    else:
        show(result, models, method)
        if overlay is not None:
            console().print(f"The patches: {overlay}")


def tell(records: list[dict[str, Any]], out: Path, json: bool) -> None:
    """Print the captions of a folder and the images that failed, which end in status 2; an error if all did."""
    failed = [record for record in records if "error" in record]
    if len(failed) == len(records):
        raise VlmpruneError(f"none of {len(records)} images could be captioned; the first: {failed[0]['error']}")
    for record in failed:
        note(f"{record['path']} failed: {record['error']}")
    if json:
        print_json(records)
    else:
        screen = console()
        for record in records:
            if "error" not in record:
                screen.print(f"{Path(record['path']).name}: {record['text']}")
        screen.print(f"{len(records) - len(failed)} of {len(records)} captions in {out}")
    if failed:
        raise typer.Exit(2)  # the same command tries them again


def show(result: Caption, models: Models, method: str) -> None:
    """Print the caption, its tree and its cost."""
    screen = console()
    screen.print(result.text or "(no sentence of the model fits the image)", style="bold")
    screen.print("", str(result.tree), "", sep="\n")
    for name, value in facts(result):
        screen.print(f"{name}: {value}")
    screen.print(f"{models.name}, method {method}")
