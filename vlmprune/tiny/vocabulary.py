"""The words of the bundled pair's world: its closed set of things, colours, sizes and places."""

from __future__ import annotations

SHAPES = ("circle", "rectangle", "triangle", "star", "cross", "ring", "diamond", "tile")

# easy-vqa's eight colours, so that its questions need no second palette.
COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (18, 18, 18),
    "teal": (0, 140, 140),
    "brown": (150, 66, 34),
    "gray": (128, 128, 128),
    "red": (228, 24, 24),
    "green": (20, 150, 30),
    "blue": (30, 50, 228),
    "yellow": (245, 228, 30),
}

# Longest side in pixels; gaps between the classes keep the words unambiguous.
SIZES = {"small": (12, 16), "medium": (21, 27), "large": (33, 43)}

POSITIONS = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)

# (row, column) of each.
CELLS = {name: (row, column) for row, names in enumerate(POSITIONS) for column, name in enumerate(names)}
