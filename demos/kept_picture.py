"""The README's first image, drawn by

    python -m demos.kept_picture --out docs/images/kept.png

One picture with all of its visual tokens, with 25 % and with 10 %, its answers and costs.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import vlmprune

METHODS = {
    1.0: lambda guide: vlmprune.Unpruned(),
    0.25: lambda guide: vlmprune.SGL(guide, keep=0.25),
    0.1: lambda guide: vlmprune.SGL(guide, keep=0.1),
}
SIDE, TEXT, GAP = 336, 64, 12


def panels() -> list[tuple[Image.Image, list[str]]]:
    """Per budget the picture with dropped tokens dark, and what is written below it."""
    large, small, processor = vlmprune.load_tiny()
    image, question = vlmprune.tiny.example()
    found = []
    for keep in METHODS:
        with vlmprune.wrap(large, METHODS[keep](small), processor=processor) as pruned:
            answer = pruned.ask(image, question, max_new_tokens=4)
            report = answer.report
        shown = report.overlay(image.resize((SIDE, SIDE), Image.Resampling.NEAREST))
        flops = (report.prefill_flops + (report.guide_flops or 0)) / report.prefill_flops_full
        cache = report.kv_bytes / report.kv_bytes_full
        guided = "" if report.guide_flops is None else " (guide included)"
        lines = [
            f"{report.kept_tokens[0]} of {report.visual_tokens[0]} visual tokens: “{answer.text}”",
            f"FLOPs {flops:.0%}{guided}, KV cache {cache:.0%}",
        ]
        found.append((shown, lines))
    return found


def picture() -> Image.Image:
    """All panels beside each other, the question above."""
    shown = panels()
    width = len(shown) * SIDE + (len(shown) + 1) * GAP
    sheet = Image.new("RGB", (width, SIDE + 2 * TEXT), "white")
    draw = ImageDraw.Draw(sheet)
    title, small = ImageFont.load_default(22), ImageFont.load_default(16)
    draw.text((GAP, TEXT // 2 - 12), vlmprune.tiny.example()[1], "black", title)
    for number, (image, lines) in enumerate(shown):
        left = GAP + number * (SIDE + GAP)
        sheet.paste(image, (left, TEXT))
        for row, line in enumerate(lines):
            draw.text((left, TEXT + SIDE + 8 + row * 24), line, "black", small)
    return sheet


def main() -> None:
    """Write the image."""
    parser = argparse.ArgumentParser(prog="python -m demos.kept_picture", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a PNG file")
    picture().save(parser.parse_args().out, optimize=True)


if __name__ == "__main__":
    main()
