"""Models whose weights are set by formula, so that the right answer is known by proof (eval/README.md, Planted models).

    python -m eval.planted [--placements 100] [--json]

A scene is a black picture of 14 x 14 patches, some of them red or green. The tower passes each patch's colour on as a
one-hot vector, the language model has no MLPs, and one head reads: its scores and values depend on what a token is,
never on where it stands. Nothing is trained. Shapes: D width, V visual tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import vlmprune

from .exits import Arguments, ended

GRID, PATCH, WIDTH, HEADS, HEAD = 14, 8, 64, 2, 16
LAYERS, LOOKS, READS = 5, 1, 3  # the head of LOOKS only attends, the one of READS also writes
STILL = 7  # of a head's 16 dimensions one that rotary positions leave alone: theta is 1e30
RED, GREEN, BLACK, TEXT, SINK = 0, 1, 3, 4, 5  # dimensions that say what a token is; green ones are sinks, as BOS is
SAYS_RED, SAYS_BLUE = 8, 9  # dimensions that the reading head writes
SHARP = 1.0  # of the output; sharper, and the log-probability of an answer is 0 already
QUESTION, KEEP = "What colour is the star?", 0.1
Scores = Mapping[int, float]


def planted(
    processor: Any, *, scores: Scores, values: Mapping[int, tuple[int, float]], none: float, layers: int = LAYERS
) -> Any:
    """A LLaVA that reads what it is told to.

    Args:
        scores: of each kind of token, the logarithm of its weight in the looking and the reading head; 0 unless given.
        values: of each kind, where the reading head writes and how much. none: how much must be written before the
            answer is no longer "none".
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    words = processor.tokenizer.convert_tokens_to_ids
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
        "num_attention_heads": 1, "image_size": GRID * PATCH, "patch_size": PATCH,
    }  # fmt: skip
    text = {
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": 4, "num_hidden_layers": layers,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": HEAD,
        "vocab_size": len(processor.tokenizer),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e30}, "tie_word_embeddings": False,
    }  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, projector_hidden_act="linear", vision_feature_layer=-1,
        image_token_id=words("<image>"), image_seq_length=GRID * GRID, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    norms = {name for name, _ in model.named_parameters() if "norm" in name and name.endswith("weight")}
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            weight.fill_(float(name in norms))
        see(model, processor, weights)
        embeddings = model.get_input_embeddings().weight
        embeddings[:, TEXT] = 1
        embeddings[words("<bos>")] = torch.eye(WIDTH)[SINK]
        blocks = model.model.language_model.layers
        for layer in {LOOKS, READS} & set(range(layers)):
            part = blocks[layer].self_attn
            # A one-hot token is sqrt(D) after its norm. One query fits all; softmax takes scores through sqrt(HEAD).
            part.q_proj.weight[STILL] = 1 / math.sqrt(WIDTH)
            for kind, score in scores.items():
                part.k_proj.weight[STILL, kind] = score * math.sqrt(HEAD) / math.sqrt(WIDTH)
        part = blocks[min(READS, layers - 1)].self_attn
        for at, (kind, (to, amount)) in enumerate(values.items()):
            part.v_proj.weight[at, kind] = amount / math.sqrt(WIDTH)
            part.o_proj.weight[to, at] = 1
        head = model.lm_head.weight
        head[words("red"), SAYS_RED] = head[words("blue"), SAYS_BLUE] = SHARP
        head[words("none"), TEXT] = SHARP * none
    model.generation_config.eos_token_id = words("<eos>")
    model.generation_config.pad_token_id = 0
    return model


def see(model: Any, processor: Any, weights: Mapping[str, Tensor]) -> None:
    """The tower and projector: each patch becomes the one-hot vector of its colour, green that of a sink."""
    mean, std = (torch.tensor(getattr(processor.image_processor, f"image_{name}")) for name in ("mean", "std"))
    tower = "model.vision_tower.embeddings."
    conv, place = weights[f"{tower}patch_embedding.weight"], weights[f"{tower}position_embedding.weight"]
    for channel in range(3):  # red, green, blue as they were before normalisation, and how black a patch is
        conv[channel, channel] = std[channel] / PATCH**2
        conv[BLACK, channel] = -std[channel] / PATCH**2
        place[:, channel] = mean[channel]
    place[:, BLACK] = 1 - mean.sum()
    # The norm before the encoder makes sqrt(3) and -1/sqrt(3) of the 1 and 0 in four dimensions; here 1 and 0 again.
    first, bias = weights["model.multi_modal_projector.linear_1.weight"], "model.multi_modal_projector.linear_1.bias"
    for kind in range(4):
        to = SINK if kind == GREEN else kind
        first[to, kind] = math.sqrt(3) / 4
        weights[bias][to] = 0.25
    weights["model.multi_modal_projector.linear_2.weight"].copy_(torch.eye(WIDTH))


def scene(reds: Sequence[int] = (), greens: Sequence[int] = ()) -> Image.Image:
    """A black picture with red and green patches, by their numbers."""
    image = Image.new("RGB", (GRID * PATCH,) * 2)
    for colour, places in (((255, 0, 0), reds), ((0, 255, 0), greens)):
        for at in places:
            left, top = at % GRID * PATCH, at // GRID * PATCH
            image.paste(colour, (left, top, left + PATCH, top + PATCH))
    return image


def placements(count: int, *numbers: int) -> list[list[list[int]]]:
    """So many scenes: for each, places of so many patches of each colour, all different."""
    drawn = [random.Random(seed).sample(range(GRID * GRID), sum(numbers)) for seed in range(count)]
    starts = [sum(numbers[:at]) for at in range(len(numbers))]
    return [[one[start : start + size] for start, size in zip(starts, numbers, strict=True)] for one in drawn]


def first_logits(pruned: Any, processor: Any, image: Image.Image) -> Tensor:
    """Logits of the answer's first token."""
    from vlmprune.inputs.chat import prepare

    with torch.no_grad():
        return pruned(**prepare(processor, image, QUESTION)).logits[0, -1]


# -- (a) empty sinks -----------------------------------------------------------------------------------------------

EMPTY, SINKS = {SINK: 3.0, RED: 5.0}, 8


def written(prompt: int, p: float) -> float:
    """How much the reading head writes of the red patch, by hand: its weight, and p of the sinks' by its share."""
    sink, red = math.exp(EMPTY[SINK]) * (SINKS + 1), math.exp(EMPTY[RED])  # BOS is a sink too
    others = GRID * GRID - SINKS - 1
    text = prompt - GRID * GRID - 1
    total = sink + red + others + text
    return red / total * (1 + p * sink / (red + others))


def empty_sinks(processor: Any, count: int, p: float = 0.4) -> dict[str, Any]:
    """VAR in every placement of the patch: whether the answer's log-probability rises, and what p = 0 changes."""
    model = planted(processor, scores=EMPTY, values={RED: (SAYS_RED, 1.0)}, none=0.0)
    red = processor.tokenizer.convert_tokens_to_ids("red")
    risen, moved, gains, worst = 0, 0.0, [], 0.0
    for reds, greens in placements(count, 1, SINKS):
        image = scene(reds, greens)
        found = {}
        for name, method in (("none", "none"), ("zero", vlmprune.VAR(p=0.0)), ("var", vlmprune.VAR(p=p))):
            with vlmprune.wrap(model, method, processor=processor) as pruned:
                found[name] = first_logits(pruned, processor, image)
                length = pruned.report.layer_lengths[0]
        moved = max(moved, float((found["zero"] - found["none"]).abs().max()))
        before, after = (float(found[name].log_softmax(-1)[red]) for name in ("none", "var"))
        risen += after > before
        gains.append(after - before)
        for name, amount in (("none", written(length, 0.0)), ("var", written(length, p))):
            by_hand = SHARP * math.sqrt(WIDTH) * amount / math.sqrt(1 + amount**2)
            worst = max(worst, abs(float(found[name][red]) - by_hand))
    return {"placements": count, "risen": risen, "least_gain": min(gains), "moved_at_p_0": moved, "off_by_hand": worst}


# -- (b) heads that look at the object -----------------------------------------------------------------------------


def looking_heads(processor: Any, count: int) -> dict[str, Any]:
    """In how many placements each method keeps the red patch at 10 %, and still answers "red"."""
    made: dict[str, Any] = {"scores": {RED: 5.0}, "values": {RED: (SAYS_RED, 1.0)}, "none": 0.2}
    model, guide = planted(processor, **made), planted(processor, layers=4, **made)
    found: dict[str, Any] = {"placements": count}
    methods = {
        "fastv": vlmprune.FastV(keep=KEEP), "sgl": vlmprune.SGL(guide, keep=KEEP), "random": vlmprune.Random(keep=KEEP),
    }  # fmt: skip
    for name, method in methods.items():
        kept = right = 0
        with vlmprune.wrap(model, method, processor=processor) as pruned:
            for (place,) in (reds for (reds,) in placements(count, 1)):
                answer = pruned.ask(scene([place]), QUESTION, max_new_tokens=1, do_sample=False)
                kept += place in answer.report.kept[0].tolist()
                right += answer.text == "red"
        found[name] = {"kept": kept, "right": right}
    return found


# -- (c) sinks that matter -----------------------------------------------------------------------------------------


def sinks_that_matter(processor: Any, count: int) -> dict[str, Any]:
    """Which heads ACT's calibration chooses where the sink is the answer, and where it is in the answer's way."""
    cases = {
        # The red patch draws most attention and is the answer; all black ones together speak for blue.
        "full": ({RED: 5.0}, {RED: (SAYS_RED, 1.0), BLACK: (SAYS_BLUE, 0.4)}, 0.05, placements(count, 1, 0)),
        # The green patch says nothing; without it the red one is heard.
        "empty": ({SINK: 5.0, RED: 3.0}, {RED: (SAYS_RED, 1.0)}, 0.0434, placements(count, 1, 1)),
    }
    found: dict[str, Any] = {"placements": count}
    for name, (scores, values, none, places) in cases.items():
        model = planted(processor, scores=scores, values=values, none=none)
        data = [(scene(*one), QUESTION, "red") for one in places]
        calibrated = vlmprune.ACT().calibrate(model, data, processor=processor, max_new_tokens=1)
        heads: dict[str, Any] = {"none": "none", "every head": vlmprune.ACT(), "calibrated": calibrated}
        found[name] = {"heads": [list(pair) for pair in calibrated.heads or ()]}
        for label, method in heads.items():
            with vlmprune.wrap(model, method, processor=processor) as pruned:
                answers = [pruned.ask(image, QUESTION, max_new_tokens=1, do_sample=False).text for image, _, _ in data]
            found[name][label] = sum(answer == "red" for answer in answers)
    return found


def measured(count: int) -> dict[str, Any]:
    """All three constructions."""
    processor = vlmprune.load_tiny()[2]
    few = max(1, count // 10)  # calibration asks every question once per head
    return {
        "empty sinks": empty_sinks(processor, count), "looking heads": looking_heads(processor, count),
        "sinks that matter": sinks_that_matter(processor, few),
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Print the numbers."""

    def body() -> int:
        parser = Arguments(
            prog="python -m eval.planted", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--placements", type=int, default=100, metavar="N", help="of the patch; 100 unless given")
        parser.add_argument("--json", action="store_true", help="print JSON")
        args = parser.parse_args(arguments)
        if args.placements < 1:
            raise vlmprune.VlmpruneError(f"--placements {args.placements} is too small; give 1 or more")
        found = measured(args.placements)
        if args.json:
            print(json.dumps(found, indent=1))
            return 0
        for name, numbers in found.items():
            print(name)
            for key, value in numbers.items():
                print(f"  {key}: {value}")
        return 0

    return ended(body)


if __name__ == "__main__":
    sys.exit(main())
