"""The peers against naive twins: plain loops written from the papers over an unwrapped model with eager attention.

A twin says which tokens stay, sample by sample without padding; the logits of the wrapped, batched model must then be
those of masking the others.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

import vlmprune
from tests.support.grid import grid
from tests.support.reference import language_model, staged_logits, visual_slots
from tests.support.running import STEPS, assert_near, generate, reference, shared
from tests.support.tiny_families import FAMILIES, build, make_inputs, row
from vlmprune import VlmpruneError
from vlmprune.methods.base import Pruner

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
FIXED_GRID = ("llava", "qwen2_vl")


class Eager:
    """Everything a twin may look at: hidden states and attention maps of one unpadded prompt, unpruned."""

    def __init__(self, model, inputs, sample):
        one = row(inputs, sample)
        with torch.no_grad():
            out = model(**one, output_hidden_states=True, output_attentions=True, use_cache=False)
        self.model, self.inputs = model, one
        self.hidden = [h[0] for h in out.hidden_states]
        self.attention = [a[0] for a in out.attentions]
        self.slots = visual_slots(model, one)[0]
        self.visual = [h[self.slots] for h in self.hidden]
        self.words = torch.arange(int(self.slots.max()) + 1, len(self.hidden[0]))

    def keys(self, layer):
        """Keys before the rotation, which leaves their norms alone: [S, width]."""
        decoder = language_model(self.model).layers[layer]
        return decoder.self_attn.k_proj(decoder.input_layernorm(self.hidden[layer]))


def twin_divprune(eager: Eager, count: int) -> list[int]:
    points = eager.visual[0]

    def distance(a, b):
        return 1 - float(cosine_similarity(points[a], points[b], dim=0))

    every = range(len(points))
    chosen = [max(every, key=lambda a: min(distance(a, b) for b in every if b != a))]
    while len(chosen) < count:
        chosen.append(max((a for a in every if a not in chosen), key=lambda a: min(distance(a, b) for b in chosen)))
    return sorted(chosen)


def twin_cdpruner(eager: Eager, count: int) -> list[int]:
    """Greedy over determinants, each computed from nothing."""
    visual, words = eager.visual[0].double(), eager.hidden[0][eager.words].double()
    mean = [sum(float(cosine_similarity(v, w, dim=0)) for w in words) / len(words) for v in visual]
    weights = [(m - min(mean)) / (max(mean) - min(mean)) + 1e-6 for m in mean]
    size = len(visual)
    matrix = torch.tensor(
        [
            [weights[a] * float(cosine_similarity(visual[a], visual[b], dim=0)) * weights[b] for b in range(size)]
            for a in range(size)
        ],
        dtype=torch.float64,
    )
    chosen: list[int] = []
    while len(chosen) < count:

        def volume(a: int) -> float:
            some = torch.tensor([*chosen, a])
            return float(torch.linalg.det(matrix[some][:, some]))

        chosen.append(max((a for a in range(size) if a not in chosen), key=volume))
    return sorted(chosen)


def twin_coverage(similar: list[list[float]], weights: list[float], count: int) -> list[int]:
    """Greedy weighted coverage as SCOPE and MMTok add it up: similar[u][v] of what is covered to what is chosen."""
    chosen: list[int] = []

    def gain(v: int) -> float:
        new = 0.0
        for row_of_u in similar:
            new += max(0.0, row_of_u[v] - max((row_of_u[c] for c in chosen), default=0.0))
        return round(new * weights[v], 10)  # without weights two tokens may gain the same

    while len(chosen) < count:
        chosen.append(max((v for v in range(len(weights)) if v not in chosen), key=gain))
    return sorted(chosen)


def cosines(rows: torch.Tensor, columns: torch.Tensor) -> list[list[float]]:
    return [[float(cosine_similarity(a, b, dim=0)) for b in columns.double()] for a in rows.double()]


def twin_mmtok(eager: Eager, count: int) -> list[int]:
    """The official selector's constants: temperatures 0.02 and 0.2, visual coverage counted by half."""
    visual, words = eager.visual[0], eager.hidden[0][eager.words]
    rows = []
    for of, temperature, weight in ((words, 0.02, 1.0), (visual, 0.2, 0.5)):
        for similar in cosines(of, visual):
            powers = [math.exp((s - max(similar)) / temperature) for s in similar]
            rows.append([weight * p / sum(powers) / len(of) for p in powers])
    return twin_coverage(rows, [1.0] * len(visual), count)


def twin_dart(eager: Eager, count: int, layer: int = 2, pivots: int = 4) -> list[int]:
    with torch.no_grad():
        cache = eager.model(**eager.inputs, use_cache=True).past_key_values
        states = language_model(eager.model).norm(eager.hidden[layer])
    large = cache.layers[layer - 1].keys[0].abs().sum(dim=(0, 2)).tolist()  # rotated
    slots = eager.slots.tolist()
    visual = sorted(slots, key=lambda at: -large[at])[: min(pivots, count)]
    text = sorted(eager.words.tolist(), key=lambda at: -large[at])[:pivots]
    kept, left = list(visual), count - len(visual)
    share = math.ceil(left / len(visual + text))
    for pivot in set(visual + text):
        rest = [at for at in slots if at not in kept]
        rest.sort(key=lambda at: float(cosine_similarity(states[at].double(), states[pivot].double(), dim=0)))
        kept += rest[: min(share, left)]
        left -= min(share, left)
    return sorted(slots.index(at) for at in kept)


def twin_knorm(eager: Eager, count: int, layer: int = 2) -> list[int]:
    norms = eager.keys(layer - 1).norm(dim=-1)
    return sorted(sorted(range(len(eager.slots)), key=lambda a: float(norms[eager.slots[a]]))[:count])


class Tower:
    """Attention received and keys of the vision tower's last used layer, for one sample of one picture."""

    def __init__(self, model, eager):
        tower, llava = model.model.vision_tower, model.config.model_type == "llava"
        layer = model.config.vision_feature_layer if llava else -1
        seen = []
        hook = tower.encoder.layers[layer].self_attn.k_proj.register_forward_hook(lambda m, a, out: seen.append(out[0]))
        with torch.no_grad():
            out = tower(eager.inputs["pixel_values"], output_attentions=True)
        hook.remove()
        heads = model.config.vision_config.num_attention_heads
        keys = seen[0].view(len(seen[0]), heads, -1).mean(dim=1)
        attention = out.attentions[layer][0].mean(dim=0)
        self.received = attention[0, 1:] if llava else attention.mean(dim=0)  # SigLIP has no class token
        self.keys = keys[1:] if llava else keys


@grid(family=["llava", "paligemma"], keep=[1, 3, 6], alpha=[1.0, 0.0, 0.5])
def test_scope_equals_its_twin(family, keep, alpha):
    model = shared(family, "eager")
    inputs = make_inputs(model)
    plan = []
    for sample in range(3):
        one = Eager(model, inputs, sample)
        weights = [float(a) ** alpha for a in Tower(model, one).received]
        plan.append(twin_coverage(cosines(one.visual[0], one.visual[0]), weights, keep))
    with vlmprune.wrap(model, "scope", keep=keep, alpha=alpha) as pruned:
        logits, out = generate(model, inputs)
        assert [kept.tolist() for kept in pruned.report.kept] == plan
    assert_near(logits, reference(model, inputs, plan, 0, STEPS, out.sequences[:, -STEPS:]))


class Masked:
    """Attention maps and hidden states of one unpadded prompt whose tokens are masked stage by stage, never removed."""

    def __init__(self, model, eager, stages):
        self.attention, self.hidden = {}, {}
        hooks = []
        for i, layer in enumerate(language_model(model).layers):
            keep = lambda m, a, out, i=i: self.attention.update({i: out[1][0]})  # noqa: E731  # bound to i
            hooks.append(layer.self_attn.register_forward_hook(keep))
            see = lambda m, a, i=i: self.hidden.update({i: a[0][0]})  # noqa: E731  # bound to i
            hooks.append(layer.register_forward_pre_hook(see))
        staged_logits(model, eager.inputs, [(at, [kept], merged and [merged[0]]) for at, kept, merged in stages])
        for hook in hooks:
            hook.remove()


def stage_counts(visual, last, stages):
    """The same share at every stage, rounded half up."""
    shares = [(last / visual) ** (s / stages) for s in range(1, stages)]
    return [max(1, math.floor(share * visual + 0.5)) for share in shares] + [last]


def twin_pyramiddrop(model, eager, count):
    layers = [1, 2, 3]  # L/4, L/2, 3L/4 of 4
    stages, left = [], list(range(len(eager.slots)))
    for layer, size in zip(layers, stage_counts(len(left), count, 3), strict=True):
        row_of_last = Masked(model, eager, stages).attention[layer].mean(dim=0)[-1]
        left = sorted(sorted(left, key=lambda a: -float(row_of_last[eager.slots[a]]))[:size])
        stages.append((layer, left, None))
    return stages


def twin_density_peaks(points, clusters):
    size = len(points)
    away = [[float((points[a] - points[b]).norm()) / len(points[a]) ** 0.5 for b in range(size)] for a in range(size)]
    density = []
    for a in range(size):
        near = sorted(away[a])[:5]  # itself among them
        density.append(math.exp(-sum(d * d for d in near) / len(near)))
    far = max(max(row) for row in away)
    gap = [min((away[a][b] for b in range(size) if density[b] > density[a]), default=far) for a in range(size)]
    centres = sorted(range(size), key=lambda a: -density[a] * gap[a])[:clusters]
    return centres, [
        centres.index(a) if a in centres else min(range(clusters), key=lambda c: away[a][centres[c]])
        for a in range(size)
    ]


def twin_sparsevlm(model, eager, count, share=0.3, few=0.1):
    dots = [[float(v @ w) for w in eager.hidden[0][eager.words]] for v in eager.visual[0]]
    soft = [[math.exp(d - max(row)) / sum(math.exp(e - max(row)) for e in row) for d in row] for row in dots]
    rating = [sum(row[t] for row in soft) / len(soft) for t in range(len(eager.words))]
    raters = [int(eager.words[t]) for t, r in enumerate(rating) if r > sum(rating) / len(rating)]
    stages, left = [], list(range(len(eager.slots)))
    for layer, size in zip([1, 2, 3], stage_counts(len(left), count, 3), strict=True):  # 3, 7 and 16 of 32; 5 capped
        seen = Masked(model, eager, stages)
        attention = seen.attention[layer - 1].mean(dim=0)
        order = sorted(left, key=lambda a: -float(sum(attention[r][eager.slots[a]] for r in raters)))
        stay, loose, clusters = order, [], 0
        if size < len(left):
            for some in range(size - 1, 0, -1):
                loose = order[some:][: int(share * (len(left) - some)) + 1]
                clusters = min(len(loose), int(few * len(loose)) + 1)
                if some + clusters <= size:
                    break
            stay, clusters = (order[:some], min(clusters, size - some)) if size > 1 else (order[:1], 0)
        states = {a: seen.hidden[layer][eager.slots[a]] for a in left}
        replaced = {a: states[a] for a in stay}
        if clusters:
            centres, owner = twin_density_peaks([states[a].double() for a in loose], clusters)
            for c, centre in enumerate(centres):
                replaced[loose[centre]] = torch.stack(
                    [states[a] for a, o in zip(loose, owner, strict=True) if o == c]
                ).mean(0)
        left = sorted(replaced)
        stages.append((layer, left, [torch.stack([replaced[a] for a in left])]))
    return stages


def test_density_peaks_equal_their_twin():
    """Few visual tokens make few clusters: centres and owners by themselves."""
    from vlmprune.methods.sparsevlm import density_peaks

    points = torch.randn(40, 6) + torch.randn(4, 6).repeat(10, 1)
    for clusters in (1, 3, 7):
        centres, owner = density_peaks(points, clusters, 5)
        expected, owners = twin_density_peaks(points.double(), clusters)
        assert (centres.tolist(), owner.tolist()) == (expected, owners)


STAGED = {"pyramiddrop": twin_pyramiddrop, "sparsevlm": twin_sparsevlm}


@pytest.mark.parametrize(("family", "large"), [("llava", 3), ("llava", 1), ("qwen2_vl", 1)])
@pytest.mark.parametrize("keep", [0.3, 2])
@pytest.mark.parametrize("name", STAGED)
def test_stages_equal_their_twin(name, keep, family, large, monkeypatch):
    """Every layer sees what its stage left; a later stage ranks what the earlier ones have left, in their forward."""
    from vlmprune.methods import sparsevlm

    # Nine or so visual tokens drop too few for a cluster of ten; with these the recycling takes place.
    monkeypatch.setattr(sparsevlm, "RECYCLED", 0.3 * large)
    monkeypatch.setattr(sparsevlm, "CLUSTERS", 0.1 * large)
    model = shared(family, "eager")
    inputs = make_inputs(model)
    eager = [Eager(model, inputs, sample) for sample in range(3)]
    plans = []
    for one in eager:
        visual = len(one.slots)
        count = keep if isinstance(keep, int) else max(1, math.floor(keep * visual + 0.5))
        plans.append(
            STAGED[name](
                model, one, count, **({"share": 0.3 * large, "few": 0.1 * large} if name == "sparsevlm" else {})
            )
        )
    with vlmprune.wrap(model, name, keep=keep) as pruned:
        logits, out = generate(model, inputs)
        report = pruned.report
    assert [kept.tolist() for kept in report.kept] == [plan[-1][1] for plan in plans]
    stages = []
    for parts in zip(*plans, strict=True):
        merged = [part[2][0] for part in parts] if parts[0][2] is not None else None
        stages.append((parts[0][0], [part[1] for part in parts], merged))
    start = inputs["input_ids"].shape[1] - 1
    assert_near(logits, staged_logits(model, inputs, stages, out.sequences[:, -STEPS:-1])[:, start:])
    lengths = [
        max(len(one.hidden[0]) - len(one.slots) + len(left) for one, left in zip(eager, kept, strict=True))
        for _, kept, _ in stages
    ]
    expected = [max(len(one.hidden[0]) for one in eager)] * 4
    for (layer, _, _), length in zip(stages, lengths, strict=True):
        expected[layer:] = [length] * (4 - layer)
    assert report.layer_lengths[stages[0][0] :] == expected[stages[0][0] :]


@pytest.mark.parametrize("name", ["visionzip", "pyramiddrop", "sparsevlm"])
def test_a_static_cache_gives_the_same(name):
    model = shared("llava")
    inputs = make_inputs(model)
    with vlmprune.wrap(model, name, keep=0.3):
        usual, _ = generate(model, inputs)
        other, _ = generate(model, inputs, cache_implementation="static")
    assert_near(other, usual)


@pytest.mark.parametrize("name", ["visionzip", "prumerge", "dart", "pyramiddrop", "sparsevlm"])
def test_beams_share_their_prompts_choice(name):
    model = shared("llava")
    inputs = make_inputs(model)
    with vlmprune.wrap(model, name, keep=0.3) as pruned:
        generate(model, inputs)
        greedy = [kept.tolist() for kept in pruned.report.kept]
        model.generate(**inputs, num_beams=3, num_return_sequences=2, max_new_tokens=4, do_sample=False)
        assert [kept.tolist() for kept in pruned.report.kept] == greedy


def test_stages_with_positions_counted_anew():
    """A prompt alone and in a padded batch, several steps on."""
    model = shared("llava")
    inputs = make_inputs(model)
    with vlmprune.wrap(model, "pyramiddrop", keep=0.3, positions="compact"):
        batched, _ = generate(model, inputs)
        for i in range(3):
            alone, _ = generate(model, row(inputs, i))
            assert_near(alone[0], batched[i])


def test_cross_attention_is_read_ahead_too():
    """Of the first cross-attention layer behind the drop, with all of the image's keys."""
    model = shared("mllama", "eager")
    inputs = make_inputs(model)
    (first, *_) = model.config.text_config.cross_attention_layers
    with torch.no_grad():
        seen = model(**inputs, output_attentions=True, use_cache=False).attentions[first].mean(dim=1)[:, -1]
    with vlmprune.wrap(model, "pyramiddrop", keep=3, stages=1, layer=0) as pruned, torch.no_grad():
        model(**inputs)
    for row_of_last, slots, kept in zip(seen, visual_slots(model, inputs), pruned.report.kept, strict=True):
        assert kept.tolist() == row_of_last[slots].topk(3).indices.sort().values.tolist()


def test_training_with_stages():
    """Gradient checkpointing runs every layer twice: the second time nothing is decided anew."""
    model = build("llava")
    inputs = make_inputs(model)
    gradients = []
    with vlmprune.wrap(model, "pyramiddrop", keep=0.3):
        for checkpointing in (False, True):
            model.train()
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            model.zero_grad()
            model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


def test_finished_features_have_no_attention():
    model = shared("llava")
    inputs = make_inputs(model)
    with torch.no_grad():
        features = model.model.get_image_features(pixel_values=inputs["pixel_values"])
    rest = {k: v for k, v in inputs.items() if k != "pixel_values"}
    with vlmprune.wrap(model, "visionzip", keep=3), pytest.raises(VlmpruneError, match="pass their pixel_values"):
        model(**rest, mm_encoder_outputs={"image": features})


TWINS = {
    "divprune": twin_divprune,
    "cdpruner": twin_cdpruner,
    "mmtok": twin_mmtok,
    "dart": twin_dart,
    "knorm": twin_knorm,
}


@grid(name=TWINS, family=FIXED_GRID, keep=[0.3, 0.7, 1])
def test_keeps_what_the_twin_keeps_and_computes_what_masking_does(name, keep, family):
    model = shared(family, "eager")
    inputs = make_inputs(model)
    eager = [Eager(model, inputs, sample) for sample in range(3)]
    visual = [len(one.slots) for one in eager]
    counts = [keep if isinstance(keep, int) else max(1, math.floor(keep * v + 0.5)) for v in visual]
    plan = [TWINS[name](one, count) for one, count in zip(eager, counts, strict=True)]
    method = vlmprune.list_methods()[name](keep=keep)
    with vlmprune.wrap(model, method) as pruned:
        logits, out = generate(model, inputs)
        assert [kept.tolist() for kept in pruned.report.kept] == plan
    layer = method.layer
    assert_near(logits, reference(model, inputs, plan, layer, STEPS, out.sequences[:, -STEPS:]))


TILED = tuple(family for family in FAMILIES if family not in ("llava", "paligemma"))
UNSUPPORTED = {
    "cdpruner": ("mllama",),
    "mmtok": ("mllama",),
    "scope": TILED,
    "dart": ("mllama",),
    "visionzip": TILED,
    "prumerge": TILED,
    "pyramiddrop": ("mllama",),
    "sparsevlm": ("mllama",),
}
OTHERS = ("scope", "visionzip", "prumerge")
PEERS = [cls for name, cls in vlmprune.list_methods().items() if name in (*TWINS, *STAGED, *OTHERS)]


@grid(family=FAMILIES, cls=PEERS)
def test_every_family_runs_or_says_why_not(cls: type[Pruner], family: str):
    model = shared(family)
    inputs = make_inputs(model, images=(2, 1, 2))
    if family in UNSUPPORTED.get(cls.name, ()):
        with pytest.raises(VlmpruneError, match=repr(family)):
            vlmprune.wrap(model, cls(keep=0.4))
        return
    with vlmprune.wrap(model, cls(keep=0.4)) as pruned:
        logits, out = generate(model, inputs)
        report = pruned.report
    if report.method["name"] in TWINS:
        assert_near(
            logits, reference(model, inputs, report.kept, cls(keep=0.4).layer, STEPS, out.sequences[:, -STEPS:])
        )
    if cls.name == "prumerge":  # how many outliers there are is the image's own
        return
    for spans in report.images:
        assert [len(span.kept) for span in spans] == [max(1, int(0.4 * span.count + 0.5)) for span in spans]


@pytest.mark.parametrize("cls", PEERS, ids=lambda cls: cls.name)
def test_a_row_chooses_alike_alone_and_in_a_batch(cls: type[Pruner]):
    model = shared("llava")
    inputs = make_inputs(model)
    with vlmprune.wrap(model, cls(keep=0.5)) as pruned:
        generate(model, inputs, 1)
        batched = [kept.tolist() for kept in pruned.report.kept]
        for i in range(3):
            generate(model, row(inputs, i), 1)
            assert pruned.report.kept[0].tolist() == batched[i]


def test_equal_tokens_are_not_chosen_twice():
    from vlmprune.methods.cdpruner import greedy_mode, kernel
    from vlmprune.methods.divprune import farthest_points

    same = torch.ones(6, 4)
    assert farthest_points(same, 3).tolist() == [0, 1, 2]
    assert len(set(greedy_mode(kernel(same, torch.ones(6).double()), 3).tolist())) == 3


def test_of_equal_tokens_divprune_takes_the_earliest():
    """LLaVA-NeXT's rows end with equal tokens, to which a product of matrices may give distances 1e-16 apart."""
    from vlmprune.methods.divprune import farthest_points

    chosen = []
    for seed in range(40):
        points = torch.randn(30, 64, generator=torch.Generator().manual_seed(seed)) + 1
        points[[15, 22, 29]] = -points[15]  # far from all others
        chosen.append(set(farthest_points(points, 12).tolist()) & {15, 22, 29})
    assert chosen == [{15}] * 40


def test_bad_options():
    with pytest.raises(VlmpruneError, match="leave no pivot"):
        vlmprune.list_methods()["dart"](visual_pivots=0, text_pivots=0)
    with pytest.raises(VlmpruneError, match="Dart reads the attention of the layer before"):
        vlmprune.wrap(shared("llava"), "dart", layer=0)
