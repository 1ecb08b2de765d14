"""``vlmprune sinks``: where a model's attention sinks are for one image, as a table and as a plot."""

from pathlib import Path
from typing import Annotated, Any

from ...errors import VlmpruneError
from ...harness.format import console, print_json, spinner
from ...harness.models import load_models, quiet
from ...harness.parse import writable_image
from . import options
from .ask import prompt, save


def sinks(
    image: options.Image = None,
    question: options.Question = None,
    plot: Annotated[
        Path | None,
        options.text("FILE.png", "Save the heat map, the norm curve and the sinks per layer."),
    ] = None,
    layer: Annotated[
        int | None, options.count("Layer whose phi the heat map shows.", shown="the highest of all", least=0)
    ] = None,
    tau: Annotated[
        float | None, options.amount("T", "From which phi a token is a sink.", shown="the model's own")
    ] = None,
    model: options.Model = None,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Find the attention sinks of an image: how many, in which layers, and how much attention they take."""
    shown, text = prompt(image, question or ("What is in the picture?" if image else None))
    if layer is not None and plot is None:
        raise VlmpruneError(f"--layer {layer} chooses what the plot shows; name a file with --plot, or leave it out")
    writable_image(plot, source=image)
    import vlmprune

    from ...hf.arguments import to_device
    from ...inputs.chat import prepare

    with quiet():
        with spinner("loading"):
            models = load_models(model, None, trust_remote_code=trust_remote_code)
        given = to_device(models.model, prepare(models.processor, shown, text))
        report: Any = vlmprune.find_sinks(models.model, tau=tau, **given)
        if plot is not None:
            save(report.plot(shown, layer=layer), plot)
    if json:
        print_json({"model": models.name, "question": text, **report.to_dict()})
        return
    console().print(f"{models.name}: {text}", str(report), sep="\n")
    if plot is not None:
        console().print(f"The plot: {plot}")
