"""Drivers that are correct but for one fault each, and the case that must find it.

`FAULTS` has them by kind and name. They are the drivers of a distribution that the tests put together: see
`test_seeded_faults`.
"""

from seeded import auth, limits, logging, network, remote, storage
from seeded.found import FAULTS

CORRECT = (*storage.CORRECT, *network.CORRECT, *logging.CORRECT, *remote.CORRECT, *limits.CORRECT, *auth.CORRECT)

__all__ = ["CORRECT", "FAULTS"]
