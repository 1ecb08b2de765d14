"""Published numbers of pruning methods, each with its source, and the command that puts ours beside them."""
