"""What the conformance suite is told about this driver (entry point group ``transom.conformance``)."""

EXAMPLES = {"rotating": {"max-size": "40k", "max-file": "5000", "compress": "false"}}
"""Options with which it rotates after tens of kilobytes and keeps every file."""
