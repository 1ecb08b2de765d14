"""Ways to generate: each equals the masked twin step by step, or says in one sentence why it cannot."""

from __future__ import annotations

import copy
import threading
import warnings

import pytest
import torch
from torch import Tensor
from transformers import TextIteratorStreamer

import vlmprune
from tests.support.grid import grid
from tests.support.planted import Planted
from tests.support.reference import all_logits
from tests.support.running import STEPS, assert_near, generate, plan_of, reference, shared
from tests.support.tiny_families import FAMILIES, IMAGE, Inputs, build, make_inputs, repeated, row
from tests.support.upstream import wrong_before
from vlmprune.hf.compatibility import CACHE
from vlmprune.inputs.chat import prepare

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

# One of each kind: plain, several position axes with DeepStack, sliding windows, bidirectional prefix, cross attention.
KINDS = ("llava", "qwen3_vl", "gemma3", "paligemma", "mllama")
# Pruned before the language model, and inside it: the caches differ.
LAYERS = [0, 2]


@grid(family=FAMILIES, layer=LAYERS)
def test_beam_search(family, layer):
    """The score of the winning beam is the mean log-probability that the masked twin gives to its tokens."""
    if family == "internvl":
        wrong_before("5.19", "beams and return sequences repeat the tiles of an image one by one")
    model = shared(family)
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, "ragged")
    options = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False, "output_scores": True}
    with vlmprune.wrap(model, Planted(plan=plan, layer=layer)) as pruned:
        out = model.generate(**inputs, **options, return_dict_in_generate=True)
        report = pruned.report
    tokens = out.sequences[:, -5:]
    chance = reference(model, inputs, plan, layer, 5, tokens).log_softmax(-1)
    score = chance.gather(2, tokens[:, :, None]).squeeze(-1).mean(dim=1)
    torch.testing.assert_close(out.sequences_scores, score, rtol=0, atol=1e-4)
    assert [tuple(kept.tolist()) for kept in report.kept] == list(plan)  # one entry a prompt, not a beam


@grid(family=KINDS, method=["random", "downsample", "fastv"])
def test_beams_of_a_prompt_select_alike(family, method):
    model = shared(family)
    inputs = make_inputs(model)
    with vlmprune.wrap(model, method, keep=0.5, layer=2) as pruned:
        model(**inputs)
        kept = pruned.report.kept
        model.generate(**inputs, num_beams=2, max_new_tokens=3, do_sample=False)
        assert all(torch.equal(a, b) for a, b in zip(pruned.report.kept, kept, strict=True))
        assert len(pruned.report.kept) == 3


@grid(family=FAMILIES, layer=LAYERS)
def test_sampling_with_a_seed_and_several_return_sequences(family, layer):
    if family == "internvl":
        wrong_before("5.19", "beams and return sequences repeat the tiles of an image one by one")
    model = shared(family)
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, "ragged")
    twice = repeated(inputs, 2)
    options = {"do_sample": True, "num_return_sequences": 2, "temperature": 1.5}
    with vlmprune.wrap(model, Planted(plan=plan, layer=layer)) as pruned:
        torch.manual_seed(7)
        logits, out = generate(model, inputs, **options)
        torch.manual_seed(7)
        again, _ = generate(model, inputs, **options)
        assert len(pruned.report.kept) == 3
    assert torch.equal(logits, again)
    double = tuple(kept for kept in plan for _ in range(2))
    assert_near(logits, reference(model, twice, double, layer, STEPS, out.sequences[:, -STEPS:]))


@grid(family=FAMILIES, layer=LAYERS)
def test_without_a_cache(family, layer):
    """Every step runs the whole prompt again and prunes it again.

    transformers itself takes a generated image token for a placeholder then, so none may be generated.
    """
    if family == "paligemma":
        wrong_before("5.18", "without a cache, logits are off by 5.5 from the third step on")
    model = shared(family)
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, "ragged")
    with vlmprune.wrap(model, Planted(plan=plan, layer=layer)):
        logits, out = generate(model, inputs, steps=4, use_cache=False, suppress_tokens=[IMAGE])
    assert_near(logits, reference(model, inputs, plan, layer, 4, out.sequences[:, -4:]))


@grid(family=[f for f in FAMILIES if f != "paligemma"], layer=[0, 1, 2], name=sorted({CACHE, "past_key_values"}))
def test_a_second_text_turn_on_the_returned_cache(family, layer, name):
    """PaliGemma is left out: whether a later turn belongs to the bidirectional prefix is not defined for it."""
    model = shared(family)
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, "ragged")
    more = torch.randint(10, 99, (3, 4))
    with vlmprune.wrap(model, Planted(plan=plan, layer=layer)) as pruned:
        _, first = generate(model, inputs, steps=3)
        ids = torch.cat([first.sequences, more], dim=1)
        follow = {
            "input_ids": ids,
            "attention_mask": torch.cat([inputs["attention_mask"], torch.ones(3, 7, dtype=torch.long)], dim=1),
            name: first.past_key_values,
        }
        if family == "mllama":  # text rows see the images their prompt's last token sees
            mask = inputs["cross_attention_mask"]
            follow["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].expand(-1, 7, -1, -1)], dim=1)
        logits, second = generate(model, follow, steps=4)
        assert [tuple(kept.tolist()) for kept in pruned.report.kept] == list(plan)
    tokens = torch.cat([first.sequences[:, -3:], more, second.sequences[:, -4:]], dim=1)
    expected = reference(model, inputs, plan, layer, 11, tokens)[:, -4:]
    assert_near(logits, expected)


@grid(family=KINDS, layer=LAYERS)
def test_static_cache(family, layer):
    if family == "gemma3":
        wrong_before("5.17", "an IndexError in the masks of a static cache")
    if family == "mllama":
        wrong_before("5.18", "an IndexError in a static cache")
    model = shared(family)
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, "ragged")
    options = {"cache_implementation": "static", "disable_compile": True}
    with vlmprune.wrap(model, Planted(plan=plan, layer=layer)):
        if family == "mllama":
            with pytest.raises(vlmprune.VlmpruneError, match="static cache"):
                generate(model, inputs, **options)
            return
        logits, out = generate(model, inputs, **options)
    assert_near(logits, reference(model, inputs, plan, layer, STEPS, out.sequences[:, -STEPS:]))


@grid(family=KINDS, layer=LAYERS)
def test_prompt_lookup(family, layer):
    """Candidates are checked several at a time and taken back from the cache when they are wrong."""
    if family == "mllama":
        wrong_before("5.18", "an IndexError in prompt lookup")
    model = shared(family)
    inputs = row(make_inputs(model, text_lengths=(12, 9, 7)), 0)
    plan = plan_of(model, inputs, "equal")
    with vlmprune.wrap(model, Planted(plan=plan, layer=layer)):
        out = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, prompt_lookup_num_tokens=3)
        greedy = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    assert torch.equal(out, greedy)


def test_a_streamer_gets_the_same_text():
    large, _, processor = vlmprune.load_tiny()
    picture, question = vlmprune_example()
    inputs = prepare(processor, picture, question)
    with vlmprune.wrap(large, "fastv", keep=0.3):
        text = processor.decode(
            large.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        thread = threading.Thread(target=large.generate, kwargs={**inputs, "max_new_tokens": 6, "streamer": streamer})
        thread.start()
        streamed = "".join(streamer)
        thread.join()
    assert streamed.strip() == text.strip()


def vlmprune_example():
    from vlmprune.tiny import example

    return example()


def test_the_pipeline():
    from transformers import pipeline

    large, _, processor = vlmprune.load_tiny()
    picture, question = vlmprune_example()
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    with vlmprune.wrap(large, "fastv", keep=0.3, processor=processor) as pruned:
        answer = pruned.ask(picture, question, max_new_tokens=6, do_sample=False)
        ask = pipeline("image-text-to-text", model=large, processor=processor)
        (out,) = ask(text=[{"role": "user", "content": content}], max_new_tokens=6, return_full_text=False)
        assert out["generated_text"].strip() == answer.text
        assert pruned.report.kept_tokens == answer.report.kept_tokens
        assert pruned.report.kept_tokens[0] < pruned.report.visual_tokens[0]


@grid(family=["llava", "qwen3_vl", "gemma3", "mllama"], where=["cpu_offload", "disk"], first=["wrap", "dispatch"])
def test_accelerate(family, where, first, tmp_path):
    if family == "mllama" and where == "cpu_offload":
        where = "disk"  # transformers' Mllama cannot be offloaded whole, wrapped or not: a meta tensor is copied
    from accelerate import cpu_offload, dispatch_model

    model, plain = build(family), shared(family)
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, "ragged")

    def dispatch() -> None:
        if where == "cpu_offload":
            cpu_offload(model, execution_device=torch.device("cpu"))
        else:
            parts = {name: "cpu" for name, _ in model.named_children()}
            parts["lm_head"] = "disk"
            dispatch_model(model, parts, main_device="cpu", offload_dir=tmp_path, force_hooks=True)

    if first == "dispatch":
        dispatch()
    with vlmprune.wrap(model, Planted(plan=plan, layer=1)):
        if first == "wrap":
            dispatch()
        logits, out = generate(model, inputs, steps=4)
    assert_near(logits, reference(plain, inputs, plan, 1, 4, out.sequences[:, -4:]))


@pytest.mark.parametrize("family", KINDS)
def test_peft_lora(family):
    peft = pytest.importorskip("peft")
    model = build(family)
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, "ragged")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = peft.get_peft_model(model, config).eval()
    with vlmprune.wrap(tuned, Planted(plan=plan, layer=1)) as pruned:
        logits, out = generate(tuned, inputs, steps=4)
        same, _ = generate(pruned, inputs, steps=4)
    assert torch.equal(same, logits)
    assert_near(logits, reference(model, inputs, plan, 1, 4, out.sequences[:, -4:]))


def training_loss(model: torch.nn.Module, inputs: Inputs, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**inputs, labels=labels, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_training_with_labels_and_gradient_checkpointing(family):
    """The loss is over text rows only, so the masked twin has the same; checkpointing changes no gradient."""
    model = build(family)
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, "ragged")
    labels = text_labels(model, inputs)
    logits = all_logits(model, inputs, plan, layer=1)[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    model.train()
    with vlmprune.wrap(model, Planted(plan=plan, layer=1)):
        loss, gradients = training_loss(model, inputs, labels)
        model.gradient_checkpointing_enable()
        again, recomputed = training_loss(model, inputs, labels)
    assert_near(loss, expected)
    assert_near(again, loss)
    assert gradients.keys() == recomputed.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-4, atol=1e-6)


def text_labels(model: torch.nn.Module, inputs: Inputs) -> Tensor:
    """Only the last two tokens of every prompt are learned: text rows predict them, and those are never dropped."""
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -2:] = inputs["input_ids"][:, -2:]
    return labels


@pytest.mark.parametrize("family", FAMILIES)
def test_deepcopy_and_save_pretrained_see_the_plain_model(family, tmp_path):
    model = shared(family)
    inputs = make_inputs(model)
    plain = model(**inputs).logits
    with vlmprune.wrap(model, "fastv", keep=0.3) as pruned:
        before = model(**inputs).logits
        twin = copy.deepcopy(model)
        model.save_pretrained(tmp_path)
        assert torch.equal(model(**inputs).logits, before)  # still wrapped
        assert pruned.active
    assert torch.equal(twin(**inputs).logits, plain)
    assert not any(layer._forward_pre_hooks for layer in twin.modules())
    assert "vlmprune" not in (tmp_path / "config.json").read_text()
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).logits, plain)
    with vlmprune.wrap(twin, "random", keep=0.3):
        assert not torch.equal(twin(**inputs).logits, plain)


@pytest.mark.parametrize("family", KINDS)
def test_threads_are_never_mixed_up(family):
    """Two threads call one wrapped model with prompts of their own; each gets what it gets alone."""
    model = shared(family)
    inputs = make_inputs(model)
    singles: list[Inputs] = [row(inputs, i) for i in range(3)]
    results: dict[int, Tensor] = {}
    with vlmprune.wrap(model, "fastv", keep=0.4):
        alone = [generate(model, single, steps=5)[0] for single in singles]

        def work(i: int) -> None:
            for _ in range(3):
                results[i] = generate(model, singles[i], steps=5)[0]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(results[i], alone[i]) for i in range(3))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_model_that_drafts_for_itself(family):
    """One `generate` within another: the inner one took the grids of the outer one's images away."""
    model = shared(family)
    inputs = row(make_inputs(model), 0)
    for method in (Planted(plan=((0, 2),), layer=1), vlmprune.SGL(guide=build(family, seed=1), keep=3, layer=1)):
        with vlmprune.wrap(model, method) as pruned:
            plain = pruned.generate(**inputs, max_new_tokens=5, do_sample=False)
            drafted = pruned.generate(**inputs, max_new_tokens=5, do_sample=False, assistant_model=model)
            assert drafted.tolist() == plain.tolist()
            assert [kept.tolist() for kept in drafted.report.kept] == [kept.tolist() for kept in plain.report.kept]
            assert pruned.report is drafted.report
