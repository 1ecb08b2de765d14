"""The full grids of parametrised tests, too long for every run: `python -m tests.full --list`."""
