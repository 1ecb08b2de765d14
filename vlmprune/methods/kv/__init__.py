"""Methods that act on the cache after the prompt, or in the steps: one file each."""
