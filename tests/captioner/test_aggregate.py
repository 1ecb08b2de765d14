"""Aggregation with a scripted language model: nothing lost, nothing mixed, every branch, every failure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.captioner.scripted import NAMES, Scripted, World, as_they_are, lines, patches
from vlmprune.captioner import AggregatorError, CaptionConfig, Grouping, Rewrite, Similar
from vlmprune.captioner.aggregate import choose
from vlmprune.captioner.divide import Patch, hull
from vlmprune.captioner.hierarchy import components
from vlmprune.captioner.llm import SCHEMAS, Unusable, check_schema, parse_json

ALONE = [["a alone."], ["b alone."], ["c alone."], ["d alone."]]
WIDE = ((0, 0, 90, 50), (10, 0, 100, 50))  # the upper two overlap: IoU 0.8


def grouped(**kinds: Any) -> dict[str, Any]:
    return {"similar": [], "contradictory": [], "unique": [], **kinds}


def by_text(*groups: tuple[str, list[str]], rest: str = "unique") -> Any:
    """A group reply that finds the named sentences by their texts; the others are unique."""

    def reply(numbered: dict[int, str]) -> dict[str, Any]:
        found = grouped()
        left = dict(numbered)
        for kind, texts in groups:
            numbers = [n for n, text in numbered.items() if text in texts]
            if len(numbers) < 2:
                continue
            for n in numbers:
                left.pop(n)
            one: dict[str, Any] = {"numbers": numbers}
            if kind == "similar":
                one["text"] = " and ".join(dict.fromkeys(texts))
            found[kind].append(one)
        found[rest] += list(left)
        return found

    return reply


# -- nothing is lost, nothing mixed --------------------------------------------------------------------------------


def test_every_sentence_has_a_fate_and_a_reason() -> None:
    group = by_text(("similar", ["red car", "a car, red"]), ("contradictory", ["best blue sky", "grey sky"]))
    world = World(Scripted(replies={"group": [group]}))
    samples = [["red car. best blue sky. wrong dog.", "a car, red. grey sky.", "tree."], ["b."], ["c."], ["d."]]
    final = world.run("whole.", patches(), samples)
    assert final == ["red car and a car, red", "best blue sky", "tree", "b", "c", "d", "whole"]
    assert all(sentence.reason for sentence in world.sentences)
    fates = {s.text: (s.label, s.kept) for s in world.sentences if s.patch == "top left" and s.sample is not None}
    assert fates == {
        "red car": ("similar", True),
        "a car, red": ("similar", True),
        "best blue sky": ("contradictory", True),
        "grey sky": ("contradictory", False),
        "wrong dog": ("unique", False),
        "tree": ("unique", True),
    }
    (wrong,) = world.find("wrong dog")
    assert wrong.score == 0.1
    assert "0.100 <= 0.3" in wrong.reason
    (rewritten,) = world.find("red car and a car, red")
    assert [world.sentences[n].text for n in rewritten.sources] == ["red car", "a car, red"]


def test_samples_stay_with_their_crop() -> None:
    samples = [[f"p{p} s{s} n{n}" for n in range(2)] for p in range(4) for s in range(3)]
    by_patch = [[". ".join(samples[3 * p + s]) for s in range(3)] for p in range(4)]
    world = World(Scripted())
    world.run("whole", patches(), by_patch)
    for sentence in world.sentences:
        if sentence.text != "whole":
            assert sentence.patch == NAMES[int(sentence.text[1])]
            assert sentence.sample == int(sentence.text[4])
    for prompt, name in zip(world.aggregator.prompts("group"), range(4), strict=True):
        assert {text[:2] for text in lines(prompt).values()} == {f"p{name}"}
    for box, text in world.scored:
        assert box == patches()[int(text[1])].box  # scored on its own crop


def test_rejected_sentences_are_never_shown_again() -> None:
    world = World(Scripted())
    final = world.run("whole.", patches(*WIDE), [["wrong one. good one.", "fine."], ["wrong two. nice."], [""], [""]])
    later = [m for task, messages in world.aggregator.asked if task != "group" for m in messages]
    later += [m for _, messages in world.aggregator.asked[4:] for m in messages]
    assert not [m for m in later if "wrong" in m["content"]]
    assert not [text for text in final if "wrong" in text]


def test_nothing_said_is_no_crash() -> None:
    world = World(Scripted())
    assert world.run("", patches(), [["", "", ""]] * 4) == []
    assert world.aggregator.calls == 0


def test_a_repetition_within_a_sample_is_entered_and_dropped() -> None:
    world = World(Scripted())
    assert world.run("", patches(), [["a dog. A dog. a cat."], [""], [""], [""]]) == ["a dog", "a cat"]
    (again,) = world.find("A dog")
    assert (again.kept, again.reason) == (False, "said before in the same description")


def test_without_filter_all_stay_but_similar_ones_are_one() -> None:
    group = by_text(("similar", ["x", "x too"]), ("contradictory", ["wrong a", "b"]))
    world = World(Scripted(replies={"group": [group]}), CaptionConfig(filter=False))
    final = world.run("", patches(), [["x. wrong a. wrong c.", "x too. b."], [""], [""], [""]])
    assert final == ["x and x too", "wrong a", "wrong c", "b"]
    assert world.scored == []


# -- between patches -----------------------------------------------------------------------------------------------


def test_one_overlapping_pair_is_compared_and_the_rest_passes_filtered() -> None:
    group = by_text(("contradictory", ["best red hat", "blue hat"]))
    world = World(Scripted(replies={"group": [group]}))
    samples = [["best red hat.", "l."], ["blue hat.", "r."], ["wrong low.", "c."], ["d."]]
    final = world.run("", patches(*WIDE), samples)
    assert final == ["best red hat", "l", "r", "c", "d"]  # "wrong low" is gone although its patch is in no pair
    (loser,) = world.find("blue hat")
    assert (loser.label, loser.kept) == ("contradictory", False)
    both = hull(WIDE)
    assert {text for box, text in world.scored if box == both} == {"best red hat", "blue hat"}
    assert [(region.patch.name, [one.name for one in region.patches]) for region in world.regions[1:]] == [
        ("top left + top right", ["top left", "top right"]),
        ("bottom left", ["bottom left"]),
        ("bottom right", ["bottom right"]),
    ]
    assert len(world.aggregator.prompts("merge")) == 2 + 1  # the two patches with two sentences left, and the pair


def test_no_overlap_compares_nothing() -> None:
    world = World(Scripted())
    assert world.run("w.", patches(), ALONE) == ["a alone", "b alone", "c alone", "d alone", "w"]
    assert world.aggregator.prompts("group") == []  # one sample each: nobody to agree with
    assert [region.patch.name for region in world.regions] == ["image", *NAMES]


def test_unique_sentences_of_a_pair_are_scored_on_their_own_patch() -> None:
    world = World(Scripted())
    world.run("", patches(*WIDE), [["left."], ["right."], [""], [""]])
    assert set(world.scored) == {(WIDE[0], "left"), (WIDE[1], "right")}
    assert len(world.scored) == 2  # and only once, though two stages asked


CHAIN = ((0, 0, 90, 50), (10, 0, 100, 90), (0, 50, 50, 100), (45, 5, 100, 100))  # TR overlaps TL and BR


def test_a_patch_in_two_pairs_goes_on_once() -> None:
    world = World(Scripted())
    final = world.run("", patches(*CHAIN), ALONE)
    names = [region.patch.name for region in world.regions[1:]]
    assert names == ["top left + top right + bottom right", "bottom left"]
    assert sorted(final) == ["a alone", "b alone", "c alone", "d alone"]
    (merging,) = world.aggregator.prompts("merge")
    assert list(lines(merging).values()) == ["a alone", "b alone", "d alone"]


def test_rejected_in_one_pair_is_gone_from_the_other() -> None:
    group = by_text(("contradictory", ["best a", "b shared"]))
    world = World(Scripted(replies={"group": [group]}))
    final = world.run("", patches(*CHAIN), [["best a."], ["b shared. b two."], [""], ["d."]])
    assert "b shared" not in final
    second = lines(world.aggregator.prompts("group")[1])
    assert list(second.values()) == ["b two", "d"]


def test_similar_in_two_pairs_becomes_one_sentence() -> None:
    def same(numbered: dict[int, str]) -> dict[str, Any]:
        return grouped(similar=[{"numbers": list(numbered), "text": "the tree"}])

    world = World(Scripted(replies={"group": [same]}))
    assert world.run("", patches(*CHAIN), [["tree."], ["a tree."], [""], ["one tree."]]) == ["the tree"]
    assert all(sentence.kept for sentence in world.sentences)


def test_components() -> None:
    assert components(4, []) == [[0], [1], [2], [3]]
    assert components(4, [(0, 1)]) == [[0, 1], [2], [3]]
    assert components(4, [(0, 1), (1, 3)]) == [[0, 1, 3], [2]]
    assert components(4, [(0, 1), (2, 3)]) == [[0, 1], [2, 3]]
    assert components(4, [(0, 1), (0, 2), (1, 3), (2, 3)]) == [[0, 1, 2, 3]]


# -- the whole image and the fusion --------------------------------------------------------------------------------


def test_the_semantic_patch_enriches_the_whole() -> None:
    group = by_text(("contradictory", ["red hat", "best blue hat"]))
    world = World(Scripted(replies={"group": [group]}))
    box = (20, 20, 60, 60)
    parts = [*patches(), Patch("semantic", box)]
    final = world.run("red hat. a street.", parts, [[""], [""], [""], [""], ["best blue hat. a bag."]])
    assert final == ["a street", "best blue hat", "a bag"]
    assert ((0, 0, 100, 100), "red hat") in world.scored
    assert (box, "a bag") in world.scored
    assert not [text for _, text in world.scored if text == "a street"]  # the paper does not check it


def test_the_whole_images_sentences_are_not_checked() -> None:
    assert World(Scripted()).run("wrong cat. dog.", patches(), [[""]] * 4) == ["wrong cat", "dog"]


def test_what_the_fusion_drops_is_written_down() -> None:
    def fuse(numbered: dict[int, str]) -> dict[str, Any]:
        whole = next(n for n, text in numbered.items() if text == "the car again")
        rest = {n: text for n, text in numbered.items() if n != whole}
        return {**as_they_are(rest), "dropped": [{"number": whole, "reason": "named before"}]}

    world = World(Scripted(replies={"fuse": [fuse]}))
    assert world.run("the car again.", patches(), [["car."], [""], [""], [""]]) == ["car"]
    (dropped,) = world.find("the car again")
    assert (dropped.kept, dropped.reason) == (False, "named before")
    assert "top left (0.00, 0.00, 0.50, 0.50) | car" in world.aggregator.prompts("fuse")[0]


# -- replies that do not comply ------------------------------------------------------------------------------------

GOOD = {"similar": [], "contradictory": [], "unique": [1, 2]}
BAD_GROUPS: dict[str, Any] = {
    "no JSON object": "I cannot do that.",
    "broken": '{"similar": [], "contradictory": [], "unique": [1,',
    'lacks "unique"': {"similar": [], "contradictory": []},
    "unknown": {**GOOD, "notes": "none"},
    "left out": {**GOOD, "unique": [1]},
    "more than once": {**GOOD, "unique": [1, 2, 2]},
    "no sentence 3": {**GOOD, "unique": [1, 2, 3]},
    "no sentence 0": {**GOOD, "unique": [0, 1, 2]},
    "fewer than two": {**GOOD, "unique": [1], "contradictory": [{"numbers": [2]}]},
    "empty text": {"similar": [{"text": " ", "numbers": [1, 2]}], "contradictory": [], "unique": []},
    "must be of type integer": {**GOOD, "unique": [1, 2.5]},
    "must be of type array": {**GOOD, "unique": "1, 2"},
    "must be of type object": '{"similar": [3], "contradictory": [], "unique": [1, 2]}',
    "must be of type string": {"similar": [{"text": 3, "numbers": [1, 2]}], "contradictory": [], "unique": []},
}


@pytest.mark.parametrize("problem", BAD_GROUPS)
def test_a_bad_reply_is_asked_again_with_what_is_wrong(problem: str) -> None:
    model = Scripted(replies={"group": [BAD_GROUPS[problem], GOOD]})
    assert model.group([["a"], ["b"]]) == Grouping(unique=(0, 1))
    assert model.calls == 2
    retry = model.asked[1][1]
    assert problem in retry[-1]["content"]
    assert retry[-2]["role"] == "assistant"
    assert retry[:2] == model.asked[0][1]


@pytest.mark.parametrize("problem", BAD_GROUPS)
def test_a_model_that_never_complies_is_an_honest_error(problem: str) -> None:
    model = Scripted(replies={"group": [BAD_GROUPS[problem]]})
    with pytest.raises(AggregatorError, match="no usable reply to 'group' in 3 attempts"):
        World(model).run("", patches(), [["a.", "b."], [""], [""], [""]])
    assert model.calls == 3
    assert all(len(messages) <= 4 for _, messages in model.asked)  # the prompt does not grow


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ({"sentences": [{"text": "a and", "numbers": [1]}]}, "sentence 2 is left out"),
        ({"sentences": [{"text": "", "numbers": [1, 2]}]}, "empty"),
        ({"sentences": [{"text": "a, b", "numbers": [1, 2]}, {"text": "and c", "numbers": []}]}, "no source"),
        ({"sentences": [{"text": "a, b", "numbers": [1, 2, 9]}]}, "no sentence 9"),
    ],
)
def test_a_merge_that_loses_or_invents_is_refused(reply: Any, problem: str) -> None:
    good = {"sentences": [{"text": "a, b", "numbers": [1, 2]}]}
    model = Scripted(replies={"merge": [reply, good]})
    assert list(model.merge(["a", "b"])) == [Rewrite("a, b", (0, 1))]
    assert problem in model.asked[1][1][-1]["content"].lower()


@pytest.mark.parametrize(
    ("dropped", "problem"),
    [
        ([], "sentence 2 is left out"),
        ([{"number": 1, "reason": "x"}, {"number": 2, "reason": "x"}], "sentence 1 is said and dropped"),
        ([{"number": 2, "reason": ""}], "without a reason"),
    ],
)
def test_a_fusion_that_loses_is_refused(dropped: Any, problem: str) -> None:
    bad = {"sentences": [{"text": "a", "numbers": [1]}], "dropped": dropped}
    good = {"sentences": [{"text": "a", "numbers": [1]}], "dropped": [{"number": 2, "reason": "twice"}]}
    world = World(Scripted(replies={"fuse": [bad, good]}))
    assert world.run("b.", patches(), [["a."], [""], [""], [""]]) == ["a"]
    assert problem in world.aggregator.asked[1][1][-1]["content"].lower()


def test_a_fusion_that_drops_everything_is_refused() -> None:
    bad = {"sentences": [], "dropped": [{"number": 1, "reason": "dull"}]}
    with pytest.raises(AggregatorError, match="drops every sentence"):
        World(Scripted(replies={"fuse": [bad]})).run("b.", patches(), [[""]] * 4)


def test_only_given_classes_are_objects() -> None:
    model = Scripted(replies={"objects": [{"classes": ["cat"]}, {"classes": ["dog", "dog"]}]})
    assert model.objects("a dog runs", ["dog", "cup"]) == ["dog"]
    assert model.calls == 2


def test_a_users_own_aggregator_may_not_lose_a_sentence_either() -> None:
    class Careless(Scripted):
        def merge(self, sentences: Any) -> list[Rewrite]:
            return [Rewrite(sentences[0], (0,))]

    with pytest.raises(AggregatorError, match=r"Careless\.merge\(\).*sentence 1 is left out"):
        World(Careless()).run("", patches(), [["a. b."], [""], [""], [""]])


def test_json_is_found_in_what_models_wrap_around_it() -> None:
    text = '<think>{"no": 1}</think>Here it is:\n```json\n{"classes": ["a"]}\n```\nGood luck!'
    assert parse_json(text) == {"classes": ["a"]}
    with pytest.raises(Unusable):
        parse_json("[1, 2]")


def test_the_schemas_are_strict_and_checked_as_they_are_sent() -> None:
    def objects(schema: Any) -> list[Any]:
        inner = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
        return [schema] * (schema["type"] == "object") + [one for part in inner for one in objects(part)]

    for schema in SCHEMAS.values():
        json.dumps(schema)
        for one in objects(schema):
            assert one["additionalProperties"] is False
            assert one["required"] == list(one["properties"])
    with pytest.raises(Unusable):
        check_schema({"classes": [True]}, SCHEMAS["objects"])


# -- choosing, by hand ---------------------------------------------------------------------------------------------


def test_choosing_by_hand() -> None:
    grouping = Grouping((Similar("s", (0, 3)),), ((1, 4), (2, 5)), (6, 7, 8))
    scores = {1: 0.5, 4: 0.5, 2: 0.3, 5: 0.2, 6: 0.31, 7: 0.3, 8: 0.0}
    verdicts = choose(grouping, scores, stage="x")
    # Equal scores: the first; a set whose best is not above 0.3 goes whole; 0.3 itself is not above 0.3.
    assert sorted(i for i, verdict in verdicts.items() if verdict.kept) == [0, 1, 3, 6]
    assert set(verdicts) == set(range(9))
    assert all(verdict.reason for verdict in verdicts.values())
