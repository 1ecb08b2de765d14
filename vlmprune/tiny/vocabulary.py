"""The closed world of the bundled pair: what a scene may hold, and how a question is put."""

from __future__ import annotations

PATCH = 8
GRID = 14
CANVAS = PATCH * GRID

SHAPES = ("circle", "rectangle", "triangle", "star", "cross", "ring", "diamond", "tile")
PLURALS = {s: s + "s" for s in SHAPES} | {"cross": "crosses", "object": "objects"}

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

TEXTURES = ("plain", "noise", "gradient", "stripes")

# 5 x 7 glyphs, own drawing. Scaled to 20-28 px their strokes are 3-4 px wide.
GLYPHS = {
    0: ("01110", "10001", "10001", "10001", "10001", "10001", "01110"),
    1: ("00100", "01100", "00100", "00100", "00100", "00100", "01110"),
    2: ("11110", "00001", "00001", "01110", "10000", "10000", "11111"),
    3: ("11111", "00001", "00010", "00110", "00001", "00001", "11110"),
    4: ("10010", "10010", "10010", "11111", "00010", "00010", "00010"),
    5: ("11111", "10000", "10000", "11110", "00001", "00001", "11110"),
    6: ("00110", "01000", "10000", "11110", "10001", "10001", "01110"),
    7: ("11111", "00001", "00001", "00010", "00100", "00100", "00100"),
    8: ("01110", "10001", "10001", "01110", "10001", "10001", "01110"),
    9: ("01110", "10001", "10001", "01111", "00001", "00010", "01100"),
}

TEMPLATES: dict[str, tuple[str, ...]] = {
    "colour": (
        "What colour is the {d}?",
        "What color is the {d}?",
        "What is the colour of the {d}?",
        "What is the color of the {d}?",
        "Which colour does the {d} have?",
        "Which color does the {d} have?",
    ),
    "shape": (
        "What shape is the {d}?",
        "What is the shape of the {d}?",
        "Which shape does the {d} have?",
    ),
    "existence": (
        "Is there a {x}?",
        "Is a {x} present?",
        "Is there a {x} in the image?",
        "Does the image contain a {x}?",
        "Can you see a {x}?",
    ),
    "count": (
        "How many {xs} are there?",
        "How many {xs} are in the image?",
        "How many {xs} can you see?",
        "What is the number of {xs}?",
    ),
    "relation": (
        "Is the {a} {r} the {b}?",
    ),
    "position": (
        "Where is the {d}?",
        "Where in the image is the {d}?",
        "What is the position of the {d}?",
    ),
    "digit": (
        "What digit is on the {d}?",
        "Which digit is on the {d}?",
        "What number is on the {d}?",
        "Which digit does the {d} show?",
    ),
    "caption": (
        "Describe this image in detail.",
        "Describe the image.",
        "What is in the image?",
    ),
    "judge": (
        "Is this true: there is {s} ?",
    ),
}

RELATIONS = {
    "left of": (-1, 0),
    "to the left of": (-1, 0),
    "right of": (1, 0),
    "to the right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}

SUPERLATIVES = {"leftmost": (-1, 0), "rightmost": (1, 0), "topmost": (0, -1), "bottommost": (0, 1)}
