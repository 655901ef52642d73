"""Kernels of Debian's for guests, unpacked beside the checkout and never installed, and the ZFS modules for them.

``make zfs-modules`` calls this as a program. The modules take minutes to build and are kept for every checkout, one
directory for each version of the kernel.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

STATE = Path(__file__).resolve().parent.parent.parent / ".venv" / "vm"
QEMU = STATE / "qemu"
QEMU_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "transom-vm"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
EARLY = """#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t devtmpfs devices /dev
for module in {modules}; do $B insmod /modules/$module; done
$B mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host || $B poweroff -f
exec $B switch_root /host "$GUEST_CHECKOUT/tests/vm/boot.sh"
"""


class Refused(Exception):
    """The request cannot be met; the text is for the user."""


def prepare_qemu():
    """Unpack Debian's kernel below .venv, once, and make the initrd that leads from it to the host's files."""
    if not shutil.which("qemu-system-x86_64"):
        raise Refused("no qemu-system-x86_64 on this host: make test-vm-full installs it")
    if not (QEMU / "initrd").exists():
        unpack_kernel()


def unpack_kernel():
    """Do what `prepare_qemu` does once; killed in between, it is done again."""
    shutil.rmtree(QEMU, ignore_errors=True)
    QEMU.mkdir(parents=True)
    print("test-vm: unpacking Debian's kernel for qemu, once")
    package = next(name for name in depends("linux-image-amd64") if name.startswith("linux-image-"))
    checked("apt-get", "download", package)
    checked("sh", "-c", "dpkg -x linux-image-*.deb . && rm linux-image-*.deb && cp boot/vmlinuz-* kernel")
    version = package.removeprefix("linux-image-")
    checked("depmod", "-b", str(QEMU), version)
    initrd = QEMU / "early"
    (initrd / "modules").mkdir(parents=True)
    for directory in ("bin", "proc", "dev", "host"):
        (initrd / directory).mkdir()
    shutil.copy("/bin/busybox", initrd / "bin")
    load = checked("modprobe", "-d", str(QEMU), "-S", version, "-a", "-D", *QEMU_MODULES).splitlines()
    files = [line.split()[1] for line in load if line.startswith("insmod ")]
    for file in dict.fromkeys(files):
        shutil.copy(file, initrd / "modules")
    names = " ".join(dict.fromkeys(Path(file).name for file in files))
    (initrd / "init").write_text(EARLY.format(modules=names))
    (initrd / "init").chmod(0o755)
    checked("sh", "-c", "cd early && find . | cpio --quiet -o -H newc > ../initrd.new && mv ../initrd.new ../initrd")


def qemu_version():
    """Name the unpacked kernel's version, the only one below its modules."""
    return next((QEMU / "lib" / "modules").iterdir()).name


def has_zfs():
    """Say whether ZFS was ever built here: without it, its suites need no kernel."""
    return any(CACHE.glob("zfs-*"))


def zfs():
    """Return the directory with zfs(8) and what belongs to it, its modules beside the kernel's; None when not built."""
    if not has_zfs():
        return None
    built = CACHE / f"zfs-{qemu_version()}"
    updates = QEMU / "lib" / "modules" / qemu_version() / "updates"
    if not built.is_dir():
        return None
    if not (updates / "ready").exists():
        shutil.copytree(built / "modules", updates, dirs_exist_ok=True)
        checked("depmod", "-b", str(QEMU), qemu_version())
        (updates / "ready").touch()
    return built / "tools"


def build_zfs():
    """Build the modules of Debian's zfs-dkms for the unpacked kernel, and fetch zfs(8): once for each version."""
    prepare_qemu()
    version = qemu_version()
    place = CACHE / f"zfs-{version}"
    if place.is_dir():
        print(f"zfs-modules: they are there: {place}")
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    print(f"zfs-modules: building for Linux {version}, some 10 minutes")
    with tempfile.TemporaryDirectory(prefix="building-", dir=CACHE) as work:
        work = Path(work)
        apt = contrib(work)
        headers = f"linux-headers-{version}"
        below = [name for name in depends(headers) if re.fullmatch(r"linux-headers-.*-common|linux-kbuild-.*", name)]
        unpack(work / "build", apt, [headers, *below, "zfs-dkms"])
        sources = work / "build" / "usr" / "src"
        common = next(sources.glob("linux-headers-*-common"))
        makefile = sources / headers / "Makefile"
        makefile.write_text(makefile.read_text().replace("include /usr/src/", f"include {sources}/"))
        source = next(sources.glob("zfs-*"))
        configure = ["--with-config=kernel", f"--with-linux={common}", f"--with-linux-obj={sources / headers}"]
        checked("./configure", "--disable-dependency-tracking", *configure, cwd=source)
        checked("make", f"-j{os.cpu_count()}", cwd=source)
        (work / "done" / "modules").mkdir(parents=True)
        for module in (source / "module").rglob("*.ko"):
            shutil.copy(module, work / "done" / "modules")
        checked("sh", "-c", "strip -d modules/*.ko", cwd=work / "done")
        libraries = [name for name in depends("zfsutils-linux", apt) if re.fullmatch(r"lib.*\dlinux", name)]
        unpack(work / "done" / "tools", apt, ["zfsutils-linux", *libraries])
        (work / "done").rename(place)
    print(f"zfs-modules: {place}")


def contrib(work):
    """Return options with which apt knows contrib too, where ZFS is; the host's own sources stay as they are."""
    targets = checked("apt-get", "indextargets", "--format", "$(ORIGIN) $(COMPONENT) $(REPO_URI) $(CODENAME)")
    debian = {tuple(line.split()[2:4]) for line in targets.splitlines() if line.startswith("Debian main ")}
    if not debian:
        raise Refused("apt has no source of Debian's main: without one there is nothing to get ZFS from")
    (work / "state" / "lists" / "partial").mkdir(parents=True)
    (work / "archives" / "partial").mkdir(parents=True)
    (work / "status").touch()
    lines = [f"deb [signed-by={KEYRING}] {uri} {suite} main contrib\n" for uri, suite in sorted(debian)]
    (work / "sources.list").write_text("".join(lines))
    settings = {
        "Dir::State": work / "state",
        "Dir::State::status": work / "status",
        "Dir::Cache": work,
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "APT::Sandbox::User": "root",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    checked("apt-get", *options, "update")
    return options


def depends(package, apt=()):
    """Name what a package depends on."""
    lines = checked("apt-cache", *apt, "depends", package).splitlines()
    return [line.split()[1] for line in lines if line.strip().startswith("Depends: ")]


def unpack(place, apt, packages):
    """Unpack packages at `place`, with /lib and /sbin where today's hosts have them: below /usr."""
    place.mkdir(parents=True)
    checked("apt-get", *apt, "download", *packages, cwd=place)
    merge = "for d in bin lib sbin; do [ ! -d $d ] || { mkdir -p usr/$d && cp -a $d/. usr/$d && rm -r $d; }; done"
    checked("sh", "-ec", f"for deb in *.deb; do dpkg -x $deb .; done; rm *.deb; {merge}", cwd=place)


def checked(*words, cwd=QEMU):
    """Run a program below the kernel's directory, or in another, and return what it prints."""
    try:
        return subprocess.run(words, cwd=cwd, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        why = ((getattr(error, "stderr", "") or "").strip() or str(error)).splitlines()[-1]
        raise Refused(f"cannot prepare the kernel for qemu: {words[0]}: {why}") from None


if __name__ == "__main__":
    try:
        build_zfs()
    except (Refused, OSError) as refused:
        print(f"zfs-modules: {refused}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
