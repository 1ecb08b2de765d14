"""``vlmprune export-vllm``: the bundled model in a folder that vLLM can load."""

from pathlib import Path
from typing import Annotated

import typer

from ...errors import VlmpruneError
from ...harness.format import note
from ...harness.models import quiet


def export_vllm(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; is made.", show_default=False)],
) -> None:
    """Write the bundled large model as vLLM reads it."""
    if folder.exists() and not folder.is_dir():
        raise VlmpruneError(f"{str(folder)!r} is a file; name a folder.")
    from ... import load_tiny
    from ...serving.export import save_for_vllm

    with quiet():
        large, _, processor = load_tiny()
        save_for_vllm(large, folder, processor)
    note(f"written to {folder}")
