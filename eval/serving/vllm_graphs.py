"""vLLM's own CUDA graphs with images pruned inside it: the same tokens as without graphs. Not run yet: it needs a GPU.

    vlmprune export-vllm DIR
    python -m eval.serving.vllm_graphs DIR                       vLLM's default model runner
    VLLM_USE_V2_MODEL_RUNNER=1 python -m eval.serving.vllm_graphs DIR

Every engine answers the same requests of several budgets twice, so that graphs are replayed with other inputs than they
were captured with. The exit status is 1 where an answer differs.
"""

from __future__ import annotations

import argparse
import io
import sys
from importlib.resources import files
from typing import Any

from PIL import Image

KEEPS = (1.0, 0.5, 0.25, 20, 0.25, 0.5)


def answers(folder: str, processor: Any, **settings: Any) -> list[list[int]]:
    """Greedy tokens of every request, in two batches and one by one."""
    import vllm

    from vlmprune.inputs.chat import build_messages

    image = Image.open(io.BytesIO(files("vlmprune.tiny").joinpath("example.png").read_bytes())).convert("RGB")
    talk = build_messages(image, "What colour is the star?")
    text = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    prompts = [
        {
            "prompt_token_ids": ids,
            "multi_modal_data": {"image": image.rotate(90 * number)},
            "mm_processor_kwargs": {"keep": keep},
        }
        for number, keep in enumerate(KEEPS)
    ]
    options = {"hf_overrides": {"vlmprune": {"keep": 0.25}}, "max_model_len": 512, "gpu_memory_utilization": 0.3}
    engine = vllm.LLM(folder, **options, **settings)
    wanted = vllm.SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    batches = [prompts, prompts[::-1], *[[one] for one in prompts]]
    found = [list(out.outputs[0].token_ids) for batch in batches for out in engine.generate(batch, wanted)]
    engine.llm_engine.engine_core.shutdown()
    return found


def main() -> int:
    """Compare both ways of running."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="what vlmprune export-vllm wrote")
    folder = parser.parse_args().folder
    from vlmprune.inputs.processor import load_processor

    processor = load_processor(folder)
    eager = answers(folder, processor, enforce_eager=True)
    graphs = answers(folder, processor, enforce_eager=False)
    different = sum(one != other for one, other in zip(eager, graphs, strict=True))
    print(f"{different} of {len(eager)} answers differ between CUDA graphs and eager execution")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
