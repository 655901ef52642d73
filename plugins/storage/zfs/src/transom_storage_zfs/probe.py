"""Can this host run zfs? Nothing is made to find out."""

from __future__ import annotations

import os


def missing(fsname: str, root: str) -> str:
    """Say what is missing, and what to do; empty when nothing is."""
    from shutil import which

    if not os.path.exists("/dev/zfs"):
        return "the kernel has no ZFS: load the module (modprobe zfs, of Debian's zfs-dkms), or use the driver overlay2"
    if not (which("zfs") or which("zfs", path="/usr/sbin:/sbin")):
        return "zfs is not installed: apt-get install zfsutils-linux"
    name = fsname or dataset_of(root)
    if not name:
        return f"{root} is not on ZFS: name a dataset with zfs.fsname, or put the data root on one"
    from transom_storage_zfs.command import zfs

    try:
        zfs("list", "-H", "-o", "name", name)
    except OSError as error:
        return f"{error.strerror}; make it: zfs create -o mountpoint=none {name}"
    return ""


def dataset_of(path: str) -> str:
    """Name the dataset that holds a path, or will; empty when it is on another file system (proc_pid_mountinfo(5))."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            fields = line.split()
            if fields[2] == wanted:
                kind, source = fields[fields.index("-") + 1 :][:2]
                return source if kind == "zfs" else ""
    return ""
