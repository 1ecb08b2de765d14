"""Options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...errors import VlmpruneError

LAST_PORT = 65_535

ImageArgument = Annotated[
    Path | None, typer.Argument(metavar="IMAGE", show_default=False, help="An image file; none: a bundled one.")
]
QuestionArgument = Annotated[
    str | None, typer.Argument(metavar="QUESTION", show_default=False, help="What to ask about the image.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="ID_OR_DIR", show_default="the bundled pair", help="A Hugging Face image-text model."
    ),
]
GuideOption = Annotated[
    str | None,
    typer.Option(
        "--guide", metavar="ID_OR_DIR", show_default=False, help="The small model, for methods that need one."
    ),
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model; off by default.")
]
KeepOption = Annotated[
    str | None,
    typer.Option(
        "--keep",
        metavar="K",
        show_default="the method's own",
        help="What to keep of each image: a fraction like 0.25, or a number of tokens. 1 is one token, 1.0 all.",
    ),
]
HostOption = Annotated[
    str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; 0.0.0.0 lets other machines in.")
]
LayerOption = Annotated[
    str | None,
    typer.Option(
        "--layer",
        metavar="K",
        show_default="the method's own",
        help="Drop tokens just before decoder layer K: a whole number, or a fraction of the layers like 0.5.",
    ),
]
MaxNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", metavar="N", help="The longest answer, in tokens.")
]
RepeatsOption = Annotated[
    int, typer.Option("--repeats", metavar="N", help="Timed runs, after one to warm up; the median is reported.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]


def check_port(port: int) -> None:
    """Refuse a port that nothing can listen on."""
    if not 1 <= port <= LAST_PORT:
        raise VlmpruneError(f"--port must be a number from 1 to {LAST_PORT:,}, got {port}")
