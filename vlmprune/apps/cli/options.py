"""Options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
LayerOption = Annotated[
    str | None,
    typer.Option(
        "--layer",
        metavar="K",
        show_default="the method's own",
        help="Drop tokens just before decoder layer K: a whole number, or a share of the layers like 0.5.",
    ),
]
MaxNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", metavar="N", help="The longest answer, in tokens.")
]
RepeatsOption = Annotated[
    int, typer.Option("--repeats", metavar="N", help="Timed runs, after one to warm up; the median is reported.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]
