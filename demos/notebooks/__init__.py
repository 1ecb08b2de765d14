"""Notebooks with the bundled pair, saved with their outputs; `run` executes and saves them again."""
