"""The OCI runtime: which one works on this host, and the arguments of its commands.

A runtime is picked by trying: it runs a trivial container, in a mount and pid namespace like those in which a
container's supervisor will call it. Version numbers say little (crun refuses a hybrid cgroup hierarchy, however
new the kernel), a container that ran says all. The verdict is kept in the run directory until a candidate's file
changes, so that the usual start costs a stat or two.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from transom.errors import ConfigError, NotFound, NotSupported, TransomError

NAMES = ("crun", "runc")
_DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_UNIFIED = "/sys/fs/cgroup/unified"
_SECONDS = 20.0


class Runtime(msgspec.Struct, frozen=True):
    """A runtime that works on this host, and what its caller must do for it.

    Attributes:
        name: "crun" or "runc": whose command line it has.
        path: of the executable.
        version: the first line of ``--version``, for the user's eyes.
        flags: global arguments of every command.
        hide: mount points to move away in the supervisor's own mount namespace before the runtime is called.
        manages_cgroups: it insists on ``linux.cgroupsPath``, joins the container to that and removes it on delete.
            Otherwise a container stays in the groups of the process that calls ``create`` or ``run``.

    The methods return arguments to execute. `root` is the directory of the runtime's own state, one for each
    container: what is in it goes with the container's run directory.
    """

    name: str
    path: str
    version: str = ""
    flags: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()
    manages_cgroups: bool = False

    def create(
        self, *, id: str, root: str, bundle: str, pid_file: str = "", console_socket: str = "", log: str = ""
    ) -> list[str]:
        """Set the container up, up to the point where its process would be executed; its streams are the caller's.

        Args:
            bundle: the directory with ``config.json``.
            pid_file: gets the pid of the container's init, as the caller's pid namespace sees it.
            console_socket: a listening unix socket that gets the terminal (SCM_RIGHTS), for a process with one.
            log: a file that gets the runtime's own errors, as JSON lines, in place of stderr.
        """
        return self._command(root, "create", id, bundle=bundle, pid=pid_file, console=console_socket, log=log)

    def run(
        self,
        *,
        id: str,
        root: str,
        bundle: str,
        pid_file: str = "",
        console_socket: str = "",
        detach: bool = False,
        log: str = "",
    ) -> list[str]:
        """Create and start in one; see `create`.

        It waits, deletes and exits with the container's own status; or, with `detach`, exits once that runs.
        """
        return self._command(
            root, "run", id, bundle=bundle, pid=pid_file, console=console_socket, detach=detach, log=log
        )

    def start(self, *, id: str, root: str, log: str = "") -> list[str]:
        """Execute the process of a created container."""
        return self._command(root, "start", id, log=log)

    def exec(
        self,
        *,
        id: str,
        root: str,
        process: str,
        pid_file: str = "",
        console_socket: str = "",
        detach: bool = False,
        log: str = "",
    ) -> list[str]:
        """Run a further process, described by the JSON file `process` (`transom_engine.oci.spec.exec_process`).

        It exits with the process's status, or, with `detach`, as soon as that runs.
        """
        return self._command(
            root, "exec", id, process=process, pid=pid_file, console=console_socket, detach=detach, log=log
        )

    def kill(self, *, id: str, root: str, signal: int) -> list[str]:
        """Send a signal to the container's init."""
        return [*self._command(root, "kill", id), str(signal)]

    def delete(self, *, id: str, root: str) -> list[str]:
        """Remove what the runtime holds of a container, killing it first if it runs. Absent is success."""
        return self._command(root, "delete", id, force=True)

    def state(self, *, id: str, root: str) -> list[str]:
        """Print the container's state as JSON."""
        return self._command(root, "state", id)

    def _command(
        self,
        root: str,
        verb: str,
        id: str,
        *,
        bundle: str = "",
        process: str = "",
        pid: str = "",
        console: str = "",
        detach: bool = False,
        force: bool = False,
        log: str = "",
    ) -> list[str]:
        options = {"--bundle": bundle, "--process": process, "--pid-file": pid, "--console-socket": console}
        return [
            self.path,
            *self.flags,
            *(["--log", log, "--log-format", "json"] if log else []),
            "--root",
            root,
            verb,
            *(word for option, value in options.items() if value for word in (option, value)),
            *(["--detach"] if detach else []),
            *(["--force"] if force else []),
            id,
        ]


class _File(msgspec.Struct, frozen=True):
    """What tells one build of an executable from the next."""

    path: str
    mtime: int
    size: int

    @classmethod
    def of(cls, path: str) -> _File | None:
        try:
            status = os.stat(path)
        except OSError:
            return None
        return cls(path=path, mtime=status.st_mtime_ns, size=status.st_size)


class _Verdict(msgspec.Struct, frozen=True):
    """A choice, and what it was made among."""

    files: tuple[_File, ...]
    runtime: Runtime


def choose(*, run_dir: str, configured: str = "", names: Sequence[str] = NAMES) -> Runtime:
    """Return the first runtime that works, in the order of preference `names`.

    Args:
        run_dir: keeps the verdict; the engine's own, on a file system that does not outlive a boot.
        configured: the user's choice: one of `NAMES`, or an executable's path, whose name begins with one of them.

    Raises:
        ConfigError: `configured` is neither.
        NotSupported: none works; the text has each one's first words and the packages to install.
    """
    if configured and "/" not in configured and configured not in NAMES:
        raise ConfigError(f'unknown runtime "{configured}"; known: {", ".join(NAMES)}, or the path of one of them')
    files = tuple(filter(None, (_File.of(path) for path in _paths(configured, names))))
    file = os.path.join(run_dir, f"runtime-{os.path.basename(configured)}.json" if configured else "runtime.json")
    known = _recall(file, files)
    if known:
        return known
    from transom.services.files import Lock, write_atomic

    with Lock(f"{run_dir}/runtime.lock"):
        known = _recall(file, files)
        if known:  # another process tried while this one waited
            return known
        runtime = _first_that_works([item.path for item in files], run_dir, wanted=configured or " and ".join(names))
        write_atomic(file, msgspec.json.encode(_Verdict(files=files, runtime=runtime)), durable=False)
    return runtime


def try_run(*, runtime: Runtime, run_dir: str) -> str | None:
    """Run a trivial container with `runtime`; None when that worked, else the first line of what went wrong.

    It happens below a child, in namespaces of its own: nothing is left, whatever becomes of either process.
    """
    from transom_engine.oci.trial import run

    return run(runtime=runtime, directory=run_dir, seconds=_SECONDS)


def first_error(*, log: bytes) -> str:
    """Return the message of the first error in a runtime's log (JSON lines), or its first line as it is."""
    lines = log.decode(errors="replace").splitlines()
    for line in lines:
        try:
            entry = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError:
            continue
        if entry.get("level") == "error":
            return str(entry.get("msg", "")).partition("\n")[0]
    return lines[0] if lines else ""


def start_error(*, runtime: Runtime, log: bytes, command: str) -> TransomError:
    """Return what to raise when ``create`` or ``exec`` failed; `exit_code` tells Docker's three cases apart.

    127: the container has no such command. 126: it may not be executed. 125: anything else.
    """
    message = first_error(log=log)
    error = TransomError(f"{runtime.name}: {message or 'failed without a word; see its log'}")
    if "executable file" in message or ("exec: " in message and "no such file" in message):
        error = NotFound(f'exec: "{command}": executable file not found in the container\'s $PATH')
        error.exit_code = 127
    elif message.startswith("open executable: ") or ("exec: " in message and "denied" in message):
        error = ConfigError(f'exec: "{command}": permission denied: not an executable file')
        error.exit_code = 126
    elif "chdir" in message:
        error = NotFound(
            f"the working directory cannot be entered ({message}); make it, or name another with --workdir"
        )
        error.exit_code = 127
    return error


def _paths(configured: str, names: Sequence[str]) -> Iterator[str]:
    if "/" in configured:
        yield configured
        return
    for name in [configured] if configured else names:
        found = (os.path.join(directory, name) for directory in _DIRECTORIES)
        yield from [path for path in found if os.access(path, os.X_OK)][:1]


def _recall(file: str, files: tuple[_File, ...]) -> Runtime | None:
    """Return the verdict if it was reached with these very files."""
    try:
        with open(file, "rb") as stream:
            verdict = msgspec.json.decode(stream.read(), type=_Verdict)
    except (OSError, msgspec.DecodeError):
        return None
    return verdict.runtime if verdict.files == files else None


def _first_that_works(paths: Sequence[str], run_dir: str, *, wanted: str) -> Runtime:
    tried = []
    for path in paths:
        for candidate in _candidates(path):
            failure = try_run(runtime=candidate, run_dir=run_dir)
            if failure is None:
                return msgspec.structs.replace(candidate, version=_version(path))
            tried.append(f"{path}{' with ' + candidate.hide[0] + ' hidden' if candidate.hide else ''}: {failure}")
    reasons = "; ".join(tried) or f"{wanted}: not found"
    raise NotSupported(f"no OCI runtime works on this host ({reasons}); install Debian's package crun or runc")


def _candidates(path: str) -> Iterator[Runtime]:
    name = os.path.basename(path)
    if name.startswith("crun"):
        crun = Runtime(name="crun", path=path, flags=("--cgroup-manager=disabled",))
        yield crun
        if os.path.ismount(_UNIFIED):
            yield msgspec.structs.replace(crun, hide=(_UNIFIED,))
    elif name.startswith("runc"):
        yield Runtime(name="runc", path=path, manages_cgroups=True)
    else:
        raise ConfigError(f"runtime {path}: its name begins with none of {', '.join(NAMES)}")


def _version(path: str) -> str:
    from subprocess import run

    return run([path, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
