"""The caption metrics: by hand, and on degenerate captions."""

from __future__ import annotations

import pytest

from demos.tiny_vlm.questions import caption
from demos.tiny_vlm.scenes import Scene, Thing, make_scene
from eval.captions.metrics import Mention, count, difference, read, summary
from eval.captions.run import held_out
from eval.captions.text_metrics import text_metrics
from vlmprune import VlmpruneError


def thing(shape: str, colour: str, size: str = "small", at: float = 10, digit: int | None = None) -> Thing:
    return Thing(shape, colour, size, at, at, 14, 14, digit, (0, 0, 0), 0)


# A small red circle and a small blue circle at the top left, a large green tile with the digit 3 at the bottom right.
SCENE = Scene(
    0, "test", (0, 0, 14, 14), "plain", (0, 0, 0),
    (thing("circle", "red"), thing("circle", "blue"), thing("tile", "green", "large", 100, 3)),
)  # fmt: skip


def value(text: str, name: str, scene: Scene = SCENE) -> float:
    return summary([count(text, scene)])[name]["value"]


def test_mentions() -> None:
    found, unread = read(
        "A small red circle at the top left . Two stars, a large teal tile with the digit 7. Hello there."
    )
    assert found == [
        Mention("circle", "red", "small", "top left"),
        Mention("star"),
        Mention("tile", "teal", "large", None, "7"),
    ]
    assert unread == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_true_caption_is_perfect(seed: int) -> None:
    scene = make_scene(seed, "test")
    for name in ("object_recall", "object_precision", "named_f1", "attribute_accuracy", "attribute_f1"):
        assert value(caption(scene), name, scene) == 1
    assert value(caption(scene), "chair_i", scene) == value(caption(scene), "chair_s", scene) == 0


def test_by_hand() -> None:
    text = "a small red circle at the top. a large teal circle. a red circle. a star. a green tile with the digit 8"
    counted = count(text, SCENE)
    # Five mentions; two circles and the tile find a partner, the third circle and the star do not.
    assert (counted.objects, counted.mentions, counted.matched) == (3, 5, 3)
    # Matched best: (small, red, top | top left) 2 of 3 with the red circle; of the other two circles "a red circle"
    # agrees 0 of 1 with the blue one and "large teal" 0 of 2, so either may take it; the tile: green right, 8 wrong.
    assert counted.right == 2 + 0 + 1
    assert counted.judged in (3 + 1 + 2, 3 + 2 + 2)
    assert counted.stated == 3 + 2 + 1 + 0 + 2
    assert counted.attributes == 3 + 3 + 4
    assert counted.named == 2  # red circle, green tile; the second red circle finds none
    assert counted.absent == 1  # the star: the third circle is of a kind the image holds
    assert value(text, "chair_i") == pytest.approx(1 / 5)
    assert value(text, "chair_s") == 1
    assert value(text, "object_recall") == 1
    assert value(text, "object_precision") == pytest.approx(3 / 5)
    assert value(text, "object_f1") == pytest.approx(2 * 1 * 0.6 / 1.6)


@pytest.mark.parametrize("text", ["", ".", "?!", "nothing to see", "yes yes yes"])
def test_empty_captions_score_nothing_and_do_not_crash(text: str) -> None:
    for name in ("object_recall", "object_precision", "object_f1", "attribute_accuracy", "chair_i", "chair_s"):
        assert value(text, name) == 0


def test_naming_everything_is_no_way_to_win() -> None:
    everything = ". ".join(f"a {shape}" for shape in ("circle", "tile", "star", "ring", "cross", "diamond")) * 3
    assert value(everything, "object_recall") == 1
    assert value(everything, "object_precision") < 0.3
    assert value(everything, "chair_i") > 0.6


def test_errors_and_differences_are_over_captions() -> None:
    right, wrong = count("a red circle. a blue circle. a tile.", SCENE), count("a star.", SCENE)
    spread = summary([right, wrong] * 50)["object_recall"]
    assert spread["value"] == 0.5
    assert spread["standard_error"] == pytest.approx(0.05, rel=0.2)  # sqrt(0.25 / 100)
    change = difference([wrong] * 50, [right] * 50)["object_recall"]
    assert (change["difference"], change["low"], change["high"]) == pytest.approx((1, 1, 1))
    assert change["p"] < 0.001
    same = difference([right, wrong] * 20, [right, wrong] * 20)
    assert all(values == {"difference": 0, "low": 0, "high": 0, "p": 1} for values in same.values())


def test_f1_is_the_harmonic_mean_of_the_sums() -> None:
    counts = [count(text, SCENE) for text in ("a red circle. a star. a ring.", "a tile.", "")]
    found = summary(counts)
    for kind in ("object", "named", "attribute"):
        recall, precision = found[f"{kind}_recall"]["value"], found[f"{kind}_precision"]["value"]
        assert found[f"{kind}_f1"]["value"] == pytest.approx(2 * recall * precision / (recall + precision))


def test_text_metrics() -> None:
    pytest.importorskip("pycocoevalcap")
    scenes = held_out(6)
    truths = [caption(scene) for scene in scenes]
    perfect = text_metrics(truths, [[text.upper()] for text in truths])  # case and punctuation do not count
    assert perfect["bleu_4"] == pytest.approx(1, abs=1e-6)
    assert perfect["rouge_l"] == pytest.approx(1)
    shifted = text_metrics(truths[1:] + truths[:1], [[text] for text in truths])
    empty = text_metrics([""] * 6, [[text] for text in truths])
    for name in perfect:
        assert perfect[name] > shifted[name] >= empty[name]
    with pytest.raises(VlmpruneError, match="1 captions and 2 sets"):
        text_metrics(["a"], [["a"], ["b"]])


def test_held_out_scenes() -> None:
    scenes = held_out(30)
    assert all(scene.split == "test" and 4 <= len(scene.things) <= 8 for scene in scenes)
    assert len({scene.seed for scene in scenes}) == 30
