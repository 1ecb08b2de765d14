"""How the page looks: calm, with system fonts only (nothing is fetched), in light and dark, down to phone widths."""

from __future__ import annotations

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


CSS = """
.gradio-container { max-width: 1080px !important; margin-inline: auto !important; }
.gradio-container :focus-visible { outline: 3px solid var(--primary-500) !important; outline-offset: 2px; }
.vp-head h1 { font-size: 1.5rem; font-weight: 650; margin: 0.4rem 0 0.1rem; }
.vp-head p { color: var(--body-text-color-subdued); margin: 0; }
.vp-alert, .vp-note { margin: 0.4rem 0 0; padding: 0.6rem 0.9rem; border-radius: 8px; border-left: 4px solid; }
.vp-alert { background: color-mix(in srgb, #c2410c 12%, transparent); border-color: #c2410c; }
.vp-note { background: color-mix(in srgb, var(--primary-500) 10%, transparent); border-color: var(--primary-500); }
.vp-grid { display: grid; gap: 0.9rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); }
.vp-small-grid .vp-grid { grid-template-columns: repeat(auto-fill, minmax(min(46%, 9.5rem), 1fr)); }
.vp-card { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 0.8rem 1rem;
  background: var(--block-background-fill); }
.vp-card h3 { font-size: 0.85rem; font-weight: 600; margin: 0; color: var(--body-text-color-subdued); }
.vp-answer { font-size: 1.15rem; font-weight: 600; margin: 0.25rem 0 0.5rem; min-height: 1.6em;
  overflow-wrap: anywhere; }
.vp-card[aria-busy] .vp-answer::after { content: "\\2026"; opacity: 0.6; }
.vp-card dl { margin: 0; font-size: 0.88rem; }
.vp-card dl div { display: flex; justify-content: space-between; gap: 1rem; padding: 0.12rem 0; }
.vp-card dt { color: var(--body-text-color-subdued); }
.vp-card dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
.vp-figure { margin: 0; }
.vp-figure img { width: 100%; max-width: 420px; height: auto; border-radius: 8px; display: block; }
.vp-figure figcaption { font-size: 0.85rem; color: var(--body-text-color-subdued); margin-top: 0.35rem; }
.vp-bars { width: 100%; border-collapse: collapse; font-size: 0.88rem; }
.vp-bars, .vp-bars *, .vp-table, .vp-table * { border: 0 !important; }
.vp-table tr { border-bottom: 1px solid var(--border-color-primary) !important; }
.vp-bars caption { text-align: left; font-weight: 600; padding: 0.5rem 0 0.25rem; }
.vp-bars th, .vp-bars td { padding: 0.15rem 0; text-align: left; }
.vp-bars th { font-weight: 400; width: 9.5rem; padding-right: 0.7rem; overflow-wrap: anywhere; }
.vp-bar { display: flex; align-items: center; gap: 0.6rem; }
.vp-track { flex: 1; height: 0.7rem; border-radius: 4px; background: var(--border-color-primary); overflow: hidden; }
.vp-fill { display: block; height: 100%; background: var(--primary-600); border-radius: 4px; }
.vp-number { width: 7.2rem; text-align: right; font-variant-numeric: tabular-nums; }
.vp-grid .vp-bars th { width: auto; white-space: nowrap; }
.vp-grid .vp-number { width: auto; min-width: 3.2rem; white-space: nowrap; }
.vp-scroll { overflow-x: auto; }
.vp-table { width: 100%; border-collapse: collapse; font-size: 0.88rem; }
.vp-table th, .vp-table td { text-align: left; padding: 0.35rem 0.6rem 0.35rem 0; vertical-align: top; }
.vp-table .vp-num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.vp-tree, .vp-tree ul { list-style: none; margin: 0; padding-left: 0.9rem;
  border-left: 2px solid var(--border-color-primary); }
.vp-tree { padding-left: 0; border: 0; }
.vp-tree li { margin: 0.3rem 0; }
.vp-patch { font-weight: 600; }
.vp-swatch { display: inline-block; width: 0.75rem; height: 0.75rem; border-radius: 3px; margin-right: 0.4rem; }
.vp-said { font-size: 0.92rem; }
.vp-dropped .vp-words { text-decoration: line-through; color: var(--body-text-color-subdued); }
.vp-why { color: var(--body-text-color-subdued); font-size: 0.83rem; }
@media (max-width: 640px) {
  .vp-bars th { width: 6.5rem; } .vp-number { width: 5.6rem; }
  .gradio-container { padding-inline: 0.6rem !important; }
}
@media (prefers-reduced-motion: reduce) {
  .gradio-container * { animation: none !important; transition: none !important; }
}
"""

# Gradio shows an uploaded picture with an empty alternative text.
SCRIPT = """
() => {
  const name = () => document.querySelectorAll('[id$="-picture"] img[alt=""]').forEach(
    image => { image.alt = "The picture that is asked about"; });
  new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
  document.documentElement.lang = "en";
  name();
}
"""
