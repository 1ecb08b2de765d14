"""How many GPUs a fleet needs with and without pruning in front of its engines, from `vlmprune plan`'s roofline.

`python -m eval.serving.fleet` prints the table of eval/serving/README.md. No weights, no GPU: estimates, not
measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eval import markdown
from vlmprune.accounting.hardware import hardware
from vlmprune.harness.plan_rows import named, planned

RATE, BUSY = 100, 0.6  # requests a second; fraction of a GPU's time that is used, the rest is for bursts
TEXT, NEW = 64, 32
KEEPS, EXITS = ("0.25", "0.1"), (0.0, 0.5)
COLUMNS = (
    "keep",
    "exits",
    "engines",
    "guide and towers",
    "GPUs in all",
    "of unpruned",
    "requests in an engine's memory",
)


def small_config() -> Any:
    """A LLaVA around a Llama of 1.1 billion weights, with transformers' default tower, which is LLaVA-1.5's."""
    from transformers import LlamaConfig, LlavaConfig

    text = LlamaConfig(
        num_hidden_layers=22, hidden_size=2048, intermediate_size=5632, num_attention_heads=32, num_key_value_heads=4,
        vocab_size=32_064,
    )  # fmt: skip
    return LlavaConfig(text_config=text)


LARGE = named("llava-1.5-13b", "LLaVA-1.5 13B")
SMALL = ("a 1.1B guide (22 x 2048)", small_config())


@dataclass(frozen=True)
class RequestCost:
    """GPU seconds of one request among many: a decode step reads the weights once for `batch` of them."""

    prefill: float
    decode: float
    vision: float
    batch: int

    @property
    def language(self) -> float:
        return self.prefill + self.decode


def cost(row: dict[str, Any], weights: float, bandwidth: float) -> RequestCost:
    """From a row of the plan."""
    batch = max(1, row["requests"])
    step = (weights / batch + row["kv_bytes"]) / bandwidth
    return RequestCost(row["prefill"], NEW * step, row["vision"], batch)


def plan_of(config: Any, keeps: tuple[str, ...]) -> tuple[dict[str, RequestCost], float]:
    """Costs by budget ("1.0" unpruned, all others before layer 0)."""
    machine = hardware("h100")
    settings = [("uniform", float(keep)) for keep in keeps]
    made = planned(config, None, machine, settings, 0, visual=None, text=TEXT, new=NEW, dtype="bf16")
    bandwidth = made["hardware"]["bandwidth"]
    return {row["keep"]: cost(row, made["weights"], bandwidth) for row in made["rows"]}, made["weights"]


def table() -> str:
    """The fleet at every budget and fraction of exits, in Markdown."""
    large, _ = plan_of(LARGE, KEEPS)
    small, _ = plan_of(SMALL, ())
    guide = small["1.0"]

    def gpus(seconds: float) -> float:
        return RATE * seconds / BUSY

    full = large["1.0"]
    whole = gpus(full.language + full.vision)
    lines = [["unpruned", "-", f"{whole:.1f}", "-", f"{whole:.1f}", "100%", str(full.batch)]]
    for keep in KEEPS:
        for exits in EXITS:
            engines = gpus((1 - exits) * large[keep].language)
            before = gpus(guide.language + guide.vision + (1 - exits) * large[keep].vision)
            both = engines + before
            numbers = (f"{engines:.1f}", f"{before:.1f}", f"{both:.1f}", f"{both / whole:.0%}", str(large[keep].batch))
            lines.append([keep, f"{exits:.0%}", *numbers])
    return markdown.table(COLUMNS, lines)


if __name__ == "__main__":
    print(f"{LARGE[0]}, {SMALL[0]}, H100, bf16, {TEXT} text tokens, {NEW} generated,")
    print(f"{RATE} requests a second, {BUSY:.0%} busy\n\n{table()}")
