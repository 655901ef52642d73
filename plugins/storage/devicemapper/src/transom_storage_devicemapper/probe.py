"""Can this host run devicemapper? Nothing is made to find out."""

from __future__ import annotations

import errno
import os
from typing import Any

from transom_storage_devicemapper import loops
from transom_storage_devicemapper.filesystems import PACKAGES, TOOLS
from transom_storage_devicemapper.ioctl import CONTROL, Mapper


def missing(options: Any) -> str:
    """Say what is missing, and what to do; empty when nothing is."""
    try:
        absent = [target for target in ("thin-pool", "thin") if not Mapper().has_target(target)]
    except OSError as error:
        if error.errno in {errno.EPERM, errno.EACCES}:
            return f"{CONTROL} needs CAP_SYS_ADMIN: run as root"
        return "the kernel has no device mapper: load the module (modprobe dm-mod), or use the driver overlay2"
    if absent:
        return (
            f"the device mapper has no target {' and '.join(absent)}, or is older than Linux 5.4: load the module"
            " (modprobe dm-thin-pool), or use the driver overlay2"
        )
    for tool in TOOLS[options.fs]:
        if _which(tool) is None:
            return f"{tool} is not installed: apt-get install {PACKAGES[options.fs]}"
    files = not options.thinpooldev and not (options.datadev and options.metadatadev)
    if files and not os.path.exists(loops.CONTROL):
        return "there are no loop devices (modprobe loop): or name block devices with dm.datadev and dm.metadatadev"
    return ""


def _which(tool: str) -> str | None:
    from shutil import which

    return which(tool) or which(tool, path="/usr/sbin:/sbin")
