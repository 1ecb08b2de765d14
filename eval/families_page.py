"""The page of model families, docs/families.md, from the record of `python -m tests.full matrix`."""

from __future__ import annotations

from typing import Any

from .markdown import bullets, paragraph, table

CELLS = {"none": "-", "untested": "?"}


def page(record: dict[str, Any]) -> str:
    """The whole page: the table of types, what its columns mean, and why something is refused."""
    families, columns = record["families"], record["capabilities"]
    why: dict[str, int] = {}  # reason -> its number
    rows = [
        (f"`{name}`", found["adapter"], *(_cell(name, found["answers"][column], why) for column in columns))
        for name, found in families.items()
    ]
    parts = [
        "# Model families",
        paragraph(_head(record)),
        table(("`config.model_type`", "adapter", *(column["title"] for column in columns.values())), rows),
        bullets(f"{column['title']}: {column['means']}" for column in columns.values()),
        "`-`: there is nothing to support. `?`: not tested. Numbers stand for these sentences:",
        "\n".join(paragraph(f"{number}. {reason}") for reason, number in why.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _head(record: dict[str, Any]) -> str:
    kinds = [found["adapter"] for found in record["families"].values()]
    worst = max(
        answer["worst"]
        for found in record["families"].values()
        for name in ("exact_first", "exact_later", "ragged")
        if (answer := found["answers"][name])["says"] == "yes"
    )
    return (
        f"{len(kinds)} types, {kinds.count('declared')} by an adapter of their own and {kinds.count('generic')} by the "
        "generic one, which finds everything by rule and also takes decoders that are not listed: "
        "`vlmprune.check(model, processor)` proves it on yours, and `register_family` declares [your "
        "own](own_family.md). Written by `python -m eval.pages` from the [record](../tests/full/records/matrix.json) "
        f"of `python -m tests.full matrix`: tiny random models with transformers {record['transformers']}, each "
        "compared with a reference that does without the package. The largest difference of a logit between pruned and "
        f"masked is {worst:.1e} of max(1, the logits' standard deviation)."
    )


def _cell(model_type: str, answer: dict[str, Any], why: dict[str, int]) -> str:
    says = CELLS.get(answer["says"], answer["says"])
    if not answer["why"] or says == "-":
        return says
    reason = answer["why"].replace(repr(model_type), "TYPE").replace(f"`{model_type}`", "TYPE")
    return f"{says} ({why.setdefault(reason, len(why) + 1)})"


def in_readme(record: dict[str, Any]) -> str:
    """The README's sentences about families."""
    families = record["families"]
    declared = [name for name, found in families.items() if found["adapter"] == "declared"]
    return paragraph(
        f"{len(families)} types of models, listed in a [table](docs/families.md) with what each supports, tested with "
        f"tiny random models; {len(declared)} of them have an adapter of their own "
        f"({', '.join(f'`{name}`' for name in declared)}), the others and most decoders that are not listed go through "
        "a generic one, which `vlmprune.check(model, processor)` proves exact on your model. Or declare [your "
        "own](docs/own_family.md)."
    )
