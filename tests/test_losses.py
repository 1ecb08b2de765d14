"""Training on pruned prompts: the loss is the cross-entropy of the masked model's logits at the kept rows.

The reference is a loop over samples and kept rows, each of which predicts the next kept position, under any padding.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax
from transformers import Trainer, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import vlmprune
from tests.support.planted import Plan, Planted
from tests.support.reference import all_logits, visual_slots
from tests.support.running import assert_near, plan_of, shared
from tests.support.tiny_families import FAMILIES, Inputs, build, make_inputs, padded

pytestmark = pytest.mark.filterwarnings("ignore")

IGNORED = -100
LAYER = 1


def every_label(model: Any, inputs: Inputs) -> Tensor:
    """All text is learned, the first token of every prompt too, if anything predicts it."""
    visual = inputs["input_ids"] == model.config.image_token_id
    return inputs["input_ids"].masked_fill(visual | (inputs["attention_mask"] == 0), IGNORED)


def kept_positions(model: Any, inputs: Inputs, plan: Plan) -> list[Tensor]:
    """Per sample the positions that are rows of a pruned prompt."""
    out = []
    for i, slots in enumerate(visual_slots(model, inputs)):
        keep = inputs["attention_mask"][i].bool()
        if model.config.model_type != "mllama":  # whose visual tokens are no rows
            keep[slots] = False
            keep[slots[list(plan[i])]] = True
        out.append(keep.nonzero()[:, 0])
    return out


def token_losses(model: Any, inputs: Inputs, plan: Plan, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The loss of every label that a kept row predicts, one number each."""
    logits = all_logits(model, inputs, plan, LAYER)
    losses = []
    for i, positions in enumerate(kept_positions(model, inputs, plan)):
        for at, following in zip(positions[:-1].tolist(), positions[1:].tolist(), strict=True):
            if (label := int(labels[i, following])) != IGNORED:
                chances = -log_softmax(logits[i, at], dim=-1)
                losses.append((1 - smoothing) * chances[label] + smoothing * chances.mean())
    return torch.stack(losses)


@pytest.mark.parametrize(("side", "kind"), [("left", "ragged"), ("right", "equal"), ("both", "ragged")])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_under_any_padding(family, side, kind):
    model = shared(family)
    inputs = padded(make_inputs(model), side)
    plan = plan_of(model, inputs, kind)
    labels = every_label(model, inputs)
    expected = token_losses(model, inputs, plan, labels)
    with vlmprune.wrap(model, Planted(plan=plan, layer=LAYER)), torch.no_grad():
        assert_near(model(**inputs, labels=labels).loss, expected.mean())
        items = torch.tensor(17)  # of an accumulated batch, say
        assert_near(model(**inputs, labels=labels, num_items_in_batch=items).loss, expected.sum() / 17)


def by_forward(model: Any, inputs: Inputs, labels: Tensor) -> Tensor:
    return model.forward(**inputs, labels=labels).loss


def by_position(model: Any, inputs: Inputs, labels: Tensor) -> Tensor:
    """`labels` is among the first parameters of every family; those before it that are not given are None."""
    names = list(inspect.signature(type(model).forward).parameters)[1:]
    given = {**inputs, "labels": labels}
    first = names[: names.index("labels") + 1]
    if "vision_feature_layer" in first:
        pytest.skip("transformers itself adds this one by name, so that no positional argument can stand behind it")
    rest = {name: value for name, value in given.items() if name not in first}
    return model(*[given.get(name) for name in first], **rest).loss


def as_a_tuple(model: Any, inputs: Inputs, labels: Tensor) -> Tensor:
    out = model(**inputs, labels=labels, return_dict=False)
    assert out[1].shape[:2] == labels.shape
    return out[0]


def shifted_before(model: Any, inputs: Inputs, labels: Tensor) -> Tensor:
    shifted = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1)
    # Nothing predicts the first real position; whoever shifts labels leaves it out.
    first = inputs["attention_mask"].argmax(dim=1)
    shifted[torch.arange(len(first)), (first - 1).clamp(min=0)] = torch.where(
        first > 0, IGNORED, shifted[torch.arange(len(first)), 0]
    )
    return model(**inputs, labels=labels, shift_labels=shifted).loss


def through_peft(model: Any, inputs: Inputs, labels: Tensor) -> Tensor:
    peft = pytest.importorskip("peft")
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))  # begins as no change
    try:
        return tuned(**inputs, labels=labels).loss
    finally:
        tuned.unload()


@pytest.mark.parametrize("way", [by_forward, by_position, as_a_tuple, shifted_before, through_peft])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_to_give_labels(family, way):
    model = build(family) if way is through_peft else shared(family)
    inputs = padded(make_inputs(model), "left" if way is by_position else "right")
    plan = plan_of(model, inputs, "ragged")
    labels = every_label(model, inputs)
    expected = token_losses(model, inputs, plan, labels).mean()
    with vlmprune.wrap(model, Planted(plan=plan, layer=LAYER)), torch.no_grad():
        assert_near(way(model, inputs, labels), expected)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_visual_labels_count_where_their_tokens_are_kept(family):
    """`labels = input_ids`: what was dropped is neither predicted nor predicts."""
    model = shared(family)
    inputs = padded(make_inputs(model), "right")
    plan = plan_of(model, inputs, "ragged")
    labels = inputs["input_ids"].clone()
    expected = token_losses(model, inputs, plan, labels).mean()
    with vlmprune.wrap(model, Planted(plan=plan, layer=LAYER)), torch.no_grad():
        assert_near(model(**inputs, labels=labels).loss, expected)


def test_an_own_loss_function_gets_what_transformers_gives_it():
    model = build("llava")
    inputs = padded(make_inputs(model), "right")
    plan = plan_of(model, inputs, "ragged")
    labels = every_label(model, inputs)
    expected = token_losses(model, inputs, plan, labels).sum()

    def own(logits: Tensor, labels: Tensor, vocab_size: int, scale: float = 1.0, **others: Any) -> Tensor:
        return scale * cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
        )

    model.loss_function = own
    with vlmprune.wrap(model, Planted(plan=plan, layer=LAYER)), torch.no_grad():
        assert_near(model(**inputs, labels=labels, scale=0.5).loss, expected / 2)


# --- callers that take a loss of their own --------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_training_logits_stand_where_input_ids_do(family, side):
    """A dropped position has the row before it; TRL's token accuracy and DPO read logits so."""
    model = build(family).train()
    inputs = padded(make_inputs(model), side)
    plan = plan_of(model, inputs, "ragged")
    labels = every_label(model, inputs)
    full = all_logits(model.eval(), inputs, plan, LAYER)
    model.train()
    with vlmprune.wrap(model, Planted(plan=plan, layer=LAYER)):
        alone = model(**inputs)
        with torch.no_grad():
            again, counted = model(**inputs).logits, model.eval()(**inputs, num_items_in_batch=3).logits
            with_labels = model(**inputs, labels=labels).logits
    for logits in (alone.logits, again, counted, with_labels):
        assert logits.shape[:2] == inputs["input_ids"].shape
        for i, positions in enumerate(kept_positions(model, inputs, plan)):
            assert_near(logits[i, positions].detach(), full[i, positions])
            if family == "mllama":
                continue
            for position in range(int(positions[0]), logits.shape[1]):  # the rest repeat
                before = positions[positions <= position][-1]
                assert torch.equal(logits[i, position], logits[i, before])
    assert alone.logits.requires_grad
    assert [len(rows) for rows in alone.rows] == [inputs["input_ids"].shape[1]] * 3 or family == "mllama"


class Rows(torch.utils.data.Dataset):
    """Samples of a batch, one by one, for a Trainer whose collator stacks them."""

    def __init__(self, inputs: Inputs, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> int:
        return i

    def collate(self, numbers: list[int]) -> dict[str, Tensor]:
        assert sorted(numbers) == list(range(len(self))), "batches are whole"
        return {**self.inputs, "labels": self.labels}


@pytest.mark.parametrize(("family", "smoothing"), [("llava", 0.0), ("llava", 0.1), ("qwen2_vl", 0.1), ("gemma3", 0.1)])
def test_a_trainer(family, smoothing, tmp_path):
    """Two steps, and an evaluation with metrics: losses of the masked model, and logits that metrics can read."""
    model = build(family)
    inputs = padded(make_inputs(model), "right")
    plan = plan_of(model, inputs, "ragged")
    labels = truth = every_label(model, inputs)
    losses = token_losses(model, inputs, plan, labels, smoothing)
    hits = token_hits(model, inputs, plan, labels)
    causal = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    if (
        smoothing and not causal
    ):  # for other classes Trainer smooths without a shift: labels stand where rows predict them
        labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1)
    expected = float(losses.sum() / (labels[:, 1:] != IGNORED).sum())  # what Trainer divides by
    seen: dict[str, Any] = {}

    def metrics(found: Any) -> dict[str, float]:
        seen["shape"] = found.predictions.shape[:2]
        right = found.predictions[:, :-1].argmax(-1) == truth[:, 1:].numpy()
        return {"accuracy": float(right[truth[:, 1:].numpy() != IGNORED].mean())}

    rows = Rows(inputs, labels)
    options = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=3,
        per_device_eval_batch_size=3,
        learning_rate=1e-3,
        label_smoothing_factor=smoothing,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        save_strategy="no",
    )
    with vlmprune.wrap(model, Planted(plan=plan, layer=LAYER)):
        trainer = Trainer(
            model, options, data_collator=rows.collate, train_dataset=rows, eval_dataset=rows, compute_metrics=metrics
        )
        found = trainer.evaluate(ignore_keys=["cache", "image_outputs"])  # towers' outputs hold None, pruned or not
        trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert found["eval_loss"] == pytest.approx(expected, abs=1e-4)
    assert logged[0] == pytest.approx(expected, abs=1e-3)
    assert logged[1] < logged[0]
    assert seen["shape"] == labels.shape
    assert found["eval_accuracy"] == pytest.approx(sum(hits) / len(hits), abs=1e-6)


def token_hits(model: Any, inputs: Inputs, plan: Plan, labels: Tensor) -> list[bool]:
    """Whether the likeliest token is right, for every label that a kept row predicts."""
    logits = all_logits(model, inputs, plan, LAYER)
    return [
        int(logits[i, at].argmax()) == int(labels[i, following])
        for i, positions in enumerate(kept_positions(model, inputs, plan))
        for at, following in zip(positions[:-1].tolist(), positions[1:].tolist(), strict=True)
        if int(labels[i, following]) != IGNORED
    ]


def test_log_probabilities_as_dpo_reads_them():
    """Two passes of one model, in training and not, without labels: sums over the answer's tokens."""
    model = build("llava")
    inputs = padded(make_inputs(model), "right")
    plan = plan_of(model, inputs, "ragged")
    labels = every_label(model, inputs)
    labels[:, :14] = IGNORED
    full = all_logits(model, inputs, plan, LAYER)[:, :-1].log_softmax(-1)
    target = labels[:, 1:]
    read = target != IGNORED
    expected = (full.gather(2, target.clamp(min=0)[..., None])[..., 0] * read).sum(1)
    model.train()
    with vlmprune.wrap(model, Planted(plan=plan, layer=LAYER)), torch.no_grad():
        logits = model(**inputs).logits[:, :-1].log_softmax(-1)
    assert_near((logits.gather(2, target.clamp(min=0)[..., None])[..., 0] * read).sum(1), expected)
