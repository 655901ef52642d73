"""What ``make run`` shows: one real container from its image to its removal, and nothing left behind.

Everything happens with the command ``transom`` and below a directory of its own; the host's own containers,
networks and images are not touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

TRANSOM = Path(sys.executable).with_name("transom")
IMAGE = "busybox"


def main() -> int:
    """Run the demonstration; return 0 when every step did what it should and nothing is left."""
    before = census()
    with tempfile.TemporaryDirectory(prefix="transom-demo-") as place:
        demo = Demo(Path(place))
        try:
            demo.show()
        finally:
            demo.tidy()
    left = sorted(census() - before)
    if left:
        print("\nLeft behind: " + ", ".join(left))
        return 1
    print("\nNothing was left behind: no process, mount, interface, firewall rule, control group or file.")
    return 0


class Demo:
    """The steps, each a command line that is printed before it runs."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.environment = {**os.environ, "TRANSOM_DATA_ROOT": str(place), "TRANSOM_EXEC_ROOT": str(place / "run")}
        self.environment.pop("TRANSOM_CONFIG", None)

    def show(self) -> None:
        """The main job, from configuration to removal."""
        say("The configuration (what is not at its default), the drivers, and those chosen by probing this host")
        self.transom(
            "config", "show", "--format", '{{if ne .Origin "default"}}{{.Key}}={{.Value}} ({{.Origin}}){{end}}'
        )
        self.transom("drivers", "ls")
        self.transom("info", "--format", "storage {{.Driver}}, logs {{.LoggingDriver}}, limits {{.LimitsDriver}}")
        say("An image")
        self.provide_image()
        self.transom("images")
        say("A container: overlay2, a bridge, json-file, 64 MB of memory and half a CPU, port 80 published")
        self.transom("network", "create", "demo")
        script = 'echo "hello from $(hostname)" >/tmp/index.html; echo serving; exec httpd -f -p 80 -h /tmp'
        self.transom(
            "run", "-d", "--name", "demo", "--network", "demo", "-p", "127.0.0.1::80", "-m", "64m", "--cpus", "0.5",
            IMAGE, "sh", "-c", script,
        )  # fmt: skip
        self.transom("ps")
        address = self.output("port", "demo", "80").split()[0]
        say(f"Its published port, asked over loopback: http://{address}/")
        print(fetch(f"http://{address}/index.html"), end="")
        say("What it may use, as the kernel has it, and its log")
        self.transom(
            "inspect", "-f",
            "memory {{.HostConfig.Memory}} bytes, {{.HostConfig.NanoCpus}} nano-CPUs, on {{.Driver}}, "
            "log by {{.HostConfig.LogConfig.Type}}", "demo",
        )  # fmt: skip
        self.transom("stats", "--no-stream", "demo")
        self.transom("logs", "demo")
        say("A clean removal")
        self.transom("rm", "-f", "demo")
        self.transom("network", "rm", "demo")
        self.transom("doctor")

    def provide_image(self) -> None:
        """Pull the image, or make one from the host's static busybox where no registry can be reached."""
        words = [TRANSOM, "pull", "-q", IMAGE]
        pulled = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)
        if pulled.returncode == 0:
            print(pulled.stdout, end="")
            return
        print("(no registry can be reached: the image is made from this host's static busybox)")
        root = self.place / "busybox"
        make_busybox_root(root)
        self.transom("import", "-c", 'CMD ["sh"]', str(root), IMAGE)

    def transom(self, *words: str) -> None:
        """Run a command, showing it and what it prints."""
        print("$ transom " + " ".join(f"'{w}'" if " " in w or "{" in w else w for w in words), flush=True)
        print("\n".join(filter(None, self.output(*words).splitlines())), flush=True)

    def output(self, *words: str) -> str:
        """Run a command and return what it prints; a failure ends the demonstration."""
        done = subprocess.run([TRANSOM, *words], env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"transom {' '.join(words)} failed with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def tidy(self) -> None:
        """Remove what an interrupted demonstration left."""
        for words in (["rm", "-f", "demo"], ["network", "rm", "demo"]):
            subprocess.run([TRANSOM, *words], env=self.environment, capture_output=True, check=False)


def make_busybox_root(root: Path) -> None:
    """Lay out a root file system around the host's static busybox."""
    for name in ("bin", "etc", "root", "tmp", "var"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    applets = subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    (root / "etc" / "group").write_text("root:x:0:\nnogroup:x:65534:\n")


def fetch(url: str) -> str:
    """Return what is at `url`, waiting a moment for the server."""
    for _ in range(50):
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return str(response.read().decode())
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{url} does not answer")


def census() -> set[str]:
    """Describe what a container engine could leave on this host."""
    seen = {f"interface {name}" for name in os.listdir("/sys/class/net")}
    seen |= {f"mount {line.split()[1]}" for line in Path("/proc/mounts").read_text().splitlines()}
    for group in Path("/sys/fs/cgroup").glob("*/transom/*"):
        if group.is_dir():
            seen.add(f"control group {group}")
    rules = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    seen |= {f"firewall {line}" for line in rules.stdout.splitlines()}
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().startswith("transom") and "Z" not in (comm.parent / "stat").read_text().split()[2]:
                seen.add(f"process {comm.parent.name}")
        except OSError:
            continue  # it has just ended
    return seen | {f"directory {path}" for path in Path(tempfile.gettempdir()).glob("transom-*")}


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
