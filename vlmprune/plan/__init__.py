"""What pruning would cost and save on given hardware, from a model's config alone: no weights, no run."""
