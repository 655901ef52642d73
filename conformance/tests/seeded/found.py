"""Where the seeded faults of all kinds are registered."""

import re

FAULTS = {}


def found_by(case):
    """Make the class a driver under a name of its own, whose fault `case` must find."""

    def register(cls):
        cls.name = re.sub("(?<!^)(?=[A-Z])", "-", cls.__name__).lower()
        FAULTS[cls.kind, cls.name] = (cls, case)
        return cls

    return register
