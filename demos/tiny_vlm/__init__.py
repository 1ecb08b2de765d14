"""Training and evaluation of the bundled pair."""
