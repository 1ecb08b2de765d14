"""How commands of the evaluation end: a status, and one sentence on stderr where something outside of them is wrong."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from vlmprune.errors import VlmpruneError
from vlmprune.harness.exits import BAD_INPUT as BAD_INPUT
from vlmprune.harness.exits import INTERRUPTED, refused
from vlmprune.harness.format import note

GOES_ON = "what was answered is recorded, and the same command goes on there"


class Arguments(argparse.ArgumentParser):
    """A parser whose errors are a sentence as all others are, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        raise VlmpruneError(f"{message}; see --help")


def ended(body: Callable[[], int]) -> int:
    """The exit status of a command: its own, 2 after bad input or a full disk, 130 after Ctrl-C."""
    try:
        return body()
    except VlmpruneError as error:
        note(str(error))
    except KeyboardInterrupt:
        note(f"interrupted; {GOES_ON}")
        return INTERRUPTED
    except OSError as error:
        note(refused(error, f": {GOES_ON}"))
    except RuntimeError as error:
        if "out of memory" not in str(error):  # torch's own class of it is imported with torch alone
            raise
        note(f"the memory is full ({str(error).partition(chr(10))[0]}); give a smaller --batch-size; {GOES_ON}")
    return BAD_INPUT
