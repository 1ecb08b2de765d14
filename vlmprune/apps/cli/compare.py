"""``vlmprune compare``: methods and budgets in one table, on one question, on held-out ones or on a user's own."""

import json as formats
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import VlmpruneError
from ...harness.baselines import BASELINES, BUDGETS, CHANCE, by_chance, held_out
from ...harness.format import console, note, print_json, spinner, table
from ...harness.models import load_models, quiet
from . import options
from .ask import prompt

if TYPE_CHECKING:
    from ...harness.comparison import Comparison
    from ...harness.own_data import OwnQuestion

SHOWN = 10  # answers that changed; the gallery has all


def compare(
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="The file of an image or a video; none: a bundled image.")
    ] = None,
    question: options.Question = None,
    questions: Annotated[
        int | None,
        options.count("Instead of one question: N held-out ones bundled with the pair, with accuracy."),
    ] = None,
    data: Annotated[
        Path | None,
        options.text("FILE", "Your own questions: a JSONL or CSV file with image or video, question and answers."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "--methods",
            metavar="NAME",
            show_default="the usual ones",
            help="A method beside the baselines; may be repeated.",
        ),
    ] = None,
    keep: Annotated[
        list[float] | None,
        options.amount(
            "K",
            "A budget: a fraction of each image's tokens, or a number of tokens; may be repeated.",
            shown=", ".join(map(str, BUDGETS)),
        ),
    ] = None,
    layer: options.Layer = None,
    model: options.Model = None,
    guide: options.Guide = None,
    frames: Annotated[
        int | None,
        options.count("Of each video: so many evenly spaced frames.", shown="32 of a file; 8 of one without --model"),
    ] = None,
    scorer: Annotated[
        str | None, options.text("NAME", "With --data: how answers are scored: exact, contains, number, ...")
    ] = None,
    out: Annotated[
        Path | None,
        options.text(
            "DIR",
            "Where answers and the gallery go; the same command goes on there.",
            shown="with --data FILE-compare, else none",
        ),
    ] = None,
    seed: Annotated[int, options.count("Draws the random method's tokens and the questions.", least=0)] = 0,
    max_new_tokens: options.MaxNewTokens = 32,
    repeats: Annotated[
        int | None,
        options.count("How often each question is asked; the median time counts.", shown="3 for one question, else 1"),
    ] = None,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Compare methods and budgets with the unpruned model, the small one alone and simple baselines."""
    from ...harness.answer_book import AnswerBook
    from ...harness.compare import USUAL, ComparedMethods, compared_on
    from ...harness.own_media import is_clip
    from ...harness.record import write_text

    if data is not None and (image is not None or question is not None or questions is not None):
        raise VlmpruneError("--data holds the images and questions; leave out IMAGE, QUESTION and --questions")
    if data is None and scorer is not None:
        raise VlmpruneError("--scorer goes with --data; name a file of questions there")
    if questions is not None and not (image is None and question is None and model is None):
        raise VlmpruneError("--questions are made for the bundled pair; leave out the image and --model")
    guided = model is None or guide is not None
    usual = [name for name in (BASELINES if data is None else (*USUAL, "sgl")) if guided or not name.startswith("sgl")]
    with quiet():
        # Bad options and bad data are reported before anything is loaded.
        asked = ComparedMethods(method or usual, keep or BUDGETS, guided=guided, layer=layer, seed=seed)
        with spinner("reading"):
            asking = asked_about(
                image, question, questions, data, scorer=scorer, frames=frames, seed=seed, tiny=model is None
            )
        folder = out if data is None else out or Path(f"{data.stem}-compare")
        with AnswerBook(folder) as book:
            with spinner("loading"):
                clips = all(is_clip(one) for question in asking for one in question.media)
                models = load_models(model, guide, trust_remote_code=trust_remote_code, video=clips)
            single = data is questions is None
            try:
                found = compared_on(
                    asking, models, asked, max_new_tokens=max_new_tokens, book=book, repeats=repeats or 3 * single or 1
                )
            except KeyboardInterrupt:
                if folder is not None:
                    note(f"the answers so far are in {str(folder)!r}; the same command goes on there")
                raise
        if questions is not None:
            found = replace(found, about={**found.about, CHANCE: by_chance([one.answers[0] for one in asking])})
        gallery = None
        if folder is not None:
            gallery = found.to_html(folder / "gallery.html")
            write_text(folder / "comparison.json", formats.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n")
    if json:
        print_json(found.to_dict())
    else:
        show(found, gallery)


def asked_about(
    image: Path | None,
    question: str | None,
    count: int | None,
    data: Path | None,
    *,
    scorer: str | None,
    frames: int | None,
    seed: int,
    tiny: bool,
) -> "list[OwnQuestion]":
    """The questions of a file, `count` held-out ones, or one whose right answer nobody knows.

    `tiny`: a bundled pair is asked.
    """
    from ...harness.own_data import OwnQuestion, read_questions
    from ...harness.own_media import in_memory

    if data is not None:
        return read_questions(data, scorer=scorer, frames=frames)
    if count is not None:
        return read_questions(held_out(count, seed), frames=frames)
    shown, text = prompt(image, question, frames, tiny)
    return [OwnQuestion("", (in_memory(shown),), text, ())]


def show(found: "Comparison", gallery: Path | None) -> None:
    """The table, the answers that changed, a recommendation, and what the numbers mean."""
    title = None if found.scored else found.questions[0].question
    rows = table(found.columns, left=(0, 1) if found.scored else (0, 1, 2), title=title)
    for cells in found.table(short=True):
        rows.add_row(*cells)
    screen = console()
    screen.print(rows)
    if found.scored:
        for line in changes(found.changed):
            screen.print(line)
        screen.print(found.recommendation)
    screen.print(*found.notes, "", found.caption + ".", found.circumstances, sep="\n")
    if gallery is not None:
        screen.print(f"Gallery: {gallery}")


def changes(changed: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The first of the answers that scored otherwise, a line each, and how many others changed."""
    scored = [one for one in changed if one["score_after"] != one["score_before"]]
    for one in scored[:SHOWN]:
        where = f"{one['where']} {one['question']!r:.60}"
        name = one["method"] if one["keep"] is None else f"{one['method']} at {one['keep']}"
        fate = "lost" if one["score_after"] < one["score_before"] else "gained"
        yield f"{where}, {name}: {one['after']!r:.60} for {one['before']!r:.60} ({fate})"
    if len(scored) > SHOWN:
        yield f"... and {len(scored) - SHOWN} more that scored otherwise, see the gallery"
    if other := len(changed) - len(scored):
        yield f"{other} pruned answers changed in words and not in score"
    if changed:
        yield ""
