"""Inputs of a model: its processor, images, and checks of questions; `chat.py` puts them together."""
