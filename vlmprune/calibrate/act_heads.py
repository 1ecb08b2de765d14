"""The head selection of ACT: every (layer, head) alone against none, on the same questions.

The paper keeps the heads in which calibration helps; its code holds only the finished lists.
"""

import json
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..accounting.scores import exact_match
from ..api import PrunedModel, unwrap_peft, wrap
from ..captioner.folder import write_whole
from ..errors import VlmpruneError
from ..families import family_of
from ..hf.hooks import HANDLE
from ..methods.act import ACT, ActEditor
from ..methods.none import Unpruned
from .samples import progress, triples


def calibrate(
    method: ACT,
    model: Any,
    data: Iterable[tuple[Any, str, Any]],
    *,
    processor: Any = None,
    path: str | Path | None = None,
    score: Callable[[str, Any], float] | None = None,
    **generation: Any,
) -> ACT:
    """Find the heads in which calibration helps: every (layer, head) alone against none, on the same questions.

    Args:
        model: a loaded model, or a wrapped model's handle; off meanwhile and wrapped again at the end.
        data: (image, question, right answer or answers), held apart from what is reported later.
        processor: the model's processor; a handle brings its own.
        path: a JSON file that keeps each head's score as it comes, so that a stopped run goes on there.
        score: (answer, answers) -> number, higher is better; None is exact match.
        generation: for `ask`; `max_new_tokens` is 16 unless given.
    Returns:
        The ACT with `heads` set to those whose mean score is above that of the model as it is; maybe none.
    Raises:
        VlmpruneError: no data, no processor, or a file of another run.
    """
    if isinstance(model, PrunedModel):
        model, processor = model.model, model.processor if processor is None else processor
    if processor is None:
        raise VlmpruneError("calibrate() asks the model questions; pass processor=, the model's processor.")
    questions = triples(data)
    plain = unwrap_peft(model)
    every = ActEditor(replace(method, heads=None), family_of(plain), plain)
    heads = [(layer, head) for layer, numbers in every.heads.items() for head in numbers]
    generation = {"max_new_tokens": 16, "do_sample": False, **generation}

    def ask(tried: Any) -> float:
        with wrap(model, tried, processor=processor) as pruned:
            answers = [pruned.ask(image, question, **generation).text for image, question, _ in questions]
        scores = [(score or exact_match)(text, right) for text, (_, _, right) in zip(answers, questions, strict=True)]
        return sum(scores) / len(scores)

    run = {  # what a run must have in common with the one it goes on from
        "beta": method.beta,
        "threshold": method.threshold,
        "model": plain.config.model_type,
        "layers": plain.config.get_text_config().num_hidden_layers,
        "questions": [question for _, question, _ in questions],
    }
    path = Path(path) if path is not None else None
    scores = known_scores(path, run)
    tried = {"none": Unpruned()} | {f"{layer}.{head}": replace(method, heads=((layer, head),)) for layer, head in heads}
    # Off, and so not in the way of the wraps to come; its own comes back afterwards.
    on: PrunedModel | None = plain.__dict__.get(HANDLE)
    with nullcontext() if on is None else on.off():
        for name, one in progress(tried.items(), "calibrating heads"):
            if name not in scores:
                scores[name] = ask(one)
                if path is not None:
                    write_whole(path, json.dumps({"run": run, "scores": scores}, indent=2) + "\n")
    return replace(method, heads=[head for head in heads if scores[f"{head[0]}.{head[1]}"] > scores["none"]])


def known_scores(path: Path | None, run: dict[str, Any]) -> dict[str, float]:
    """Scores by "none" or "layer.head" that an earlier run with the same identity left in a file."""
    if path is None or not path.exists():
        return {}
    try:
        record = json.loads(path.read_text())
        same, scores = record["run"] == run, dict(record["scores"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VlmpruneError(
            f"{str(path)!r} cannot be read as a calibration file ({error}); name another one or remove it."
        ) from None
    if not same:
        raise VlmpruneError(
            f"{str(path)!r} was made with another model, other questions or other options; name another file."
        )
    return scores
