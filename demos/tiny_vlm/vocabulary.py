"""The world of the bundled pair: what a scene may hold, how a question is put, every word of the tokenizer."""

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
    "relation": ("Is the {a} {r} the {b}?",),
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
    "judge": ("Is this true: there is {s} ?",),
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

# Words that users and easy-vqa use but no template of ours holds, plus a few spare ones.
EXTRA_WORDS = (
    "not no yes contain does shape shapes present one ones thing things something anything grey square squares "
    "picture photo this that it an and are both all any or with without many most least highest lowest largest "
    "smallest closest same different than more fewer sum true false please answer question user assistant "
    "background plain noise gradient stripes none sign letter of to do you see show tell me about"
)

# Of the questions about clips; behind all others, so that those keep their numbers.
CLIP_WORDS = (
    "<video> way move moves up down stay stays first last appear appears before after change changes blink blinks "
    "times end start beginning"
)

SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>", "<image>", "<ans>")
PUNCTUATION = (".", ",", "?", ":", "!", "'", '"', "-")


def words() -> list[str]:
    """Every word of the tokenizer in a fixed order, special tokens first."""
    text = " ".join(t for group in TEMPLATES.values() for t in group).replace("{", " {")
    seen: dict[str, None] = dict.fromkeys(SPECIAL + PUNCTUATION)
    seen.update(dict.fromkeys(str(d) for d in range(10)))
    plain = [*SHAPES, *PLURALS, *PLURALS.values(), *COLOURS, *SIZES, *SUPERLATIVES, *TEXTURES]
    plain += " ".join(" ".join(row) for row in POSITIONS).split() + " ".join(RELATIONS).split()
    for mark in "?.:":
        text = text.replace(mark, " ")
    plain += [w for w in text.split() if "{" not in w and "}" not in w]
    plain += ["a", "object", "at", "digit", "the", *EXTRA_WORDS.split()]
    seen.update(dict.fromkeys(w.lower() for w in plain))
    seen.update(dict.fromkeys(CLIP_WORDS.split()))
    return list(seen)


IDS = {word: i for i, word in enumerate(words())}
