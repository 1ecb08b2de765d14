"""The deterministic aggregator: what counts as the same thing, a contradiction, or something else."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from demos.tiny_vlm.vocabulary import COLOURS, GLYPHS, POSITIONS, SHAPES, SIZES
from vlmprune.captioner import Candidate, Fusion, Grouping, Similar, WordAggregator
from vlmprune.captioner.text import BUNDLED_LEXICON, GENERAL, joined, sentences, singular

TINY = WordAggregator(BUNDLED_LEXICON)
RED_TOP = "a small red circle at the top"

things = st.builds(
    lambda size, colour, shape, place: f"a {size} {colour} {shape} at the {place}",
    st.sampled_from(list(SIZES)),
    st.sampled_from(list(COLOURS)),
    st.sampled_from(SHAPES),
    st.sampled_from([place for row in POSITIONS for place in row]),
)
free = st.text(alphabet="ab .,", max_size=12)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(things | free, max_size=5), max_size=4))
def test_every_sentence_is_in_exactly_one_kind(samples: list[list[str]]) -> None:
    count = sum(map(len, samples))
    grouping = TINY.group(samples)
    texts = [text for sample in samples for text in sample]
    if all(text.strip() for text in texts):
        assert grouping.problem(count) is None
    owner = [k for k, sample in enumerate(samples) for _ in sample]
    for members in [*(one.members for one in grouping.similar), *grouping.contradictory]:
        assert len({owner[i] for i in members}) == len(members)  # never two of one sample
    real = [text for text in texts if text.strip()]
    assert Fusion(tuple(TINY.merge(real))).problem(len(real)) is None


@settings(deadline=None)
@given(st.lists(st.tuples(things, st.sampled_from(["image", "top left", "bottom left"])), max_size=8))
def test_a_fusion_says_or_drops_everything(found: list[tuple[str, str]]) -> None:
    items = [Candidate(text, region, (0, 0, 1, 1)) for text, region in found]
    assert TINY.fuse(items).problem(len(items)) is None


def test_the_same_thing_in_two_samples_is_similar() -> None:
    assert TINY.group([[RED_TOP], [RED_TOP]]) == Grouping((Similar(RED_TOP, (0, 1)),))


def test_the_fullest_wording_stands_for_all() -> None:
    short = "a red circle at the top"
    assert TINY.group([[short], [RED_TOP]]) == Grouping((Similar(RED_TOP, (0, 1)),))


def test_one_conflicting_property_is_a_contradiction() -> None:
    assert TINY.group([[RED_TOP], ["a small blue circle at the top"]]) == Grouping(contradictory=((0, 1),))


def test_a_property_left_out_is_none() -> None:
    assert TINY.group([["a red circle"], ["a circle at the top"]]).contradictory == ()


def test_more_conflict_than_agreement_is_another_thing() -> None:
    assert TINY.group([[RED_TOP], ["a small blue star at the bottom"]]) == Grouping(unique=(0, 1))


def test_two_sentences_of_one_sample_are_two_things() -> None:
    blue = "a small blue circle at the top"
    assert TINY.group([[RED_TOP, blue], [blue]]) == Grouping((Similar(blue, (1, 2)),), (), (0,))


def test_a_place_far_away_is_another_thing() -> None:
    # Next to each other, one thing may be meant; across the image it cannot.
    assert TINY.group([[RED_TOP], ["a small red circle at the top left"]]).contradictory == ((0, 1),)
    assert TINY.group([[RED_TOP], ["a small red circle at the bottom"]]) == Grouping(unique=(0, 1))


def test_ordinary_english() -> None:
    words = WordAggregator()
    samples = [["A man wears a red shirt", "There are two dogs"], ["The man wears a blue shirt", "A tree stands here"]]
    assert words.group(samples) == Grouping(contradictory=((0, 2),), unique=(1, 3))
    assert words.objects("Two dogs and a traffic light.", ["dog", "traffic light", "cat"]) == ["dog", "traffic light"]


def test_fusion_believes_regions_first_then_scores() -> None:
    other = "a small blue circle at the top"
    items = [
        Candidate("a small red circle at the top", "image", (0, 0, 1, 1)),
        Candidate(other, "top left", (0, 0, 0.5, 0.5), 0.4),
        Candidate("a small green circle at the top", "top right", (0.5, 0, 1, 0.5), 0.8),
    ]
    fused = TINY.fuse(items)
    assert [one.text for one in fused.sentences] == ["a small green circle at the top"]
    assert [i for i, _ in fused.dropped] == [0, 1]


def test_sentences_are_split_where_they_end() -> None:
    assert sentences("a red cup . a dog . ") == ["a red cup", "a dog"]
    assert sentences("It costs 1.5 dollars. Mr J. Smith waits! Why? Yes") == [
        "It costs 1.5 dollars",
        "Mr J. Smith waits!",
        "Why?",
        "Yes",
    ]
    assert sentences("- one\n2. two\n\n") == ["one", "two"]
    assert sentences(" . . ") == []


def test_joining_and_singulars() -> None:
    assert joined(["a cup", "Why?"]) == "A cup. Why?"
    assert [singular(w) for w in ("boxes", "dogs", "glass", "bus", "cherries")] == [
        "box",
        "dog",
        "glass",
        "bus",
        "cherry",
    ]


def test_the_bundled_lexicon_has_the_words_of_the_pairs_world() -> None:
    digits = tuple(str(digit) for digit in GLYPHS)
    places = tuple(place for row in POSITIONS for place in row)
    world = {"size": tuple(SIZES), "colour": tuple(COLOURS), "shape": SHAPES, "digit": digits, "position": places}
    assert BUNDLED_LEXICON.properties == world


def test_the_lexicon_takes_the_longest_value() -> None:
    said = BUNDLED_LEXICON.read("a large teal tile with the digit 7 at the bottom right")
    assert {k: sorted(v) for k, v in said.properties.items()} == {
        "size": ["large"],
        "colour": ["teal"],
        "shape": ["tile"],
        "digit": ["7"],
        "position": ["bottom right"],
    }
    assert said.rest == frozenset()
    assert GENERAL.read("The dogs").rest == {"dog"}
