"""The arithmetic of a fleet that serves pruned images."""
