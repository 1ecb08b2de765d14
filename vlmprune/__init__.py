"""vlmprune: one call prunes the visual tokens of any Hugging Face vision-language model.

>>> pruned = vlmprune.wrap(model, vlmprune.FastV(keep=0.25))
>>> out = model.generate(**inputs)
>>> print(pruned.report)
>>> pruned.unwrap()

Importing the package loads neither torch nor transformers; the first use of a name in `__init__.pyi` does (PEP 562).
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
