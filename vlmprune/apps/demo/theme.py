"""How the page looks: calm, with system fonts only (nothing is fetched), in light and dark, down to phone widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

FONTS = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
MONO = ["ui-monospace", "Consolas", "monospace"]


def theme() -> Any:
    """Quiet greys and one accent."""
    return gr.themes.Base(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=MONO
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        # Slate 400, the default, has a contrast of 2.6 on white; small print needs 4.5.
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        checkbox_border_color_dark="*neutral_400",
        block_shadow="none",
        block_shadow_dark="none",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )


CSS, SCRIPT = (Path(__file__).with_suffix(kind).read_text() for kind in (".css", ".js"))
