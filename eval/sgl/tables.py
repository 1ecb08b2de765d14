"""The tables and sentences of SGL's page, from records alone (`python -m eval.pages` puts them there)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eval import markdown
from eval.markdown import bullets, paragraph, points
from eval.settings import DIVERSE, DIVERSE_EXIT, SHORTCUTS
from eval.sgl.study import ADAPTIVE, NAMES, RETENTION

Row = dict[str, Any]
MODELS = ("none", "small alone", "blind")  # rows without a budget
METHODS = (
    *("random", "uniform", "downsample", "fastv", "fastv-oracle", "sgl", "sgl + exit"),
    *(NAMES[name] for name in (DIVERSE, DIVERSE_EXIT)),
    ADAPTIVE,
    *(NAMES[name] for name in SHORTCUTS),
)


def find(rows: list[Row], name: str, at: float | None = None, where: str = "at_retention") -> Row | None:
    """The row of a method at a point; of a model without a budget at any."""
    return next((row for row in rows if row["name"] == name and (at is None or at in row.get(where, []))), None)


def wide(rows: list[Row], where: str, cell: Callable[[Row], str]) -> str:
    """Markdown: methods down, points across; a point that a method cannot reach stays blank."""
    lines = []
    for name in (*MODELS, *METHODS):
        found = [find(rows, name, None if name in MODELS else at, where) for at in RETENTION]
        lines.append([name, *("" if row is None else cell(row) for row in found)])
    return markdown.table(["method", *(f"{point:.0%}" for point in RETENTION)], lines)


def table(record: Row, where: str) -> str:
    """Accuracy, its standard error, and prefill FLOPs with the guide's as a share of the unpruned model's."""

    def cell(row: Row) -> str:
        return f"{row['accuracy']:.3f} ± {row['standard_error']:.3f} ({row['flops_share']:.0%})"

    return wide(record["rows"], where, cell)


def costs(record: Row) -> str:
    """Where tokens are dropped, how many enter and how many the layers see on average, and the KV cache."""

    def cell(row: Row) -> str:
        return f"{row['layer']}: {row['lm_tokens']:.0f}, {row['layer_avg_tokens']:.1f}, {row['kv_share']:.0%}"

    return wide(record["rows"], "at_retention", cell)


def against_sgl(record: Row) -> str:
    """Each method minus SGL at the same retention, in points with a 95 % interval."""
    return wide(record["rows"], "at_retention", lambda row: points(row["vs_sgl"]) if "vs_sgl" in row else "")


def by_guide(record: Row) -> str:
    """Accuracy where the small model's own answer was right, and where it was wrong."""

    def cell(row: Row) -> str:
        right, wrong = row["small_right"], row["small_wrong"]
        return f"{right['accuracy']:.3f}, {wrong['accuracy']:.3f} ± {wrong['standard_error']:.3f}"

    return wide(record["rows"], "at_retention", cell)


def by_family(record: Row) -> str:
    """The families of question at 9 %; FastV, which cannot reach that, at the least it can."""
    rows = [find(record["rows"], name) for name in MODELS]
    rows += [find(record["rows"], name, 0.18 if name == "fastv" else 0.09) for name in METHODS]
    lines = []
    for row in rows:
        if row is not None:
            title = row["name"] + (" (at 18%)" if row["name"] == "fastv" else "")
            cells = [f"{value:.2f} ± {row['family_errors'][name]:.2f}" for name, value in row["families"].items()]
            lines.append([title, f"{row['flops_share']:.0%}", *cells])
    return markdown.table(["method", "FLOPs", *record["rows"][0]["families"]], lines)


# -- sentences -------------------------------------------------------------------------------------------------------


def measured(record: Row) -> str:
    """What was measured, on what."""
    about = record["about"]
    text = f"The bundled pair, {about['questions']:,} questions of the test split, {about['backend']}, seed 0, one run."
    if choice := about.get("chosen_on_validation", {}).get("fastv_layers"):
        said = ", ".join(f"{layer} at {float(at):.0%}" for at, layer in choice["layers"].items())
        text += f" FastV drops before layer {said}: the best on {choice['about']['questions']} validation questions."
    return paragraph(text)


def findings(record: Row) -> str:
    """What the study shows; a method is called better or worse only where the interval excludes zero."""
    rows = record["rows"]

    def value(name: str, at: float | None = None) -> float:
        row = find(rows, name, at)
        assert row is not None, f"{name} at {at}"
        return float(row["accuracy"])

    none = value("none")
    sgl, oracle, random = ({at: value(name, at) for at in RETENTION} for name in ("sgl", "fastv-oracle", "random"))
    said = [
        f"SGL keeps {sgl[0.18] / none:.1%} of the accuracy at 18 % and {sgl[0.09] / none:.1%} at 9 %; the oracle, "
        f"which reads the large model's own full run, keeps {oracle[0.18] / none:.1%} and {oracle[0.09] / none:.1%}. "
        f"FastV has {value('fastv', 0.5) / none:.1%} at 50 % and {value('fastv', 0.18) / none:.1%} at 18 %.",
        "Against **random** SGL wins "
        + ", ".join(f"{100 * (sgl[at] - random[at]):.1f} points at {at:.0%}" for at in (0.18, 0.09, 0.05))
        + f"; random keeps {random[0.09] / none:.0%} of the accuracy at 9 %: this pair was trained with tokens dropped "
        "at random.",
        "Against the **small model alone**: "
        + "; ".join(f"{_versus(find(rows, 'sgl', at))} at {at:.0%}" for at in (0.18, 0.09, 0.05))
        + ". Where SGL is not better, running the small model alone is the better choice.",
    ]
    families = {name: find(rows, name, at) for name, at in (("none", None), ("small alone", None))}
    families |= {name: find(rows, name, 0.09) for name in ("sgl", "fastv-oracle")}
    count = {name: row["families"] for name, row in families.items() if row is not None}
    gap = {family: count["none"][family] - value for family, value in count["sgl"].items()}
    worst, second = sorted(gap, key=lambda family: -gap[family])[:2]
    said.append(
        f"What SGL loses at 9 % is mostly {worst}: {count['sgl'][worst]:.2f}, where the unpruned model has "
        f"{count['none'][worst]:.2f}, the oracle {count['fastv-oracle'][worst]:.2f} and the small model alone "
        f"{count['small alone'][worst]:.2f}. The next largest loss is {gap[second]:.2f}, of {second}."
    )
    exits = {at: row for at in RETENTION if (row := find(rows, "sgl + exit", at))}
    if exits:
        said.append(
            f"With exits the large model answers {1 - exits[0.18]['exits']:.0%} of the questions. Against SGL without: "
            + ", ".join(f"{points(row['vs_sgl'])} at {at:.0%}" for at, row in exits.items())
            + " points."
        )
    return bullets(said)


def _versus(row: Row | None) -> str:
    assert row is not None
    return points(row["vs_small"])


def ranking_of_wrong(record: Row) -> str:
    """What SGL's ranking is worth where the small model was wrong."""
    wrong = {
        name: (find(record["rows"], name, 0.09) or {})["small_wrong"] for name in ("sgl", "fastv-oracle", "random")
    }
    count = wrong["sgl"]["questions"]
    return paragraph(
        f"At 9 % SGL has {wrong['sgl']['accuracy']:.3f} of the {count} questions that the small model gets wrong, the "
        f"oracle {wrong['fastv-oracle']['accuracy']:.3f}, random {wrong['random']['accuracy']:.3f}. "
        "What is left to the oracle is what a better guide could win."
    )


def threshold(record: Row) -> str:
    """What the exit's threshold does on validation questions, from the calibration."""
    exit_at = 0.9
    points_ = [one for one in record["points"] if one["keep"] == 0.18]
    never = next(one for one in points_ if one["exit_at"] is None)
    near = min((one for one in points_ if one["exit_at"] is not None), key=lambda one: abs(one["exit_at"] - exit_at))
    change = 100 * (near["accuracy"] - never["accuracy"])
    return paragraph(
        f"The exit's threshold is {exit_at}, read from the validation curve "
        "([results/calibration.json](results/calibration.json), [picture](results/calibration.png)): on "
        f"{record['about']['questions']} questions at 18 % it moves the accuracy by {change:+.1f} points, at "
        f"{near['exits']:.0%} exits."
    )


def clock(record: Row) -> str:
    """What SGL's time is spent on, from the speed record."""
    random, bundled = record["random"]["stages"], record["bundled"]["stages"]
    sgl, vision = random["sgl"], random["none"]["vision"]
    again = [record[pair]["speed_up"]["none again"] for pair in ("random", "bundled")]
    small, saved = bundled["sgl"], bundled["none"]["prefill"] - bundled["sgl"]["prefill"]
    # What a guide that costs nothing leaves: the shared vision pass, the kept tokens' prefill, and decoding.
    least = random["none"]["vision"] + sgl["prefill"] + sgl["decode"]
    return paragraph(
        f"The unpruned model measured a second time gives {again[0]:.2f} (random pair) and {again[1]:.2f}. FastV keeps "
        f"{record['about']['keep']:.0%} from layer 2 on: it saves less of the prompt and has no guide to pay. Of "
        f"SGL's {sgl['total']:.2f} s on the random pair the guide takes {sgl['guide']:.2f} s, some {vision:.1f} of "
        f"them the vision pass that both share; prefill {sgl['prefill']:.2f}, decoding {sgl['decode']:.2f}. With a "
        f"guide that cost nothing beside that pass it would be {random['none']['total'] / least:.2f} times as fast as "
        "unpruned: the rest is vision, the kept tokens and the text, and steps that read the same weights. On the "
        f"bundled pair the guide takes {1000 * small['guide']:.0f} ms, {1000 * bundled['none']['vision']:.0f} of them "
        f"the shared vision pass, and pruning saves {1000 * saved:.0f} ms of prefill."
    )
