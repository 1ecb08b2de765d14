"""``vlmprune demo``: a web page on this machine to try everything."""

import warnings
from typing import Annotated

import typer

from ...harness.format import note, spinner
from ...harness.models import load_models, quiet
from . import options


def demo(
    model: options.Model = None,
    guide: options.Guide = None,
    host: options.Host = "127.0.0.1",
    port: Annotated[
        int | None,
        options.count("The port to listen on.", shown="the first free one from 7860", most=65_535),
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Make a public address through Gradio's servers; off by default.")
    ] = False,
    trust_remote_code: options.Trust = False,
) -> None:
    """Serve a page to ask, compare and caption, and to see what was dropped and what it cost. Ctrl-C ends it."""
    from ...hf.imports import uncollected
    from ..demo.app import LOOPBACK, check_address, check_gradio, serve

    with uncollected():
        # Report bad addresses before loading anything.
        check_gradio()
        check_address(host, port)
        with quiet():
            with spinner("loading"):
                models = load_models(model, guide, trust_remote_code=trust_remote_code)
            from ..demo.engine import Engine

            engine = Engine(models)
            with spinner("warming up"):
                engine.warm_up()
    if host not in LOOPBACK:
        note(f"warning: --host {host} lets everyone who can reach this machine use the models")
    # The page says it beside the answer; whoever started it did not ask.
    warnings.filterwarnings("ignore", "The tokenizer does not know", UserWarning)
    serve(engine, note, host=host, port=port, share=share)
