"""What vlmprune knows of transformers and of any torch module: versions, arguments, caches, hooks."""
