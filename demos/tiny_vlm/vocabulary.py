"""Every word of the bundled pair's tokenizer."""

from __future__ import annotations

from vlmprune.tiny.vocabulary import (
    COLOURS,
    PLURALS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    SUPERLATIVES,
    TEMPLATES,
    TEXTURES,
)

# Words that users and easy-vqa use but no template of ours holds, plus a few spare ones.
EXTRA_WORDS = (
    "not no yes contain does shape shapes present one ones thing things something anything grey square squares "
    "picture photo this that it an and are both all any or with without many most least highest lowest largest "
    "smallest closest same different than more fewer sum true false please answer question user assistant "
    "background plain noise gradient stripes none sign letter of to do you see show tell me about"
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
    return list(seen)


IDS = {word: i for i, word in enumerate(words())}
