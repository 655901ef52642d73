"""A trivial container, run as a supervisor would run it, to see whether a runtime works on this host.

It runs the host's own ``true`` over a view of the host's files, with the configuration that every container gets.
The runtime runs below a child with mount and pid namespaces of its own, whose tmpfs holds all of its files: the
kernel takes everything away when the child ends, and the child dies with its parent (PR_SET_PDEATHSIG). Only the
empty control group of a runtime that manages its own can stay, when the trial is killed: it is named after the
directory's inode, so the next trial takes it over and removes it.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from typing import NoReturn

from transom.services import mounts
from transom_engine.model import Config, Container, HostConfig
from transom_engine.oci import spec
from transom_engine.oci.runtime import Runtime, first_error

_CLONE_NEWPID = 0x20000000
_PR_SET_PDEATHSIG = 1
_ID = "trial"


def run(*, runtime: Runtime, directory: str, seconds: float) -> str | None:
    """Return None when the container ran, else the first line of what went wrong.

    Args:
        directory: any that is the caller's own; the child mounts over it, out of everybody else's sight.
        seconds: how long it may take.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _leave(writer, lambda: _supervise(runtime, directory, writer))
    os.close(writer)
    try:
        verdict = _read_until(reader, deadline=time.monotonic() + seconds)
    except TimeoutError:
        return f"did not end within {seconds:g} s"
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return None if verdict == "ok" else verdict or "the trial was killed"


def _read_until(reader: int, *, deadline: float) -> str:
    text, poll = b"", select.poll()
    poll.register(reader, select.POLLIN)
    while poll.poll(max(0, deadline - time.monotonic()) * 1000):
        chunk = os.read(reader, 4096)
        if not chunk:
            return text.decode(errors="replace")
        text += chunk
    raise TimeoutError


def _leave(writer: int, function: Callable[[], str]) -> NoReturn:
    """End a forked child with a verdict, and without running what belongs to its parent (atexit, buffers)."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        verdict = function()
    except Exception as error:
        verdict = str(error)
    os.write(writer, verdict.encode(errors="replace"))
    os._exit(0)


def _supervise(runtime: Runtime, directory: str, writer: int) -> str:
    cgroup = f"/transom-trial-{os.stat(directory).st_ino}" if runtime.manages_cgroups else ""
    mounts.private_namespace()
    mounts.unshare(_CLONE_NEWPID)
    init = os.fork()
    if init == 0:  # pid 1 of the namespace: whatever it leaves behind dies with it
        _leave(writer, lambda: _try(runtime, directory, cgroup))
    os.waitpid(init, 0)
    return ""


def _try(runtime: Runtime, directory: str, cgroup: str) -> str:
    from subprocess import DEVNULL, PIPE
    from subprocess import run as execute

    mounts.mount("proc", "/proc", "proc", mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC)
    for place in runtime.hide:
        mounts.unmount(place)
    mounts.mount("tmpfs", directory, "tmpfs", data="mode=700")
    rootfs, log = f"{directory}/rootfs", f"{directory}/log"
    _host_tree(rootfs)
    container = Container(id=_ID, name=_ID, created="", image="", config=Config(cmd=["true"]), host_config=HostConfig())
    bundle = spec.build(container=container, rootfs=rootfs, netns=None, cgroups_path=cgroup)
    with open(f"{directory}/config.json", "wb") as file:
        file.write(bundle.encode())
    arguments = runtime.run(id=_ID, root=f"{directory}/state", bundle=directory, log=log)
    done = execute(arguments, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, check=False)
    if done.returncode == 0:
        return "ok"
    return first_error(log=_content(log) or done.stderr) or f"exit status {done.returncode}"


def _host_tree(rootfs: str) -> None:
    """Show the host's files at `rootfs`, all but what a runtime mounts itself."""
    os.mkdir(rootfs)
    for entry in os.scandir("/"):
        place = f"{rootfs}/{entry.name}"
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), place)
        elif entry.is_dir() and entry.name not in {"dev", "proc", "sys"}:
            os.mkdir(place)
            mounts.bind(entry.path, place, recursive=True)


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
