"""Clips drawn from a seed, questions about them, and the training of a pair that answers them."""
