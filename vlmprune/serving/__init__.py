"""Serving: images pruned here, answered by an engine that knows nothing of it.

Read `tower` (the large model's eyes alone), `encoder` (an image and a question become the kept embeddings), `wire` (how
these travel), then `stages` and `proxy` (the same for many at once, in front of a server), `plugin` (original positions
inside vLLM).
"""
