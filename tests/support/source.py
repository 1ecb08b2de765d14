"""Where a name is defined, read from source text."""

from __future__ import annotations

import ast


def definition(tree: ast.AST, qualified: str) -> ast.AST:
    """The class or function of a qualified name such as "Session.attach".

    Raises:
        LookupError: there is none.
    """
    node = tree
    for name in qualified.split("."):
        found = [one for one in ast.iter_child_nodes(node) if getattr(one, "name", None) == name]
        if not found:
            raise LookupError(f"{qualified} is not defined")
        node = found[0]
    return node
