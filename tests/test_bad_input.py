"""Whatever a user gets wrong raises a VlmpruneError of one sentence with the bad value and the remedy in it."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import vlmprune
from tests.support.planted import Planted
from tests.support.running import shared
from tests.support.tiny_families import FAMILIES, make_inputs
from vlmprune.hf import compatibility
from vlmprune.hf.compatibility import NEWEST, OLDEST
from vlmprune.methods.base import Pruner, PruningContext


def sentence(call: Callable[[], object], *parts: str, kind: type[Exception] = vlmprune.VlmpruneError) -> str:
    """The message of the error that `call` raises: one sentence that holds every one of `parts`."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    # A full stop, a blank and a capital letter would begin a second sentence.
    assert not re.search(r"[.!?] +[A-Z]", message), message
    for part in parts:
        assert part in message, message
    return message


@pytest.mark.parametrize("keep", [0, 0.0, -0.1, -3, 1.5, "x", float("nan"), float("inf"), None, True])
@pytest.mark.parametrize("method", ["random", "uniform", "downsample", "fastv"])
def test_keep(method, keep):
    message = sentence(lambda: vlmprune.wrap(shared("llava"), method, keep=keep), f"keep={keep!r}")
    assert "float in (0, 1]" in message
    assert "int >= 1" in message


@pytest.mark.parametrize("layer", [4, 99, -1, 1.0, -0.5, "two", float("nan"), True])
def test_layer(layer):
    sentence(lambda: vlmprune.wrap(shared("llava"), "random", layer=layer), "layer", repr(layer), "0 ")


@pytest.mark.parametrize("layer", [0, 0.0, 0.2])
def test_fastv_has_no_layer_before_the_first(layer):
    sentence(lambda: vlmprune.wrap(shared("llava"), "fastv", layer=layer), f"layer={layer!r}", "layer=1")


def test_fastv_on_mllama_needs_a_cross_attention_layer_before():
    sentence(lambda: vlmprune.wrap(shared("mllama"), "fastv", layer=1), "layer=1", "layer=2")


def test_a_bad_wrap_leaves_the_older_one():
    model = shared("llava")
    with vlmprune.wrap(model, vlmprune.Random(keep=0.5)) as pruned:
        sentence(lambda: vlmprune.wrap(model, "fastv", layer=99))
        sentence(lambda: vlmprune.wrap(model, "random", keep=7.5))
        model(**make_inputs(model))
        assert pruned.report.method["name"] == "random"


def test_a_language_model_is_no_vlm():
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    text_only = LlamaForCausalLM(config)
    call = lambda: vlmprune.wrap(text_only, "random")  # noqa: E731
    sentence(call, "'llama'", "list_families()", kind=vlmprune.UnsupportedModelError)


@pytest.mark.parametrize("thing", [None, "llava-hf/llava-1.5-7b-hf", 3, torch.nn.Linear(2, 2)], ids=repr)
def test_no_model_at_all(thing):
    sentence(lambda: vlmprune.wrap(thing, "random"), type(thing).__name__, kind=vlmprune.UnsupportedModelError)


def test_a_model_without_a_language_head():
    sentence(lambda: vlmprune.wrap(shared("llava").model, "random"), kind=vlmprune.UnsupportedModelError)


def test_a_type_of_tomorrow_goes_through_the_generic_adapter(monkeypatch):
    model = shared("llava")
    inputs = make_inputs(model)
    monkeypatch.setattr(type(model.config), "model_type", "llava_from_tomorrow")
    with vlmprune.wrap(model, "random") as pruned:
        model(**inputs)
        assert pruned.report.adapter == "generic"


@pytest.mark.parametrize("version", ["4.57.0", "5.13.1", "5.14.0.dev0"])
def test_transformers_older_than_supported(monkeypatch, version):
    monkeypatch.setattr(compatibility.transformers, "__version__", version)
    sentence(lambda: vlmprune.wrap(shared("llava"), "random"), version, OLDEST, "upgrade")


def test_transformers_newer_than_tested_warns_once(monkeypatch):
    """A minor version nobody has tried yet works or fails by itself; a patch of the newest says nothing."""
    monkeypatch.setattr(compatibility, "_warned", set())
    major, minor = map(int, NEWEST.split("."))
    newer = f"{major}.{minor + 1}.0"
    said = []
    for version in (f"{NEWEST}.9", newer, newer, f"{OLDEST}.0", newer):
        monkeypatch.setattr(compatibility.transformers, "__version__", version)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            vlmprune.wrap(shared("llava"), "random").unwrap()
        said.append([(one.category, Path(one.filename).name) for one in caught if version in str(one.message)])
        assert all(str(one.message).count(". ") == 0 and NEWEST in str(one.message) for one in caught)
    assert said == [[], [(UserWarning, Path(__file__).name)], [], [], []]


@pytest.mark.parametrize(("name", "meant"), [("fast-v", "fastv"), ("randm", "random"), ("downsampling", "downsample")])
def test_unknown_method_suggests_the_nearest(name, meant):
    sentence(lambda: vlmprune.wrap(shared("llava"), name), repr(name), repr(meant))


def test_unknown_method_that_is_near_nothing():
    sentence(lambda: vlmprune.wrap(shared("llava"), "zzz"), "'zzz'", "fastv", "random", "uniform")


def test_unknown_option():
    sentence(lambda: vlmprune.wrap(shared("llava"), "random", kep=0.5), "kep", "random")


@pytest.mark.parametrize("method", sorted(vlmprune.list_methods()))
def test_unknown_and_missing_options_of_every_method(method):
    wrap = lambda **options: vlmprune.wrap(shared("llava"), method, **options)  # noqa: E731
    given = {"guide": shared("llava")} if method == "sgl" else {}
    message = sentence(lambda: wrap(sharpness=3, **given), repr(method), "'sharpness'")
    assert "__init__" not in message
    kind = vlmprune.list_methods()[method]
    if issubclass(kind, vlmprune.Pruner | vlmprune.CacheCut):
        sentence(lambda: wrap(kep=0.5, **given), repr(method), "'kep'", "did you mean 'keep'?")
        sentence(lambda: wrap(keep="0.5", **given), "keep='0.5'", "float")
        sentence(lambda: wrap(keep=True, **given), "keep=True")
    if issubclass(kind, vlmprune.Pruner):
        sentence(lambda: wrap(positions="orignal", **given), "'orignal'", "'original'")
    if issubclass(kind, vlmprune.Pruner) and method not in ("sgl", "fastv-oracle"):
        sentence(lambda: wrap(layer="two"), "layer must be an int >= 0", "got 'two'")
    sentence(lambda: vlmprune.wrap(shared("llava"), method, 0.5), "0.5", "by name")


def test_missing_options():
    for given in ({}, {"keep": 0.5}):
        message = sentence(lambda g=given: vlmprune.wrap(shared("llava"), "sgl", **g), "'sgl'", "guide=")
        assert "__init__" not in message
    sentence(lambda: vlmprune.wrap(shared("llava"), "sgl", guide=None), "guide must be", "small", "got None")
    sentence(lambda: vlmprune.wrap(shared("llava"), "sgl", guide="small"), "guide must be", "small", "got 'small'")
    sentence(lambda: vlmprune.wrap(shared("llava"), "sgl", guide=3), "'int'")
    sentence(lambda: vlmprune.wrap(shared("llava"), "sgl", guide=shared("llava")), "the model itself")
    sentence(lambda: vlmprune.wrap(shared("llava"), "sgl", gide=shared("llava")), "'gide'", "'guide'")


def test_options_that_go_with_no_list():
    for methods in (["random", "var"], ["random"], [vlmprune.Random(), "var"]):
        sentence(lambda m=methods: vlmprune.wrap(shared("llava"), m, keep=0.5), "'keep'", "list", "FastV(keep=0.25)")
    sentence(lambda: vlmprune.wrap(shared("llava"), [None, "var"]), "None")
    sentence(lambda: vlmprune.wrap(shared("llava"), ["random", ["var"]]), "['var']")
    sentence(lambda: vlmprune.wrap(shared("llava"), ["randm", "var"]), "'randm'", "'random'")


def test_a_third_argument():
    for third in (0.5, object(), vlmprune.VAR()):
        sentence(lambda t=third: vlmprune.wrap(shared("llava"), "random", t), "wrap()", repr(third)[:60], "by name")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("random", {"layer": None}),
        ("random", {"seed": "x"}),
        ("random", {"seed": True}),
        ("fastv", {"layer": [2]}),
        ("fastv", {"exclude_sinks": "yes"}),
        ("var", {"p": "0.4"}),
        ("var", {"rho": None}),
        ("var", {"tau": "20"}),
        ("var", {"sink_dims": 3}),
        ("act", {"beta": True}),
        ("act", {"heads": [3]}),
        ("pyramiddrop", {"keep": None}),
    ],
    ids=str,
)
def test_options_of_another_type(method, options):
    ((name, value),) = options.items()
    message = sentence(lambda: vlmprune.wrap(shared("llava"), method, **options), name, repr(value))
    assert "__init__" not in message


def test_options_beside_an_object():
    sentence(lambda: vlmprune.wrap(shared("llava"), vlmprune.Random(), keep=0.5), "keep", "Random")


@pytest.mark.parametrize("method", [None, 0.25, object()], ids=["none", "float", "object"])
def test_no_method(method):
    sentence(lambda: vlmprune.wrap(shared("llava"), method))


def test_lists_of_methods():
    sentence(lambda: vlmprune.wrap(shared("llava"), []), "empty")
    sentence(lambda: vlmprune.wrap(shared("llava"), [vlmprune.VAR(), "var"]), "var twice")
    sentence(lambda: vlmprune.wrap(shared("llava"), [vlmprune.VAR(), "downsample", "fastv"]), "at most one pruner")
    sentence(lambda: vlmprune.wrap(shared("llava"), [vlmprune.Random(), vlmprune.FastV()]), "random", "fastv")


@pytest.mark.parametrize("seed", [-1, 1.5, "x"])
def test_random_seed(seed):
    sentence(lambda: vlmprune.Random(seed=seed), f"seed must be an int >= 0, got {seed!r}")


def test_positions():
    sentence(lambda: vlmprune.Random(positions="somewhere"), "'somewhere'", "compact")
    for family in ("qwen2_vl", "gemma3", "mllama"):
        sentence(lambda f=family: vlmprune.wrap(shared(f), "random", positions="compact"), repr(family), "original")


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_without_ids(family):
    model = shared(family)
    embeddings = model.get_input_embeddings()(torch.tensor([[1, 20, 30]]))
    with vlmprune.wrap(model, vlmprune.Random(keep=0.5)):
        sentence(lambda: model(inputs_embeds=embeddings), "inputs_embeds", "input_ids")
        model(**make_inputs(model))  # the next call is fine


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_without_image_runs_unpruned_and_says_so(family):
    model = shared(family)
    inputs = make_inputs(model, images=(0, 0, 0))
    if family == "paligemma":
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    plain = model(**inputs).logits
    with vlmprune.wrap(model, vlmprune.Random(keep=0.5)) as pruned:
        assert torch.equal(model(**inputs).logits, plain)
        report = pruned.report
    assert report.visual_tokens == report.kept_tokens == [0, 0, 0]
    assert any("no image" in note for note in report.notes)
    assert "no image" in str(report)
    json.dumps(report.to_dict())


@dataclass(frozen=True)
class NoNumber(Pruner):
    def score(self, prompt: PruningContext) -> list[Tensor]:
        return [torch.full((layout.count,), float("nan")) for layout in prompt.layouts]


def test_nan_scores():
    model = shared("llava")
    with vlmprune.wrap(model, NoNumber(keep=0.5)):
        sentence(lambda: model(**make_inputs(model)), "NaN")


@pytest.mark.parametrize("kept", [(), tuple(range(10)), (0, 0), (3, 1), (9,), (-1,)], ids=str)
def test_a_selection_that_is_none(kept):
    """Empty, too many, twice the same, not ascending, out of range."""
    model = shared("llava")
    inputs = make_inputs(model, text_lengths=(5,), images=(1,))
    with vlmprune.wrap(model, Planted(plan=(kept,))):
        sentence(lambda: model(**inputs), "Planted")


def test_registering():
    for name in ("Fast V", "", "1st", None, 3):
        sentence(lambda n=name: vlmprune.register_method(name=n, method=NoNumber), repr(name))
    sentence(lambda: vlmprune.register_method(name="fastv", method=NoNumber), "'fastv'")
    sentence(lambda: vlmprune.register_method(name="mine", method=int), "int")
    assert "mine" not in vlmprune.list_methods()


def test_ask():
    large, _, processor = vlmprune.load_tiny()
    from vlmprune.tiny import example

    picture, question = example()
    with vlmprune.wrap(large, "random") as pruned:
        sentence(lambda: pruned.ask(picture, question), "processor")
    with vlmprune.wrap(large, "random", processor=processor) as pruned:
        for bad in (None, 3, [picture, None], b"\x89PNG", np.zeros((4, 4, 3)), torch.zeros(3, 4, 4)):
            sentence(lambda b=bad: pruned.ask(b, question), "PIL")
        sentence(lambda: pruned.ask([], question), "empty")
        for bad in ("", "  ", None):
            sentence(lambda b=bad: pruned.ask(picture, b), f"question={bad!r}")


def test_ask_takes_paths(tmp_path, monkeypatch):
    """A str, a Path, and lists of these and pictures; whatever is no image file is said in one sentence."""
    from PIL import Image

    from vlmprune.tiny import example

    large, _, processor = vlmprune.load_tiny()
    picture, question = example()
    monkeypatch.chdir(tmp_path)
    picture.save("star.png")
    Path("notes.txt").write_text("no picture")
    Path("empty.png").touch()
    Path("half.png").write_bytes(Path("star.png").read_bytes()[:400])
    Path("folder").mkdir()
    Path("clip.mp4").touch()
    with vlmprune.wrap(large, "fastv", processor=processor) as pruned:

        def kept(image: object) -> tuple[str, list[list[int]]]:
            answer = pruned.ask(image, question, max_new_tokens=2)
            return answer.text, [some.tolist() for some in answer.report.kept]

        with Image.open("star.png") as opened:
            expected = kept(opened.convert("RGB"))
        for image in ("star.png", Path("star.png"), tmp_path / "star.png", ["star.png"], (Path("star.png"),)):
            assert kept(image) == expected
        assert kept(["star.png", picture]) == kept([picture, picture]) != expected
        for bad, named in {
            "moon.png": "'moon.png'",
            "folder": "'folder'",
            "notes.txt": "'notes.txt'",
            "empty.png": "'empty.png'",
            "half.png": "'half.png'",
            "clip.mp4": "video",
            "": "",
            "a\0b.png": "",
            "x" * 5000: "",
            "http://example.org/star.png": "web address",
            "https://example.org/star.png": "download",
            "file:///star.png": "address",
            "data:image/png;base64,iVBORw0KGgo=": "address",
        }.items():
            for image in (bad, [picture, bad]) if bad else (bad,):
                sentence(lambda i=image: pruned.ask(i, question), named)


def test_a_report_before_any_call():
    with vlmprune.wrap(shared("llava"), "random") as pruned:
        sentence(lambda: pruned.report, "report")


def test_an_overlay_of_no_image():
    from PIL import Image

    model = shared("llava")
    with vlmprune.wrap(model, "random") as pruned:
        model(**make_inputs(model))
        sentence(lambda: pruned.report.overlay(Image.new("RGB", (8, 8)), sample=7), "7")
        sentence(lambda: pruned.report.overlay("star.png"), "PIL")


def test_placeholders_and_images_that_do_not_add_up():
    """Another processor's prompt: transformers' own check or ours, but no silent pruning of the wrong tokens."""
    model = shared("llava_next")
    inputs = make_inputs(model)
    del inputs["image_sizes"]
    with vlmprune.wrap(model, "random"), pytest.raises((ValueError, TypeError, AttributeError)):
        model(**inputs)
