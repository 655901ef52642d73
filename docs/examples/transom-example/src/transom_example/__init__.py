"""The smallest driver of each kind that passes its conformance suite."""
