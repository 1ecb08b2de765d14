"""Mutations: one line of the package is made wrong, and a test has to notice. `python -m tests.mutate`."""
