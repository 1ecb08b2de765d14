"""The only module that knows about versions of transformers: which are supported, and what differs between them."""

import inspect
import warnings

import transformers
from packaging.version import Version
from transformers.masking_utils import create_causal_mask

from ..errors import VlmpruneError

# Up to 5.13 `create_causal_mask` takes no `layer_idx`: the mask of a pruned layer cannot be asked for.
OLDEST = "5.14"
NEWEST = "5.24"  # every test passes on both

# transformers 5.24 renamed the argument; until 5.40 its models take both names, and users and hooks meet both.
CACHE_NAMES = ("cache", "past_key_values")
CACHE = next(name for name in CACHE_NAMES if name in inspect.signature(create_causal_mask).parameters)

# transformers 5.24 hands the language model's options on to the tower, which has no cache to use.
NOT_FOR_TOWERS = ("use_cache",)

# What a version's own forward raises on every call, wrapped or not, and what a user can do about it.
_FAULTS = {
    "'MoeCausalLMOutputWithPast' object has no attribute 'image_outputs'": (
        "reads a field of its language model's output that is not there; set "
        "transformers.modeling_outputs.MoeCausalLMOutputWithPast.image_outputs = None before the call"
    )
}

_warned: set[str] = set()  # versions that this process was warned about


def check_transformers() -> None:
    """Refuse a transformers older than `OLDEST`; warn once about a minor version newer than `NEWEST`."""
    installed = transformers.__version__
    if Version(installed) < Version(OLDEST):
        raise VlmpruneError(
            f"transformers {installed} is older than {OLDEST}, the oldest version that vlmprune supports; upgrade it "
            f"with pip install 'transformers>={OLDEST},<6'."
        )
    if Version(installed).release[:2] > Version(NEWEST).release and installed not in _warned:
        _warned.add(installed)
        warnings.warn(
            f"transformers {installed} is newer than {NEWEST}, the newest version that vlmprune is tested with; if "
            f"results look wrong, install 'transformers=={NEWEST}.*'.",
            UserWarning,
            stacklevel=4,  # the line that called `wrap`, whose arguments are checked between
        )


def upstream_fault(model: object, error: Exception) -> str | None:
    """A sentence about an error of transformers' own that vlmprune has no part in, None where it is no known one."""
    why = _FAULTS.get(str(error))
    where = f"The forward of {type(model).__name__} in transformers {transformers.__version__}"
    return None if why is None else f"{where} fails without vlmprune too, because it {why}."
