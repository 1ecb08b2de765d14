"""Everything about vlmprune that only a GPU can show, in one command of at most five minutes."""
