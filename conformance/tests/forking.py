"""The command of the suites, each run in a child forked off a process that has imported what they need.

It costs a child a third of what a new interpreter does, which tells where a suite is run a hundred times. Arguments
are a kind and its drivers; each line read is a JSON array: the file for what the command says, and its words. The
answer is its exit code, as the wait status has it.
"""

import gc
import json
import os
import sys

import rich.console
import rich.table
import seeded

from transom_conformance.__main__ import main
from transom_conformance.runner import listed

assert rich.console, seeded  # what the command and the drivers import late


def serve() -> list[str]:
    """Answer until the input ends; in a child, return the words of its command."""
    for line in sys.stdin:
        output, *words = json.loads(line)
        if (child := os.fork()) == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            said = os.open(output, os.O_WRONLY | os.O_APPEND)
            os.dup2(said, 1)
            os.dup2(said, 2)
            return words
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


if __name__ == "__main__":
    kind, *drivers = sys.argv[1:]
    for driver in drivers:
        listed(kind, driver)
    gc.freeze()  # what is there is no child's to look through
    sys.argv[1:] = serve()
    sys.exit(main())
