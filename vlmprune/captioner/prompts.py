"""What the models are asked, in our own words; questions are fields, for models with a small vocabulary."""

from dataclasses import dataclass

from ..errors import VlmpruneError


@dataclass(frozen=True)
class Prompts:
    """Questions to the vision-language model.

    `describe` asks for everything in an image, `short` for one sentence, `verify` whether a `{sentence}` is true,
    `yes` and `no` are the two answers to it, `boxes` asks for objects with boxes on a scale from 0 to `{scale}`.

    Raises:
        VlmpruneError: an empty text, a placeholder missing in `verify`, or one that is not `{scale}` in `boxes`.
    """

    describe: str = "Describe this image in detail."
    short: str = "Describe this image in one short sentence."
    verify: str = 'Look at the image. Is this statement about it true? "{sentence}" Answer with yes or no only.'
    yes: str = "yes"
    no: str = "no"
    boxes: str = (
        "List the main objects in this image. Answer with JSON only: a list of entries like "
        '{{"label": "name", "box": [x0, y0, x1, y1]}}, coordinates from 0 (left, top) to {scale} (right, bottom).'
    )

    def __post_init__(self) -> None:
        for name, text in vars(self).items():
            if not isinstance(text, str) or not text.strip():
                raise VlmpruneError(f"The prompt {name}={text!r} is empty; give it a text.")
        if "{sentence}" not in self.verify:
            raise VlmpruneError(f"The prompt verify={self.verify!r} lacks {{sentence}}; put it where that goes.")
        try:
            self.boxes.format(scale=1000)
        except (KeyError, IndexError, ValueError):
            raise VlmpruneError(f"The prompt boxes={self.boxes!r} has braces beside {{scale}}; double them.") from None


BUNDLED = Prompts(
    # The words and question forms of vlmprune.tiny; the pair has seen no others.
    short="Describe the image.",
    verify="Is this true: there is {sentence} ?",
    boxes="What is in the image?",
)

SYSTEM = (
    "You edit descriptions of one picture that you cannot see. Use only what the numbered sentences say, add nothing, "
    "and answer with one JSON object and no other text."
)

GROUP = """Several people described the same part of a picture. Each line below is one sentence: its number, the number
of the describer, the text.

{sentences}

Sort every sentence into exactly one of three kinds:
- "similar": two or more describers say the same. Give the numbers, and one sentence that says it all.
- "contradictory": they give the same property of the same object different values. Give the numbers. That one leaves a
  property out is no contradiction.
- "unique": only one describer says it. Give its number.
Use each number once and leave none out."""

MERGE = """These sentences about one part of a picture were checked. Rewrite them as a short fluent description.

{sentences}

Give a list of sentences; with each, the numbers of the sentences above that it says. Use every number at least once,
keep every fact, add none."""

FUSE = """These are checked sentences about one picture. Each line is its number, the region it describes with its box
(left, top, right, bottom as shares of the picture), and the text. The region "image" is the picture as a whole, seen
less closely.

{sentences}

Write one description of the whole picture. Where a region and "image" disagree, believe the region. Name no object
twice: regions overlap. Give a list of sentences, with each the numbers it says, and a list "dropped" of the numbers you
leave out, each with the reason. Use every number in one of the two lists."""

OBJECTS = """A caption of a picture: {caption}

Object classes: {classes}

Which of these classes does the caption speak of? Copy their names from the list; an empty list is a right answer."""

RETRY = "That reply cannot be used: {problem} Answer again with one JSON object of the asked form and nothing else."
