"""What runs while a wrapped model is called; so far, what differs between versions of transformers."""
