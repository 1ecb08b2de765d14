"""`vlmprune.check` on models as users load them: spread over devices, quantised, compiled, with adapters, in bf16."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import vlmprune
from tests.conformance.test_faults import fillers_unmasked
from tests.support.grid import only_full
from tests.support.tiny_families import build, make_inputs
from vlmprune.hf.arguments import to_device
from vlmprune.runtime import prefill

HALVES = {
    "model.vision_tower": "cpu",
    "model.multi_modal_projector": "cpu",
    "model.language_model.embed_tokens": "disk",
    "model.language_model.layers.0": "cpu",
    "model.language_model.layers.1": "disk",
    "model.language_model.layers.2": "cpu",
    "model.language_model.layers.3": "disk",
    "model.language_model.norm": "cpu",
    "model.language_model.rotary_emb": "cpu",
    "lm_head": "cpu",
}


def dispatched(model, where, folder):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.dispatch_model(model, where, offload_dir=str(folder), main_device="cpu", force_hooks=True)


@pytest.mark.parametrize("where", [{"": "cpu"}, HALVES], ids=["cpu", "cpu and disk"])
@pytest.mark.parametrize("faulty", [False, True], ids=["right", "faulty"])
def test_spread_by_accelerate(where, faulty, tmp_path, monkeypatch):
    model = build("llava")
    inputs = make_inputs(model, images=(1, 2, 1))
    plain = vlmprune.check(model, inputs, [1])
    model = dispatched(model, where, tmp_path)
    assert (model.model.language_model.layers[1].self_attn.q_proj.weight.device.type == "meta") == (where is HALVES)
    if faulty:
        fillers_unmasked(monkeypatch.setattr)
    report = vlmprune.check(model, inputs, [1])
    assert report.ok is not faulty, str(report)
    if faulty:
        assert report.first_difference == "step 0 (0 = prompt), layer 1 (LlamaDecoderLayer, full)"
    else:
        assert abs(report.layers[0].moved - plain.layers[0].moved) < 1e-5


def test_inputs_stay_where_they_are_if_the_first_weights_are_elsewhere():
    model = build("llava").to("meta")
    moved = to_device(model, make_inputs(build("llava")))
    assert {value.device.type for value in moved.values()} == {"cpu"}


def test_with_a_lora(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(build("llava"), config)
    assert vlmprune.check(model, make_inputs(model.get_base_model()), [0, 1]).ok


def test_in_training_mode_it_is_evaluated_and_goes_on_training():
    model = build("llava").train()
    model.model.language_model.layers[0].mlp = nn.Sequential(model.model.language_model.layers[0].mlp, nn.Dropout(0.5))
    assert vlmprune.check(model, make_inputs(model), [1]).ok
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_with_weights_in_4_bits(dtype, monkeypatch):
    quantization = pytest.importorskip("torchao.quantization")
    groups = quantization.granularity.PerGroup(32)
    model = build("llava").to(dtype)
    four_bits = quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=groups)
    quantization.quantize_(model.model.language_model.layers, four_bits)
    inputs = make_inputs(model, images=(1, 2, 1))
    report = vlmprune.check(model, inputs, [0, 1])
    assert report.ok, str(report)
    assert report.layers[0].moved > 4 * report.bound
    fillers_unmasked(monkeypatch.setattr)
    assert not vlmprune.check(model, inputs, [0]).ok


def test_with_dynamically_quantised_activations(monkeypatch):
    """int8 activations share one scale with the rows that pruning takes away: rounding is of that size."""
    model = build("llava")
    text = model.model.language_model
    model.model.language_model = torch.ao.quantization.quantize_dynamic(text, {nn.Linear}, dtype=torch.qint8)
    inputs = make_inputs(model, images=(1, 2, 1))
    report = vlmprune.check(model, inputs)
    assert report.ok, str(report)
    assert report.kinds == ["full"] * 4
    assert report.layers[0].moved > 2 * report.bound
    fillers_unmasked(monkeypatch.setattr)
    assert not vlmprune.check(model, inputs).ok


@only_full
def test_a_compiled_model():
    model = build("llava")
    inputs = make_inputs(model)
    assert vlmprune.check(torch.compile(model, backend="eager"), inputs, [1]).ok
    layers = model.model.language_model.layers
    for i in range(len(layers)):
        layers[i] = torch.compile(layers[i], backend="eager")
    assert vlmprune.check(model, inputs, [1]).ok


def test_the_model_is_left_as_it_was():
    model = build("llava")
    model(**make_inputs(model))  # transformers sets up things on the first forward
    before = copy.deepcopy(model.state_dict())
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    vlmprune.check(model, make_inputs(model), [0])
    assert hooks == sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "asked",
    [
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
        {"stop_strings": ["a"]},
        {"num_return_sequences": 2, "do_sample": True},
        {"guidance_scale": 1.5},
        {"exponential_decay_length_penalty": (1, 2.0)},
    ],
    ids=str,
)
def test_whatever_its_generation_config_asks_for(asked):
    model = build("llava")
    for name, value in asked.items():
        setattr(model.generation_config, name, value)
    own, before = model.generation_config, model.generation_config.to_dict()
    report = vlmprune.check(model, make_inputs(model), [1])
    assert report.ok, str(report)
    assert model.generation_config is own
    assert own.to_dict() == before


def test_a_nan_of_pruning_is_a_difference(monkeypatch):
    model = build("llava")
    own = prefill.Prefill._compact
    monkeypatch.setattr(prefill.Prefill, "_compact", lambda *given: own(*given) * torch.nan)
    report = vlmprune.check(model, make_inputs(model), [1, 2])
    assert not report.ok
    assert report.first_difference == "step 0 (0 = prompt), what enters layer 1 (LlamaDecoderLayer, full)"
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["worst"] is None
