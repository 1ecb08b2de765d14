"""The command line, run inside the test's process."""

from __future__ import annotations

from typer.testing import CliRunner

from vlmprune.apps.cli import app


def run(*arguments: str) -> str:
    """The stdout of a command that has to succeed."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str) -> str:
    """The one line on stderr of a command that has to refuse its input: status 2, nothing on stdout, no traceback."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "Traceback" not in line
    return line
