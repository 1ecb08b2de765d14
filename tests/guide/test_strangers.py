"""Guide and model of different families, grids and tokenizers; what cannot work says so in one sentence."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast

import vlmprune
from tests.support.planted import counts
from tests.support.reference import masked_logits
from tests.support.running import assert_near, generate
from tests.support.tiny_families import build, make_inputs
from vlmprune import SGL, UnsupportedModelError, VlmpruneError
from vlmprune.guide.inputs import prompt_inputs
from vlmprune.guide.runner import Guide
from vlmprune.inputs.chat import prepare
from vlmprune.tiny import example

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def pair():
    return vlmprune.load_tiny()


@pytest.fixture(scope="module")
def foreign(pair):
    """The small model with every word under another id, and the processor that writes these ids."""
    _, small, processor = pair
    words = processor.tokenizer.get_vocab()
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(0)).tolist()
    guide, theirs = copy.deepcopy(small), copy.deepcopy(processor)
    backend = theirs.tokenizer.backend_tokenizer.to_str()
    state = json.loads(backend)
    state["model"]["vocab"] = {word: order[i] for word, i in words.items()}
    for token in state["added_tokens"]:
        token["id"] = order[token["id"]]
    for special in state["post_processor"]["special_tokens"].values():
        special["ids"] = [order[i] for i in special["ids"]]

    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        additional_special_tokens=["<image>", "<ans>"],
        padding_side="left",
        **{name: getattr(processor.tokenizer, name) for name in names},
    )
    theirs.tokenizer = tokenizer
    theirs.image_token_id = order[processor.image_token_id]
    table = guide.get_input_embeddings().weight
    with torch.no_grad():
        moved = table.clone()
        for i, new in enumerate(order):
            moved[new] = table[i]
        guide.get_input_embeddings().weight = nn.Parameter(moved)
        guide.tie_weights()
    guide.config.image_token_id = order[small.config.image_token_id]
    for config in (guide.config.text_config, guide.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(config, name)
            setattr(config, name, None if value is None else order[value])
    return guide, theirs


def test_a_guide_with_another_tokenizer_ranks_and_answers_the_same(pair, foreign):
    large, small, processor = pair
    guide, theirs = foreign
    picture, question = example()
    for exit_at in (None, 0.0):
        with vlmprune.wrap(large, SGL(small, keep=0.1, exit_at=exit_at), processor=processor) as pruned:
            own = pruned.ask(picture, question)
        method = SGL(guide, keep=0.1, exit_at=exit_at, guide_processor=theirs)
        with vlmprune.wrap(large, method, processor=processor) as pruned:
            other = pruned.ask(picture, question)
        assert other.text == own.text
        assert torch.equal(other.report.kept[0], own.report.kept[0])
        assert other.report.exited == own.report.exited
        assert other.report.confidence == pytest.approx(own.report.confidence, rel=1e-3)


def test_what_an_exit_returns_are_the_models_own_ids(pair, foreign):

    large, small, processor = pair
    guide, theirs = foreign
    picture, question = example()
    inputs = prepare(processor, picture, question)
    expected = small.generate(**inputs, max_new_tokens=8, do_sample=False)
    with vlmprune.wrap(large, SGL(guide, exit_at=0.0, guide_processor=theirs), processor=processor) as pruned:
        out = pruned.generate(**inputs, max_new_tokens=8, guide_inputs=prepare(theirs, picture, question))
        assert torch.equal(out, expected)
        with pytest.raises(VlmpruneError, match="guide_inputs"):
            pruned.generate(**inputs, max_new_tokens=8)
        with pytest.raises(VlmpruneError, match="guide_inputs"):
            large(**inputs)


@pytest.mark.parametrize(("ours", "theirs"), [("qwen2_5_vl", "llava"), ("llava_next", "smolvlm"), ("mllama", "gemma3")])
def test_a_guide_of_another_family_with_another_grid(ours, theirs):
    model, guide = build(ours), build(theirs, layers=2, seed=1)
    inputs, guide_inputs = make_inputs(model, images=(1, 2, 1)), make_inputs(guide, images=(1, 2, 1))

    class Words:
        def get_vocab(self):
            return {}

    method = SGL(guide, keep=0.3, layer=1, guide_processor=Words())
    with vlmprune.wrap(model, method) as pruned:
        logits, out = generate(model, inputs, steps=4, guide_inputs=dict(guide_inputs))
        report = pruned.report
    assert report.visual_tokens == counts(model, inputs)
    assert_near(logits, masked_logits(model, inputs, report.kept, 1, 4, out.sequences[:, -4:]))
    found = Guide(guide).rank(prompt_inputs(dict(guide_inputs)))
    assert [len(layout.images) for layout in found.layouts] == [1, 2, 1]
    few = make_inputs(guide, images=(1, 1, 1))
    with vlmprune.wrap(model, method), pytest.raises(VlmpruneError, match="sees 1 images in sample 1 and the model 2"):
        model.generate(**inputs, max_new_tokens=2, guide_inputs=dict(few))
    two = {"input_ids": few["input_ids"][:2]}
    with vlmprune.wrap(model, method), pytest.raises(VlmpruneError, match="2 prompts and the call 3"):
        model.generate(**inputs, max_new_tokens=2, guide_inputs=two)


@pytest.mark.parametrize(
    ("options", "what", "value"),
    [
        ({"exit_at": 1.5}, "exit_at must be", "1.5"),
        ({"exit_at": -0.1}, "exit_at must be", "-0.1"),
        ({"exit_at": float("nan")}, "exit_at must be", "nan"),
        ({"exit_at": True}, "exit_at must be", "True"),
        ({"exit_at": "high"}, "exit_at must be", "'high'"),
        ({"guide_steps": 0}, "guide_steps must be", "0"),
        ({"guide_keep": 1.5}, "guide_keep=1.5 is out of range", "1.5"),
        ({"guide_steps": 1.5}, "guide_steps must be", "1.5"),
        ({"keep": 0.0}, "keep=", "0.0"),
        ({"layer": 1.0}, "layer must be", "1.0"),
        ({"guide": None}, "guide must be", "None"),
        ({"guide": "small"}, "guide must be", "'small'"),
    ],
)
def test_bad_options(options, what, value):
    guide = options.pop("guide") if "guide" in options else build("llava", layers=2)
    with pytest.raises(VlmpruneError) as error:
        SGL(guide, **options)
    assert str(error.value).startswith(what) and value in str(error.value)
    assert "\n" not in str(error.value)


def test_guides_that_do_not_fit():
    model = build("llava")
    for method, words in (
        (SGL(model), "guide is the model itself"),
        (SGL(build("qwen2_5_vl", layers=2)), "pass guide_processor="),
        (SGL(build("qwen2_5_vl", layers=2), exit_at=0.5, guide_processor=object()), "processor=..."),
    ):
        with pytest.raises(VlmpruneError, match=words):
            vlmprune.wrap(model, method)
    with pytest.raises(UnsupportedModelError, match=r"list_families\(\)"):
        vlmprune.wrap(model, SGL(nn.Linear(2, 2)))


def test_logits_cannot_be_had_with_exits_and_can_without():
    model, small = build("llava"), build("llava", layers=2, seed=1)
    inputs = make_inputs(model)
    with vlmprune.wrap(model, SGL(small, exit_at=0.9)), pytest.raises(VlmpruneError, match="output_logits=True"):
        generate(model, inputs, steps=2)
    with vlmprune.wrap(model, SGL(small, exit_at=0.9)):
        out = model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True)
        assert out.sequences.shape[0] == 3


def test_a_prompt_without_ids_says_what_is_missing():
    model, small = build("llava"), build("llava", layers=2, seed=1)
    inputs = dict(make_inputs(model))
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    with vlmprune.wrap(model, SGL(small)), pytest.raises(VlmpruneError, match="pass input_ids with the image"):
        model.generate(**inputs, max_new_tokens=2)


def test_text_alone_and_later_turns_need_no_guide():
    model, small = build("llava"), build("llava", layers=2, seed=1)
    inputs = make_inputs(model, images=(0, 0, 0))
    with vlmprune.wrap(model, SGL(small, exit_at=0.0)) as pruned:
        assert model.generate(**inputs, max_new_tokens=2).shape[0] == 3
        assert pruned.report.notes


def test_a_part_of_the_model_has_no_ranking():
    model, small = build("llava"), build("llava", layers=2, seed=1)
    inputs = make_inputs(model)
    with (
        vlmprune.wrap(model, SGL(small, keep=0.5)),
        torch.no_grad(),
        pytest.raises(VlmpruneError, match="whole model"),
    ):
        model.model(**inputs)


def test_a_failing_guide_leaves_both_models_usable():
    model, small = build("llava"), build("llava", layers=2, seed=1)
    inputs = make_inputs(model)
    with torch.no_grad():
        plain = small(**inputs).logits

    def fail(*args):
        raise RuntimeError("broken guide")

    with vlmprune.wrap(model, SGL(small, keep=0.4)):
        handle = small.model.language_model.layers[1].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="broken guide"):
            model.generate(**inputs, max_new_tokens=2)
        handle.remove()
        assert model.generate(**inputs, max_new_tokens=2).shape[0] == 3
    with torch.no_grad():
        assert torch.equal(small(**inputs).logits, plain)


def test_ask_with_two_pictures_keeps_a_share_of_each(pair):
    large, small, processor = pair
    picture, question = example()
    with vlmprune.wrap(large, SGL(small, keep=0.1), processor=processor) as pruned:
        answer = pruned.ask([picture, Image.new("RGB", (64, 64), "white")], question)
    assert [len(span.kept) for span in answer.report.images[0]] == [20, 20]
