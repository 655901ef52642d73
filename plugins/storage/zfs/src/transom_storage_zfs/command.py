"""zfs(8), called with what programs read: -H, -p, names in the C locale."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Sequence

_SAYINGS = (
    (re.compile(r"does not exist|could not find any snapshots"), errno.ENOENT),
    (re.compile(r"is busy|pool or dataset is busy|umount failed"), errno.EBUSY),
    (re.compile(r"already exists"), errno.EEXIST),
    (re.compile(r"has dependent clones|filesystem has children"), errno.ENOTEMPTY),
    (re.compile(r"out of space"), errno.ENOSPC),
    (re.compile(r"permission denied", re.IGNORECASE), errno.EPERM),
)


def zfs(*arguments: str, keep: Sequence[int] = (), program: str = "zfs") -> str:
    """Run zfs(8) and return what it wrote.

    Args:
        keep: descriptors that the program holds as long as it runs, also when we are killed meanwhile.

    Raises:
        OSError: it failed; its own words, and the errno that these stand for (EIO for unknown ones).
    """
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            (program, *arguments),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            pass_fds=keep,
        )
    except FileNotFoundError:
        raise OSError(errno.ENOENT, f"{program} is not installed: apt-get install zfsutils-linux") from None
    if done.returncode:
        raise understood(" ".join(done.stderr.split()) or f"{program} ended with {done.returncode}")
    return done.stdout


def understood(said: str) -> OSError:
    """Make an error of what zfs wrote: it has an exit code of 1 for everything."""
    for pattern, code in _SAYINGS:
        if pattern.search(said):
            return OSError(code, said)
    return OSError(errno.EIO, said)
