"""The mutations: a function by name, a piece of its source, what stands there instead, and the tests that must notice.

Line numbers are in none of them, so they outlive what is written around them; `test_mutations.py` says which no longer
fit. `equal` holds the reason where no test can tell the two apart.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """`function` is `module:qualified.name`; `old` occurs once in its source."""

    function: str
    old: str
    new: str
    tests: tuple[str, ...]
    equal: str = ""

    @property
    def name(self) -> str:
        return f"{self.function}: {self.old} -> {self.new or '(nothing)'}"


def _in(module: str, tests: str, *changes: tuple[str, str, str]) -> list[Mutation]:
    """Several mutations of one module with the same tests: (function, old, new) each."""
    return [Mutation(f"{module}:{function}", old, new, tuple(tests.split())) for function, old, new in changes]


MUTATIONS = [
    *_in(
        "vlmprune.flow.select",
        "tests/flow tests/test_last_token.py tests/methods",
        ("count_for", "min(keep, visual)", "keep"),
        ("count_for", "+ 0.5", "+ 0.4999"),
        ("count_for", "max(1, math", "max(0, math"),
        ("with_last", "torch.tensor([last])", "torch.tensor([last - 1])"),
        ("top_k_per_image", "math.inf if", "0.0 if"),
        ("ranking", "descending=True", "descending=False"),
        ("top_p_counts", "min(most, max(least, int(enough)))", "max(least, int(enough))"),
        ("evenly", "+ 0.5", "+ 0.0"),
        ("coarser_grid", "math.log(1.5)", "math.log(9)"),
    ),
    *_in(
        "vlmprune.flow.compact",
        "tests/flow",
        ("keep_mask", "row[where] = False", "row[where] = True"),
        ("compaction", "min(lengths) != longest", "min(lengths) == longest"),
        ("compaction", "[:, -longest:]", "[:, :longest]"),
        ("Compaction.columns", "~self.real", "self.real"),
    ),
    *_in(
        "vlmprune.flow.transfer",
        "tests/flow",
        ("onto", "mass / area", "mass"),
        ("onto", "moved * (mass.sum() / total)", "moved"),
        ("cell_sizes", "steps.min()", "steps.max()"),
        ("_boxes", "cell_sizes(span) / 2", "cell_sizes(span)"),
    ),
    *_in(
        "vlmprune.flow.sinks",
        "tests/attention tests/test_find_sinks.py tests/test_var_act.py",
        ("eligible_layers", "layers - 1", "layers"),
        ("default_tau", "width / 4096", "width / 2048"),
        ("phi", ".abs()", ""),
        ("spiking_dims", ">= 0.5", ">= 0.99"),
        ("secondary_sinks", "> primary", ">= primary"),
        ("active_window", "steps[:-1].argmax()) + 1", "steps[:-1].argmax())"),
    ),
    *_in(
        "vlmprune.ops.attention_rows",
        "tests/attention tests/ops/test_interfaces.py tests/test_windows.py",
        ("attention_rows", " * scaling", ""),
        ("visible_keys", "column <= row", "column < row + 2"),
        ("visible_keys", "column > row - window", "column >= row - window"),
    ),
    *_in(
        "vlmprune.ops.correction",
        "tests/attention tests/test_var_act.py",
        ("gated", "(image >= gate)", "(image >= 0)"),
        ("gated", "free >= rho * image", "free >= 0 * image"),
        ("redistribution", "* p\n", "* (1 - p)\n"),
        ("calibration", "(1 - beta)", "beta"),
        ("column_scores", "seen >= rows", "seen >= 1"),
    ),
    *_in(
        "vlmprune.methods.fastv",
        "tests/methods tests/test_find_sinks.py tests/test_sinks_and_pruners.py",
        ("FastV.score", "-1.0", "1.0"),
    ),
    *_in("vlmprune.methods.knorm", "tests/methods", ("KNorm.score", "-prompt", "prompt")),
    *_in("vlmprune.methods.dart", "tests/methods", ("spread", 'float("inf")', 'float("-inf")')),
    *_in(
        "vlmprune.methods.divprune",
        "tests/methods",
        ("farthest_points", "torch.minimum", "torch.maximum"),
        ("farthest_points", "alone.amin(dim=1).argmax()", "alone.amin(dim=1).argmin()"),
    ),
    *_in(
        "vlmprune.methods.cdpruner",
        "tests/methods",
        ("kernel", " * weights[None, :]", ""),
        ("relevance", "mean - low)", "mean - high)"),
        ("greedy_mode", "gain - rows[step] ** 2", "gain - rows[step]"),
    ),
    *_in(
        "vlmprune.methods.visionzip",
        "tests/methods",
        ("zipped", "ranking(received)[:dominant]", "ranking(-received)[:dominant]"),
        ("zipped", ".argmax(dim=1)", ".argmin(dim=1)"),
        ("zipped", "len(rest) // contextual", "1"),
        ("zipped", "hidden[targets] + cluster", "cluster"),
    ),
    *_in(
        "vlmprune.attention.tower",
        "tests/methods/test_merging_peers.py",
        ("TowerReader.__init__", "last=as_one", "last=False"),
        ("TowerReader._see", "** -0.5", "** -0.4"),
    ),
    *_in(
        "vlmprune.methods.prumerge",
        "tests/methods",
        ("outliers", "1.5 *", "1.0 *"),
        ("chosen", "found / size))", "found / size)) + 1"),
        ("chosen", "step // 3", "step"),
        ("gathered", "received.to(similar)[near]", "1.0"),
        ("gathered", "-torch.inf", "0.0"),
        ("gathered", "rest[stay] = 0", "rest[stay] = 1"),
    ),
    *_in(
        "vlmprune.methods.per_image",
        "tests/methods",
        ("cluster_means", "total / cluster", "total * cluster"),
    ),
    *_in(
        "vlmprune.methods.scope",
        "tests/methods tests/guide",
        ("greedy_coverage", "torch.maximum(covered, similarity[:, best])", "similarity[:, best]"),
    ),
    *_in("vlmprune.methods.pyramiddrop", "tests/methods", ("staged_count", "(stage + 1) / stages", "stage / stages")),
    *_in(
        "vlmprune.methods.sparsevlm",
        "tests/methods",
        ("query_tokens", "> similarity.mean()", "< similarity.mean()"),
        ("density_peaks", "density * gap", "gap"),
    ),
    *_in(
        "vlmprune.guide.runner",
        "tests/guide",
        ("_until", "int(found[0]) + 1", "int(found[0])"),
        ("Guide._consistency", "each.mean() if self.options", "each.sum() if self.options"),
        ("Guide._answer_flops", "2 * cost.head * (len(answer) - 1)", "0"),
    ),
    *_in(
        "vlmprune.runtime.output_rows",
        "tests/test_losses.py tests/test_rows.py",
        ("predicted", "> 1", "> 0"),
        ("kept_shifted", "+ 1], dim=1)", "], dim=1)"),
        ("wanted", "slice(-keep, None)", "slice(-keep - 1, None)"),
    ),
    *_in(
        "vlmprune.captioner.divide",
        "tests/captioner",
        ("iou", "area(a) + area(b) - both", "area(a) + area(b)"),
        ("confident", "[:fallback]", "[:1]"),
        ("pixel_box", "math.ceil", "math.floor"),
        ("semantic_patch", "<= most_iou", "> most_iou"),
    ),
    *_in(
        "vlmprune.captioner.aggregate",
        "tests/captioner",
        ("choose", "scores[i] > above", "scores[i] >= 0.0"),
        ("to_score", "*grouping.unique", ""),
    ),
    *_in(
        "eval.scorers.text",
        "tests/eval/test_scorers.py",
        ("relaxed_accuracy", "<= tolerance", "< tolerance"),
        ("as_number", "value / 100", "value"),
    ),
    *_in(
        "vlmprune.accounting.scores",
        "tests/eval/test_scorers.py",
        ("edit_distance", "row[j] + 1, row[j - 1] + 1", "row[j] + 2, row[j - 1] + 1"),
        ("agreement", "others / 3) for", "others / 2) for"),
        ("agreement", "matches - (person == given)", "matches"),
    ),
    *_in(
        "eval.scorers.options",
        "tests/eval/test_scorers.py tests/eval/test_whole_units.py",
        ("circular", "and hit", "or hit"),
    ),
    *_in(
        "eval.scorers.yes_no",
        "tests/eval/test_scorers.py tests/eval/test_whole_units.py",
        ("mme_scores", "and hit", "or hit"),
        ("confusion", "2 * hits, said + there", "hits, said + there"),
    ),
    *_in(
        "vlmprune.serving.chat",
        "tests/serving/test_limits.py tests/serving/test_chat_parts.py",
        ("_images", "text > limits.text", "text > 2 * limits.text"),
        ("_images", "len(found) > limits.images", "len(found) > limits.images + 1"),
        ("pixels_of", "width * height > limits.pixels", "width > limits.pixels"),
        ("check_pixels", "total > limits.request_pixels", "total > 2 * limits.request_pixels"),
        ("_max_tokens", "<= limits.tokens", "<= 2 * limits.tokens"),
    ),
    *_in("eval.scorers.boxes", "tests/eval/test_scorers.py", ("iou", "- width * height)", ")")),
    *_in("eval.scorers.chair", "tests/eval/test_scorers.py", ("chair", "name not in there", "name in there")),
]
