"""A small OpenAI-compatible server that runs the bundled large model in transformers from `image_embeds` parts.

What vLLM does for the proxy, without vLLM: `python -m tests.serving.tiny_engine PORT [SECONDS_A_TOKEN]`. Bare rows get
compact positions, rows with their places original ones. `/seen` counts what came and what was broken off. Like vLLM's
prefix cache it says in `usage` how many tokens of a prompt began an earlier one in the same way, in blocks of 16.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from torch import Tensor
from transformers import DynamicCache

import vlmprune
from vlmprune.serving.payload import decoded


class Model:
    """Greedy steps of the language model over text and given rows."""

    def __init__(self) -> None:
        self.model, _, self.processor = vlmprune.load_tiny()
        self.tokenizer = self.processor.tokenizer
        self.image = self.model.config.image_token_id
        self.earlier: deque[Tensor] = deque(maxlen=64)

    def prompt(self, messages: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """Embeddings [1, S, D] and positions [1, S]."""
        rows: list[Any] = []
        for message in messages:
            content = message["content"]
            message["content"] = parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for at, part in enumerate(parts):
                if part["type"] == "image_embeds":
                    rows.append(part["image_embeds"])
                    parts[at] = {"type": "image"}
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        given, left = iter(rows), len(rows)
        embeddings, positions, position = [], [], 0
        for token in ids:
            if token != self.image or left == 0:  # a text may hold the token too
                embeddings.append(self.model.get_input_embeddings()(token)[None])
                positions.append(torch.tensor([position]))
                position += 1
                continue
            entry, left = next(given), left - 1
            fields = {name: decoded(value) for name, value in entry.items()} if isinstance(entry, dict) else {}
            own = fields["image_embeds"] if fields else decoded(entry)
            kept = fields.get("kept", torch.arange(len(own)))
            embeddings.append(own)
            positions.append(position + kept)
            position += int(fields.get("visual", len(own)))
        return torch.cat(embeddings)[None], torch.cat(positions)[None]

    def cached(self, embeddings: Tensor) -> int:
        """How many tokens at the start of a prompt [1, S, D] an earlier prompt had too."""
        most = 0
        for other in self.earlier:
            both = min(len(other), embeddings.shape[1])
            same = (other[:both] == embeddings[0, :both]).all(dim=-1)
            most = max(most, both if bool(same.all()) else int(same.int().argmin()))
        self.earlier.append(embeddings[0].clone())
        return most // 16 * 16

    @torch.no_grad()
    def step(self, embeddings: Tensor, positions: Tensor, cache: DynamicCache) -> int:
        mask = torch.ones(1, cache.get_seq_length() + embeddings.shape[1], dtype=torch.long)
        hidden = self.model.model.language_model(
            inputs_embeds=embeddings, position_ids=positions, attention_mask=mask, past_key_values=cache
        ).last_hidden_state
        return int(self.model.lm_head(hidden[:, -1]).argmax())

    async def answer(self, body: dict[str, Any], delay: float, usage: dict[str, Any]) -> AsyncIterator[str]:
        """Text so far after every token; `usage` is filled at the start."""
        embeddings, positions = self.prompt(body["messages"])
        usage["prompt_tokens"] = embeddings.shape[1]
        usage["prompt_tokens_details"] = {"cached_tokens": self.cached(embeddings)}
        cache, tokens = DynamicCache(config=self.model.config), []
        longest = body.get("max_tokens") or 64
        while len(tokens) < longest:
            await asyncio.sleep(delay)
            token = self.step(embeddings, positions, cache)
            if token == self.model.generation_config.eos_token_id and not body.get("ignore_eos"):
                break
            tokens.append(token)
            yield self.tokenizer.decode(tokens, skip_special_tokens=True)
            embeddings = self.model.get_input_embeddings()(torch.tensor([[token]]))
            positions = positions[:, -1:] + 1


def create(delay: float = 0.0) -> FastAPI:
    app, model = FastAPI(), Model()
    seen = {"requests": 0, "broken": 0, "done": 0}

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.get("/seen")
    async def counts() -> dict[str, int]:
        return seen

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "tiny", "object": "model"}]}

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: Request) -> Response:
        body = await request.json()
        seen["requests"] += 1
        if body.get("model") != "tiny":
            return JSONResponse({"error": {"message": "no such model", "code": 404}}, 404)
        if not body.get("stream"):
            said, usage = "", {}
            async for text in model.answer(body, delay, usage):
                said = text
                if await request.is_disconnected():
                    seen["broken"] += 1
                    return Response(status_code=499)
            seen["done"] += 1
            message = {"role": "assistant", "content": said.strip()}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            return JSONResponse({"choices": choices, "usage": usage})

        async def pieces() -> AsyncIterator[str]:
            said = ""
            try:
                async for text in model.answer(body, delay, {}):
                    delta = {"content": text[len(said) :]}
                    said = text
                    yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n"
                yield "data: [DONE]\n\n"
                seen["done"] += 1
            except (asyncio.CancelledError, GeneratorExit):
                seen["broken"] += 1
                raise

        return StreamingResponse(pieces(), media_type="text/event-stream")

    return app


if __name__ == "__main__":
    torch.set_num_threads(1)
    uvicorn.run(create(float(sys.argv[2]) if len(sys.argv) > 2 else 0.0), port=int(sys.argv[1]), log_level="warning")
