"""VAR and ACT compute what the papers say: logits equal an eager model whose attention maps are edited in loops."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import vlmprune
from tests.support.grid import grid
from tests.support.planted import Planted
from tests.support.reference import language_model, masked_logits
from tests.support.running import STEPS, assert_near, generate, outside, plan_of
from tests.support.sinks import FAMILIES, LAYERS, PLANTED, Seen, Twin, act_twin, planted, shared_planted, var_twin
from tests.support.tiny_families import Inputs, make_inputs, row
from tests.support.upstream import wrong_before

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

LONG = (12, 17, 14)  # text tokens, so that columns have the eight rows that ACT asks for


def along(twin: Twin, inputs: Inputs, tokens: Tensor, kept=None, layer: int = LAYERS) -> Tensor:
    """The twin's logits [B, steps, vocabulary] along given tokens."""
    everything = [[] for _ in inputs["input_ids"]] if kept is None else kept
    with twin.on():
        out = masked_logits(twin.model, inputs, everything, layer, tokens.shape[1], tokens)
    assert twin.rows_sum_to_one
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_var_equals_the_naive_twin(family):
    """Prompt and 8 steps, batch of 3 left-padded; sinks in every eligible layer, gates open and closed."""
    model, seen = shared_planted(family), Seen()
    inputs = make_inputs(model, text_lengths=LONG)
    plain, _ = generate(model, inputs)
    with vlmprune.wrap(model, vlmprune.VAR()) as pruned:
        logits, out = generate(model, inputs)
        notes = pruned.report.notes
    tokens = out.sequences[:, -STEPS:]
    assert_near(logits, along(var_twin(shared_planted(family, "eager"), inputs, seen=seen), inputs, tokens))
    for layer in range(2, LAYERS - 1):
        assert (layer, "no visual sinks") not in seen
        assert seen[layer, "open"] > 3
        assert seen[layer, "closed"] > 3
    assert float((logits - plain).abs().max()) > 1e-2
    assert notes[0] == f"VAR: sink dimensions {PLANTED[0]}, {PLANTED[1]}; visual sinks in layers 2-4"


@pytest.mark.parametrize("family", FAMILIES)
def test_act_equals_the_naive_twin(family):
    model, seen = shared_planted(family), Seen()
    inputs = make_inputs(model, text_lengths=LONG)
    plain, _ = generate(model, inputs)
    with vlmprune.wrap(model, vlmprune.ACT(threshold=0.08)):
        logits, out = generate(model, inputs)
    tokens = out.sequences[:, -STEPS:]
    twin = act_twin(shared_planted(family, "eager"), inputs, threshold=0.08, seen=seen)
    assert_near(logits, along(twin, inputs, tokens))
    assert all(seen[layer, "sinks"] > 0 for layer in range(2, LAYERS - 1))
    assert float((logits - plain).abs().max()) > 1e-2


@grid(family=FAMILIES, pruner=[("fastv", 3), ("ragged", 2), ("equal", 4), ("ragged", 0)])
def test_var_beside_a_pruner_equals_the_twin_on_the_masked_model(family, pruner):
    kind, layer = pruner
    model = shared_planted(family) if layer else planted(family)
    inputs = make_inputs(model, text_lengths=LONG)
    drops = vlmprune.FastV(0.5, layer) if kind == "fastv" else Planted(plan=plan_of(model, inputs, kind), layer=layer)
    if layer == 0:  # what is planted before the first layer must be there before tokens are dropped
        plant = language_model(model).layers[0]._forward_pre_hooks
        plant.move_to_end(next(iter(plant)), last=False)
    with vlmprune.wrap(model, [drops, vlmprune.VAR()]) as pruned:
        logits, out = generate(model, inputs)
        kept = pruned.report.kept
    seen = Seen()
    twin = var_twin(shared_planted(family, "eager"), inputs, kept=kept, layer=layer, seen=seen)
    assert_near(logits, along(twin, inputs, out.sequences[:, -STEPS:], kept, layer))
    assert any(what == "open" for _, what in seen)


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_act_beside_fastv_equals_the_twin_on_the_masked_model(family):
    model, heads = shared_planted(family), ((2, 0), (2, 3), (4, 1))
    inputs = make_inputs(model, text_lengths=LONG)
    with vlmprune.wrap(model, [vlmprune.FastV(0.5, 3), vlmprune.ACT(threshold=0.08, heads=heads)]) as pruned:
        logits, out = generate(model, inputs)
        kept = pruned.report.kept
    twin = act_twin(shared_planted(family, "eager"), inputs, threshold=0.08, heads=heads, kept=kept, layer=3)
    assert_near(logits, along(twin, inputs, out.sequences[:, -STEPS:], kept, 3))


@pytest.mark.parametrize(
    ("family", "images"), [("llava", (2, 1, 2)), ("llava", (1, 0, 1)), ("smolvlm", (2, 1, 2))], ids=str
)
def test_several_images_and_a_sample_without_one(family, images):
    """Rows come after the last image, attention to all images is pooled; a sample without an image is left alone."""
    model = shared_planted(family)
    inputs = make_inputs(model, text_lengths=LONG, images=images)
    plain, _ = generate(model, inputs)
    with vlmprune.wrap(model, vlmprune.VAR()):
        logits, out = generate(model, inputs)
    assert_near(logits, along(var_twin(shared_planted(family, "eager"), inputs), inputs, out.sequences[:, -STEPS:]))
    assert not torch.equal(logits[0], plain[0])
    if images[1] == 0:
        assert torch.equal(logits[1], plain[1])


@pytest.mark.parametrize(
    "options",
    [{"use_cache": False}, {"cache_implementation": "static", "disable_compile": True}, {"num_beams": 2}],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize(
    ("family", "method"),
    [("llava", vlmprune.ACT(threshold=0.08)), ("gemma3", vlmprune.VAR())],
    ids=["llava-act", "gemma3-var"],
)
def test_ways_to_generate(family, method, options):
    """Without a cache, with a static one, and with beams, every step says what the twin says."""
    if family == "gemma3" and "cache_implementation" in options:
        wrong_before("5.17", "an IndexError in the masks of a static cache")
    model = shared_planted(family)
    inputs = make_inputs(model, text_lengths=LONG)
    make = var_twin if method.name == "var" else act_twin
    extra = {} if method.name == "var" else {"threshold": 0.08}
    twin = make(shared_planted(family, "eager"), inputs, **extra)
    with vlmprune.wrap(model, method):
        if "num_beams" not in options:
            logits, out = generate(model, inputs, steps=4, **options)
            assert_near(logits, along(twin, inputs, out.sequences[:, -4:]))
            return
        out = model.generate(**inputs, max_new_tokens=4, output_scores=True, return_dict_in_generate=True, **options)
    # The log-probabilities that beam search added up are those of the twin along the beam it chose.
    tokens = out.sequences[:, -4:]
    chances = along(twin, inputs, tokens).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(out.sequences_scores, chances.mean(dim=1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", [vlmprune.VAR(), vlmprune.ACT(threshold=0.08)], ids=["var", "act"])
def test_the_second_picture_has_its_own_sinks(method):
    """An official defect: the first sample's sinks stayed, and image rows were edited from the second sample on."""
    model = shared_planted("llava")
    first, second = make_inputs(model, text_lengths=LONG), make_inputs(model, text_lengths=LONG[::-1], seed=1)
    with vlmprune.wrap(model, method), torch.no_grad():
        alone, _ = generate(model, second, steps=3)
        generate(model, first, steps=1)
        assert torch.equal(generate(model, second, steps=3)[0], alone)
        # Two conversations in turns: what was marked lies on each one's cache, and goes along with a copy.
        cache = model(**first, use_cache=True).past_key_values
        mask = torch.cat([first["attention_mask"], torch.ones(3, 1, dtype=torch.long)], dim=1)
        step = {"input_ids": torch.tensor([[20], [21], [22]]), "attention_mask": mask}
        expected = model(**step, past_key_values=copy.deepcopy(cache)).logits
        model(**second, use_cache=True)
        assert torch.equal(model(**step, past_key_values=cache).logits, expected)


def test_a_row_of_a_batch_equals_the_row_alone():
    """An official defect: batches of one only."""
    model = shared_planted("qwen2_5_vl")
    inputs = make_inputs(model, text_lengths=LONG)
    with vlmprune.wrap(model, [vlmprune.VAR(), vlmprune.ACT(threshold=0.08)]):
        batched, _ = generate(model, inputs)
        for i in range(3):
            assert_near(generate(model, row(inputs, i))[0][0], batched[i])


def test_image_rows_and_layers_without_sinks_are_not_touched():
    """An official defect: image rows were edited, and so was the last layer, whose exception was overwritten."""
    model = shared_planted("llava")
    inputs = row(make_inputs(model, text_lengths=LONG), 0)
    layers = language_model(model).layers
    last_image = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[-1])
    outputs: list[Tensor] = []
    handles = [layer.register_forward_hook(lambda module, args, out: outputs.append(out)) for layer in layers]
    with torch.no_grad():
        model(**inputs)
        with vlmprune.wrap(model, vlmprune.VAR()):
            model(**inputs)  # the first prompt also runs the language model to find the sink dimensions
            del outputs[LAYERS:]
            model(**inputs)
            edited = [i for i, layer in enumerate(layers) if layer.self_attn.config is not model.config.text_config]
    for handle in handles:
        handle.remove()
    assert edited == [2, 3, 4]
    plain, changed = outputs[:LAYERS], outputs[LAYERS:]
    for before, after in zip(plain, changed, strict=True):
        assert torch.equal(before[:, : last_image + 1], after[:, : last_image + 1])
    same = [torch.equal(before, after) for before, after in zip(plain, changed, strict=True)]
    assert same == [True, True, False, False, False, False]


def test_a_step_reads_its_keys_once(monkeypatch):
    """Where VAR changes a step's row its weights make the output, and the fused kernel does not run as well."""
    model = shared_planted("llava")
    inputs = row(make_inputs(model, text_lengths=LONG), 0)
    more = {"input_ids": torch.tensor([[20]]), "attention_mask": torch.ones(1, inputs["input_ids"].shape[1] + 1)}
    kernel, ran = torch.nn.functional.scaled_dot_product_attention, []

    def step(*args, **kwargs):
        ran.append(1)
        return kernel(*args, **kwargs)

    def run() -> Tensor:
        cache = model(**inputs, use_cache=True).past_key_values
        ran.clear()
        return model(**more, past_key_values=cache).logits

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", step)
    with torch.no_grad():
        plain = run()
        assert len(ran) == LAYERS
        with vlmprune.wrap(model, vlmprune.VAR()):
            changed = run()
            assert len(ran) == LAYERS - 3  # layers 2 to 4 have sinks
        with vlmprune.wrap(model, vlmprune.VAR(gate=1.0)):
            assert torch.equal(run(), plain)
            assert len(ran) == LAYERS
    assert not torch.allclose(changed, plain, rtol=0, atol=1e-3)


def test_every_model_has_its_own_sink_dimensions():
    """An official defect: a table of two models, of which the second got the first one's dimensions."""
    for dims in ((5, 40), (17,)):
        model = planted("llava", dims=dims)
        with vlmprune.wrap(model, vlmprune.VAR()) as pruned:
            model(**make_inputs(model))
            assert f"sink dimensions {', '.join(map(str, dims))};" in pruned.report.notes[0]


def test_without_sink_dimensions_nothing_changes_and_the_report_says_so():
    model = planted("llava", dims=())
    inputs = make_inputs(model)
    plain, _ = generate(model, inputs)
    with vlmprune.wrap(model, vlmprune.VAR(tau=7.9)) as pruned:
        assert torch.equal(generate(model, inputs)[0], plain)
        assert "no sink dimensions found" in pruned.report.notes[0]


@pytest.mark.parametrize("method", [vlmprune.VAR(p=0.0), vlmprune.VAR(rho=1.0, gate=1.0), vlmprune.ACT(beta=1.0)])
def test_nothing_to_move_is_nothing_changed(method):
    model = shared_planted("llava")
    inputs = make_inputs(model)
    plain, _ = generate(model, inputs, steps=2)
    with vlmprune.wrap(model, method):
        assert_near(generate(model, inputs, steps=2)[0], plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_removal_leaves_nothing(family):
    model = shared_planted(family)
    inputs = make_inputs(model, text_lengths=LONG)
    plain, _ = generate(model, inputs, steps=2)
    before = outside(model)
    for method in [vlmprune.VAR(), vlmprune.ACT(threshold=0.08), [vlmprune.FastV(), vlmprune.VAR(), vlmprune.ACT()]]:
        pruned = vlmprune.wrap(model, method)
        assert not torch.equal(generate(model, inputs, steps=2)[0], plain)
        pruned.unwrap()
        assert outside(model) == before
        assert torch.equal(generate(model, inputs, steps=2)[0], plain)


@pytest.mark.parametrize("make", [var_twin, act_twin])
def test_bfloat16_is_within_its_own_rounding(make):
    """The correction is made in fp32: no further from the twin in bf16 than plain bf16 is from plain fp32."""
    method = vlmprune.VAR() if make is var_twin else vlmprune.ACT()
    model = shared_planted("llava")
    inputs = make_inputs(model, text_lengths=LONG)
    tokens = generate(model, inputs)[1].sequences[:, -STEPS:]
    exact = masked_logits(model, inputs, [[]] * 3, LAYERS, STEPS, tokens)
    half = planted("llava").bfloat16()
    rounding = float((masked_logits(half, inputs, [[]] * 3, LAYERS, STEPS, tokens).float() - exact).abs().max())
    with vlmprune.wrap(half, method):
        first = model_logits(half, inputs)
    expected = along(make(shared_planted("llava", "eager"), inputs), inputs, tokens[:, :1])[:, 0]
    assert float((first - expected).abs().max()) <= 2 * rounding


def model_logits(model, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits[:, -1].float()


def test_gradients_flow_through_the_correction():
    """Of the loss along a random change of an edited layer's projections, against the difference it really makes."""
    model = planted("llava").train()
    inputs = row(make_inputs(model, text_lengths=LONG), 0)
    attention = language_model(model).layers[3].self_attn
    weights = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    ways = [torch.randn_like(weight) * weight.std() for weight in weights]

    def loss() -> Tensor:
        return model(**inputs, labels=inputs["input_ids"]).loss

    def moved(by: float) -> float:
        with torch.no_grad():
            for weight, way in zip(weights, ways, strict=True):
                weight += by * way
            result = float(loss())
            for weight, way in zip(weights, ways, strict=True):
                weight -= by * way
        return result

    with vlmprune.wrap(model, vlmprune.VAR()):
        loss().backward()
        slope = sum(float((weight.grad * way).sum()) for weight, way in zip(weights, ways, strict=True))
        assert slope == pytest.approx((moved(0.005) - moved(-0.005)) / 0.01, rel=0.03)


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_offloaded_models(family):
    """The weights are elsewhere, those of the embedding too, when sink dimensions are looked for."""
    from accelerate import cpu_offload

    model, away = shared_planted(family), planted(family)
    inputs = make_inputs(model)
    cpu_offload(away, execution_device=torch.device("cpu"))
    methods = [vlmprune.FastV(keep=0.5), vlmprune.VAR(), vlmprune.ACT(threshold=0.08)]
    with vlmprune.wrap(model, methods), vlmprune.wrap(away, methods):
        assert_near(generate(away, inputs, steps=3)[0], generate(model, inputs, steps=3)[0])
