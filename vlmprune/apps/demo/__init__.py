"""The demo: a page that shows what the model looks at, what was dropped, and what it cost. Needs the extra `demo`."""

from __future__ import annotations
