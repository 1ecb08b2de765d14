"""What vlmprune knows of transformers and of any torch module: versions, arguments, caches, hooks.

A package whose modules import transformers imports this one first, which hides a torchvision that does not load.
"""

from .imports import hide_broken_torchvision

hide_broken_torchvision()
