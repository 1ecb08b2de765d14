"""Options that several commands share, and the parsers of their values."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ...harness.parse import number


def text(metavar: str, help: str, *, shown: bool | str = True) -> Any:
    """An option that takes a name, an address or a path; `shown` replaces the default in its help."""
    return typer.Option(metavar=metavar, show_default=shown, help=help)


def parsed(help: str, wanted: str, read: Callable[[str], Any], metavar: str, shown: bool | str = True) -> Any:
    """An option parsed by `read`, which raises ValueError; `shown` replaces the default in its help."""

    def parse(text: Any) -> Any:
        try:
            return read(str(text))
        except ValueError:
            raise typer.BadParameter(f"must be {wanted}, got {str(text)!r}") from None

    return typer.Option(parser=parse, metavar=metavar, show_default=shown, help=help)


def count(help: str, *, shown: bool | str = True, least: int = 1, most: float = math.inf) -> Any:
    """An option that takes a whole number in this range."""

    def read(text: str) -> int:
        if least <= int(text) <= most:
            return int(text)
        raise ValueError

    wanted = f"a whole number of {least} or more" if most == math.inf else f"a number from {least} to {most:,}"
    return parsed(help, wanted, read, "N", shown)


def amount(metavar: str, help: str, *, shown: bool | str = True) -> Any:
    """An option that takes a number: ``1`` is an int (one token), ``1.0`` a float (all tokens)."""
    return parsed(help, "a whole number or a fraction like 0.25", number, metavar, shown)


HOW = "How to prune; `vlmprune methods` lists the names."
Image = Annotated[Path | None, typer.Argument(metavar="IMAGE", help="An image file; none: a bundled one.")]
Question = Annotated[str | None, typer.Argument(metavar="QUESTION", help="What to ask about the image.")]
Model = Annotated[str | None, text("ID_OR_DIR", "A Hugging Face image-text model.", shown="the bundled pair")]
Guide = Annotated[str | None, text("ID_OR_DIR", "The small model, for methods that need one.")]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model; off by default.")
]
Keep = Annotated[
    float | None,
    amount(
        "K",
        "What to keep of each image: a fraction like 0.25, or a number of tokens. 1 is one token, 1.0 all.",
        shown="the method's own",
    ),
]
Layer = Annotated[
    float | None,
    amount(
        "K",
        "Drop tokens just before decoder layer K: a whole number, or a fraction of the layers like 0.5.",
        shown="the method's own",
    ),
]
Overlay = Annotated[Path | None, text("FILE.png", "Save the image with what was found drawn in.")]
Host = Annotated[str, text("ADDRESS", "Where to listen; 0.0.0.0 lets other machines in.")]
MaxNewTokens = Annotated[int, count("The longest answer, in tokens.")]
Repeats = Annotated[int, count("Timed runs, after one to warm up; the median is reported.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]


class SpacedLists(TyperCommand):
    """With `--data`, where no argument stands by itself, lists may be written `--methods a b --keep 0.5,0.25` too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if any(word.partition("=")[0] == "--data" for word in args):
            args = list(one_by_one(args, ("--method", "--methods", "--keep")))
        return super().parse_args(ctx, args)


def one_by_one(words: list[str], names: tuple[str, ...]) -> Iterator[str]:
    """The words of a command line with each of several values behind its option's name again."""
    option, first = "", False
    for word in words:
        name, _, value = word.partition("=")
        if name in names:
            option, first = name, not value
            yield from (part for one in value.split(",") if one for part in (name, one))
        elif option and (first or not word.startswith("-")):
            # An empty word stays one, to be refused as any other name that is none.
            yield from (part for one in [one for one in word.split(",") if one] or [""] for part in (option, one))
            first = False
        else:
            option = ""
            yield word
