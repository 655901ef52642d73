"""``python -m transom_conformance`` is ``transom conformance`` where the engine is not installed."""

from __future__ import annotations

import sys

import click

from transom.errors import TransomError
from transom_conformance.cli import conformance_command


def main() -> int:
    """Run the command; return its exit code, 125 when nothing could be run."""
    prog = "python -m transom_conformance"
    try:
        return int(conformance_command.main(prog_name=prog, standalone_mode=False) or 0)
    except click.UsageError as error:
        text, code = f"{error.format_message()}; see `{prog} --help`", 125
    except click.ClickException as error:
        text, code = error.format_message(), 125
    except TransomError as error:
        text, code = str(error), error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    print(f"transom: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
