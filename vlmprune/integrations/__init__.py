"""Wrapped models inside other tools: lmms-eval, Ray Data."""
