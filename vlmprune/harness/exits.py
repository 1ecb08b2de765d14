"""How commands end: a status, and one sentence on stderr where something outside of them is wrong."""

from __future__ import annotations

import errno

BAD_INPUT = 2
INTERRUPTED = 130  # what a shell reports for a process stopped by Ctrl-C


def refused(error: OSError, then: str = "") -> str:
    """What the file system refused, and what to do; `then`: what a user may count on after a full disk."""
    what = error.strerror or str(error) or type(error).__name__
    where = f"{str(error.filename)!r}: {what}" if error.filename is not None else what
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({where}); make room{then}"
    return f"a file cannot be read or written ({where}); check the path and its permissions"
