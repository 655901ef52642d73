"""``make test-vm``: run suites in throw-away guests, whose kernels have what this host's lacks.

A guest is Debian's user-mode-linux, a kernel that is an ordinary process, or qemu with Debian's kernel, on this host's
own root file system, over which it has a tmpfs. It sees the same Python and the same environment, and the checkout as
it was when this program was started. Nothing it does reaches the host.
"""

import argparse
import asyncio
import contextlib
import difflib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import debian
import msgspec
from debian import QEMU, STATE, Refused
from guest import RESULT

CHECKOUT = Path(__file__).resolve().parent.parent.parent
CONSOLE_LINES = 60
PRELOADED = "xstate.so"
UML = "/usr/bin/linux.uml"
UML_MODULES = "/usr/lib/uml/modules"
TILES = "amx_tile"
"""The flag of processors with more state than user-mode kernels before Linux 6.13 hold: xstate.c says more."""


class Suite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One table of suites.toml, where the keys are explained."""

    pytest: list[str]
    kernel: str = "uml"
    needs: list[str] = []
    timeout: float = 1800
    memory: int = 8192
    cpus: int = 1
    init: str = ""
    built: str = ""
    env: dict[str, str] = {}


def main():
    """Run what the command line asks for; exit with 1 unless it passed, with 2 when it makes no sense."""
    sys.stdout.reconfigure(line_buffering=True)
    asked = arguments()
    try:
        suites = chosen(asked)
        kernels = {suite.kernel for suite in suites.values() if not suite.built or debian.has_zfs()}
        kernel = user_mode_kernel(asked.kernel) if "uml" in kernels else ""
        if "qemu" in kernels:
            debian.prepare_qemu()
        with frozen_checkout() as run:
            if kernel and TILES in processor():
                hold_state(run)
            outcomes = asyncio.run(guests(suites, kernel, run, asked))
    except Refused as refused:
        print(f"test-vm: {refused}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    print("\n== guests")
    for name, outcome in outcomes.items():
        print(f"{name:28} {outcome}")
    failed = [name for name, outcome in outcomes.items() if not outcome.startswith(("passed", "not run"))]
    not_run = [name for name, outcome in outcomes.items() if asked.suites and outcome.startswith("not run")]
    sys.exit(1 if failed or not_run else 0)


def arguments():
    """Read the command line, which the Makefile writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="*", help="names of suites; all of the kernel's without any")
    parser.add_argument("--kernel", default="", help="another user-mode kernel than Debian's")
    parser.add_argument("--modules", default=UML_MODULES, help="where its modules are, a directory for each version")
    parser.add_argument("--no-overlay", action="store_true", help="treat the kernel as one without overlay")
    parser.add_argument("--full", action="store_true", help="the suites that need qemu too")
    parser.add_argument("--jobs", type=int, default=2, help="guests side by side")
    parser.add_argument("--table", type=Path, default=Path(__file__).with_name("suites.toml"))
    return parser.parse_args()


def chosen(asked):
    """Return the suites by name, checked."""
    try:
        with open(asked.table, "rb") as file:
            table = msgspec.convert(tomllib.load(file), dict[str, Suite])
    except (OSError, ValueError) as error:
        raise Refused(f"{asked.table}: {error}") from None
    kernels = {"uml", "qemu"} if asked.full else {"uml"}
    if not asked.suites:
        return {name: suite for name, suite in table.items() if suite.kernel in kernels}
    found = {}
    for name in asked.suites:
        parts = {part: suite for part, suite in table.items() if part == name or part.startswith(f"{name}-")}
        if not parts:
            near = difflib.get_close_matches(name, table, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise Refused(f"no suite {name!r} in {asked.table}: {hint}there are {', '.join(sorted(table))}")
        found |= {name: parts[name]} if name in parts else parts
    return found


def user_mode_kernel(path):
    """Return the user-mode kernel to boot."""
    kernel = Path(path or UML)
    if not (kernel.is_file() and os.access(kernel, os.X_OK)):
        advice = "give VM_KERNEL the path of a kernel built with ARCH=um, or leave it out for Debian's"
        raise Refused(f"no executable user-mode kernel at {kernel}: {advice if path else 'install user-mode-linux'}")
    return str(kernel.resolve())


def processor():
    """Return the flags of this host's processor."""
    with open("/proc/cpuinfo") as file:
        return next((set(line.split()) for line in file if line.startswith("flags")), set())


def hold_state(run):
    """Build what a user-mode kernel needs on such a processor; `uml` loads it."""
    source = Path(__file__).with_name("xstate.c")
    try:
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", run / PRELOADED, source], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Refused(f"cannot build {source} ({error}): install gcc and libc6-dev") from None


@contextlib.contextmanager
def frozen_checkout():
    """Yield a directory of this run's own, with a copy of the checkout; remove those that killed runs left."""
    STATE.mkdir(parents=True, exist_ok=True)
    for old in STATE.glob("run-*"):
        with contextlib.suppress(BlockingIOError, FileNotFoundError), locked(old):
            shutil.rmtree(old)
    with contextlib.ExitStack() as held:
        try:
            run = Path(tempfile.mkdtemp(prefix="run-", dir=STATE))
            held.enter_context(locked(run))
            held.callback(shutil.rmtree, run)
            skip = shutil.ignore_patterns(".git", ".venv", ".hypothesis", ".*_cache", "site")
            shutil.copytree(CHECKOUT, run / "checkout", symlinks=True, ignore=skip)
            (run / "checkout" / ".venv").mkdir()
        except (OSError, shutil.Error) as error:
            first = error.args[0][0][2] if isinstance(error, shutil.Error) else error
            raise Refused(f"cannot copy the checkout to {STATE}: {first}") from None
        yield run


@contextlib.contextmanager
def locked(directory):
    """Hold the directory's lock, which the kernel drops with this process."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


async def guests(suites, kernel, run, asked):
    """Run every suite in a guest of its own, some side by side; return the outcomes by name."""
    free = asyncio.Semaphore(asked.jobs)

    async def one(name, suite):
        async with free:
            tools = debian.zfs() if suite.built else None
            command = qemu(suite) if suite.kernel == "qemu" else uml(suite, kernel, asked.modules, run)
            words = {
                "GUEST_CHECKOUT": CHECKOUT,
                "GUEST_SUITE": run / f"{name}.json",
                "GUEST_INIT": suite.init,
                "GUEST_OVERLAY": "no" if asked.no_overlay else "yes",
                "GUEST_TOOLS": tools or "",
            }
            if suite.built and not tools:
                outcome = f"not run: its kernel modules are not built: make {suite.built} builds them, in 10 minutes"
            else:
                started = time.monotonic()
                outcome = await guest(name, suite, command([f"{key}={value}" for key, value in words.items()]), run)
                outcome += f" ({time.monotonic() - started:.0f} s)"
        print(f"{name}: {outcome}")
        return name, outcome

    return dict(await asyncio.gather(*(one(name, suite) for name, suite in suites.items())))


async def guest(name, suite, command, run):
    """Boot a guest, show its output line by line, and return the outcome in words."""
    options = {key: value for key, value in os.environ.items() if key == "PYTEST_ADDOPTS"}
    suite = msgspec.structs.replace(suite, env=options | suite.env)
    (run / f"{name}.json").write_bytes(msgspec.json.encode(suite))
    console = run / f"{name}.console"
    with open(console, "wb") as log:
        process = await asyncio.create_subprocess_exec(
            *enclosed(run),
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            limit=1 << 24,
            env={"PATH": os.environ["PATH"]},
        )
    outcome = ""
    try:
        async with asyncio.timeout(suite.timeout):
            async for line in process.stdout:
                text = line.decode(errors="replace").rstrip()
                if text.startswith(RESULT):
                    outcome = text.removeprefix(RESULT).strip()
                elif text:
                    print(f"{name} | {text}")
            code = await process.wait()
            outcome = outcome or f"failed: the guest ended before its suite did (status {code})"
    except TimeoutError:
        outcome = f"failed: not finished after {suite.timeout:g} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if outcome.startswith(("failed: the guest", "failed: not finished")):
        last = console.read_text(errors="replace").splitlines()[-CONSOLE_LINES:]
        print(f"{name}: the console's last lines:", *last, sep="\n    ")
    return outcome


def enclosed(run):
    """Return the words before a guest's: in namespaces that end with this process, the frozen checkout in its place."""
    bind = f"mount --bind {CHECKOUT}/.venv {run}/checkout/.venv && mount --rbind {run}/checkout {CHECKOUT}"
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("sh", "-c", f'ulimit -c 0; {bind} && exec tini -s -- "$@" 3>&1 1>&2', "sh"),
    ]


def uml(suite, kernel, modules, run):
    """Return what makes the command of a user-mode kernel of the words for process 1."""
    preloaded = ["env", f"LD_PRELOAD={run / PRELOADED}"] if (run / PRELOADED).exists() else []
    return lambda words: [
        *(*preloaded, kernel, f"mem={suite.memory}M", "rootfstype=hostfs", "root=/dev/root", "ro", "quiet", "panic=-1"),
        f"uml_dir={run}/",
        *("con=null", "con0=null,fd:2", "con1=null,fd:3", f"init={CHECKOUT}/tests/vm/boot.sh"),
        *("GUEST_CONSOLE=tty1", f"GUEST_MODULES={modules}", *words),
    ]


def qemu(suite):
    """Return what makes the command of qemu, without KVM, of the words for process 1."""
    share = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
    options = ["console=ttyS0", "quiet", "panic=-1", "mitigations=off", "nokaslr", f"GUEST_MODULES={QEMU}/lib/modules"]
    return lambda words: [
        *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-no-reboot"),
        *("-smp", str(suite.cpus), "-m", str(suite.memory), "-nodefaults", "-no-user-config", "-display", "none"),
        *("-kernel", f"{QEMU}/kernel", "-initrd", f"{QEMU}/initrd", "-serial", "file:/dev/stderr"),
        *("-virtfs", share, "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        *("-chardev", "file,id=out,path=/dev/fd/3", "-device", "virtconsole,chardev=out"),
        *("-append", " ".join([*options, "GUEST_CONSOLE=hvc0", *words])),
    ]


if __name__ == "__main__":
    main()
