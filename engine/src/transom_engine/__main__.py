"""``python -m transom_engine`` is the command ``transom``."""

from transom_engine.cli import entry

entry()
