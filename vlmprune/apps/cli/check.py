"""``vlmprune check``: is pruning exact on a model? Pruned against masked, in seconds."""

from typing import Annotated

import typer

from ...harness.format import console, print_json, spinner
from ...harness.models import load_models, quiet
from . import options


def check(
    model: options.Model = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(metavar="K", help="Drop tokens before decoder layer K; may be given more than once."),
    ] = None,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Check that pruning computes on a model what hiding the same tokens does; status 1 where it does not."""
    import vlmprune

    with quiet():
        with spinner("loading"):
            models = load_models(model, None, trust_remote_code=trust_remote_code)
        with spinner("comparing"):
            report = vlmprune.check(models.model, models.processor, layer or None)
    if json:
        print_json({"model": models.name, **report.to_dict()})
    else:
        console().print(str(report))
    if not report.ok:
        raise typer.Exit(1)
