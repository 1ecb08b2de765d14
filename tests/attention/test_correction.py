"""The pure edits of VAR and ACT: rows still sum to 1, and what must not change does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vlmprune
from tests.support.running import assert_near
from tests.support.sinks import planted
from tests.support.tiny_families import make_inputs
from vlmprune.flow.sinks import default_tau, phi, separation, spiking_dims
from vlmprune.ops import attention_rows as rows
from vlmprune.ops.correction import calibration, column_scores, gated, marks_of, redistribution, weighted_values

B, H, R, T = 2, 4, 5, 12


@pytest.fixture
def weights() -> Tensor:
    return torch.softmax(2 * torch.randn(B, H, R, T), dim=-1)


def columns(*chosen: int) -> Tensor:
    return torch.isin(torch.arange(T), torch.tensor(chosen)).expand(B, -1)


@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
def test_redistribution_moves_what_it_takes(weights: Tensor, p: float) -> None:
    sinks, visual = columns(0, 3, 9), columns(2, 3, 4, 5, 6)
    new = weights + redistribution(weights, marks_of(sinks, visual), p=p, rho=0.0, gate=0.0)
    torch.testing.assert_close(new.sum(-1), torch.ones(B, H, R))
    assert bool((new >= 0).all())
    torch.testing.assert_close(new[..., [0, 3, 9]], (1 - p) * weights[..., [0, 3, 9]])
    torch.testing.assert_close(new[..., [1, 7, 8, 10, 11]], weights[..., [1, 7, 8, 10, 11]])
    share = new[..., [2, 4, 5, 6]] / weights[..., [2, 4, 5, 6]]
    torch.testing.assert_close(share, share[..., :1].expand_as(share))


def test_the_gate_asks_for_both(weights: Tensor) -> None:
    image, free = torch.tensor([0.1, 0.2, 0.5, 0.5, 0.0]), torch.tensor([0.1, 0.2, 0.24, 0.25, 0.0])
    assert gated(image, free, 0.5, 0.2).tolist() == [False, True, False, True, False]
    assert gated(image, free, 0.0, 0.0).tolist() == [True, True, True, True, False]  # nothing to give to


def test_rows_that_see_sinks_only_are_left_alone(weights: Tensor) -> None:
    everything = columns(*range(T))
    assert not redistribution(weights, marks_of(everything, everything), p=0.4, rho=0.0, gate=0.0).any()
    assert not calibration(weights, everything[:, None].expand(-1, H, -1), beta=0.4).any()


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_calibration_rows_sum_to_one(weights: Tensor, beta: float) -> None:
    """An official defect: in decode, rows summed to 1.45."""
    sinks = torch.rand(B, H, T) > 0.7
    new = weights + calibration(weights, sinks, beta=beta)
    torch.testing.assert_close(new.sum(-1), torch.ones(B, H, R))
    kept = (new / weights)[sinks[:, :, None].expand_as(new)]
    torch.testing.assert_close(kept, torch.full_like(kept, beta))


def test_columns_that_few_rows_see_are_no_candidates() -> None:
    sums, seen = torch.tensor([[[4.0, 0.9]]]), torch.tensor([[[20, 1]]])
    assert column_scores(sums, seen, rows=8)[0, 0].tolist() == pytest.approx([0.2, -1.0])


def test_grouped_values(weights: Tensor) -> None:
    value = torch.randn(B, 2, T, 3)
    expected = (weights @ value.repeat_interleave(2, dim=1)).transpose(1, 2)
    torch.testing.assert_close(weighted_values(weights, value), expected)


@pytest.mark.parametrize("method", [vlmprune.VAR(), vlmprune.ACT(threshold=0.08)], ids=["var", "act"])
def test_rows_computed_in_parts_are_the_same(method: vlmprune.Method, monkeypatch: pytest.MonkeyPatch) -> None:
    model = planted("llava")
    inputs = make_inputs(model, text_lengths=(40, 33, 37))
    with torch.no_grad(), vlmprune.wrap(model, method):
        whole = model(**inputs).logits
        monkeypatch.setattr(rows, "LEAST_ROOM", 1)
        assert_near(model(**inputs).logits, whole)


def test_phi_and_its_dimensions() -> None:
    hidden = torch.randn(3, 5, 64)
    hidden[0, 0, 7] = -50.0
    expected = hidden[0, 0, 7].abs() / (hidden[0, 0].pow(2).mean() + 1e-6).sqrt()
    assert float(phi(hidden, (3, 7))[0, 0]) == pytest.approx(float(expected), rel=1e-5)
    assert float(phi(hidden.bfloat16(), (3, 7))[0, 0]) == pytest.approx(float(expected), rel=1e-2)
    states = torch.randn(2, 6, 4096)
    states[:, :, 1415] = 3000.0
    states[:, :4, 2533] = 1500.0  # in four of six layers
    states[:, :2, 99] = 1500.0  # in two
    assert spiking_dims(states, 20.0) == (1415, 2533)
    assert spiking_dims(torch.randn(2, 6, 4096), 20.0) == ()


def test_tau_scales_for_narrow_models() -> None:
    assert default_tau(4096) == default_tau(2048) == 20.0
    assert default_tau(256) == pytest.approx(5.0)


def test_bimodality() -> None:
    assert separation(torch.tensor([1.0] * 90 + [40.0] * 10), 20.0).bimodal
    assert not separation(torch.tensor([1.0] * 90 + [15.0] * 5 + [40.0] * 10), 20.0).bimodal
    assert not separation(torch.tensor([1.0] * 90), 20.0).bimodal
