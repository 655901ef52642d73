"""The command ``transom`` with roots and a network namespace of its own for each test, and an image of busybox."""

import ctypes
import glob
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from transom.services.netns import CLONE_NEWNET, create, inside, loopback_up

COMMAND = str(Path(sys.executable).with_name("transom"))
_libc = ctypes.CDLL(None, use_errno=True)


class Result(msgspec.Struct):
    """How a command ended; its output as text, invalid UTF-8 as surrogates."""

    code: int
    out: str
    err: str


class Transom:
    """Runs the command with a data root and an exec root of its own, inside its own network namespace."""

    def __init__(self, data: Path, run: Path):
        self.data, self.run, self.netns, self.program = data, run, create(), [COMMAND]
        inside(self.netns, loopback_up)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("TRANSOM_", "DOCKER_"))},
            "TRANSOM_DATA_ROOT": str(data),
            "TRANSOM_EXEC_ROOT": str(run),
            "COLUMNS": "200",
            "TZ": "UTC",
        }

    def enter(self):
        """Join the network namespace: for ``preexec_fn``."""
        if _libc.setns(self.netns, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")

    def popen(self, *words, **options):
        """Start the command; streams are pipes of bytes unless said otherwise."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(
            [*self.program, *map(str, words)], env=self.env, preexec_fn=self.enter, **{**pipes, **options}
        )

    def call(self, *words, input=b"", timeout=60, **options):
        """Run the command to its end and return how it went."""
        process = self.popen(*words, **options)
        try:
            out, err = process.communicate(input, timeout=timeout)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        text = [(data or b"").decode("utf-8", "surrogateescape") for data in (out, err)]
        return Result(process.returncode, *text)

    def __call__(self, *words, **options):
        """Run a command that must succeed; return its standard output without the last newline."""
        done = self.call(*words, **options)
        assert done.code == 0, f"transom {' '.join(map(str, words))} ended with {done.code}: {done.err}{done.out}"
        return done.out.removesuffix("\n")

    def fails(self, *words, code=None, **options):
        """Run a command that must fail with `code`, any but 0 by default; return what it complained, one line."""
        done = self.call(*words, **options)
        assert done.code != 0, f"transom {' '.join(map(str, words))} succeeded: {done.out}"
        assert code in (None, done.code), f"exit code {done.code}: {done.err}"
        assert done.err.count("\n") == 1, done.err
        return done.err.removesuffix("\n").removeprefix("transom: ")

    def detached(self, *words, image="busybox", command=("sleep", "1000"), network="none"):
        """Start a container in the background and return its id; `words` are flags of ``run``."""
        return self("run", "-d", "--network", network, *words, image, *command)

    def inspect(self, name, *words):
        """Return what ``inspect`` says of one object."""
        return msgspec.json.decode(self("inspect", *words, name))[0]

    def wait_until(self, true, *, seconds=60.0):
        """Wait until a condition holds."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "it did not come true in time"
            time.sleep(0.02)

    def engine(self):
        """Return an engine over the same roots, for what no command tells; the caller closes it."""
        from transom.config import load
        from transom_engine.engine import Engine

        return Engine(load(path=None, environ=self.env, overrides={}))

    def close(self):
        """Remove every container, and check that nothing is left of any."""
        engine = self.engine()
        try:
            ids = [container.id for container in engine.state.containers()]
            for id in ids:
                inside(self.netns, engine.containers.remove, id, force=True, volumes=True)
        finally:
            engine.close()
            os.close(self.netns)
        left = glob.glob(f"{self.run}/transom/containers/*") + glob.glob(f"{self.data}/transom/containers/*")
        left += [path for id in ids for path in glob.glob(f"/sys/fs/cgroup/*/transom/{id}")]
        with open("/proc/self/mountinfo") as mounts:
            left += [line for line in mounts if str(self.data) in line or str(self.run) in line]
        assert left == []


@pytest.fixture(scope="session")
def busybox_tree(tmp_path_factory):
    """A directory with a root file system of busybox, every applet a link in /bin."""
    root = tmp_path_factory.mktemp("busybox")
    root.chmod(0o755)
    for directory in ("bin", "etc", "root", "tmp", "home", "usr/bin"):
        (root / directory).mkdir(parents=True)
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox on this host: install Debian's package busybox-static")
    shutil.copy(busybox, root / "bin/busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in {*applets} - {"busybox"}:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "tmp").chmod(0o1777)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/home:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    return root


@pytest.fixture(scope="session")
def _images(tmp_path_factory, busybox_tree):
    """A data root that holds the image ``busybox`` and nothing else, and an exec root that knows this host."""
    from transom.config import load
    from transom_engine.engine import Engine
    from transom_engine.images.importer import import_tar

    roots = {"data-root": str(tmp_path_factory.mktemp("images")), "exec-root": str(tmp_path_factory.mktemp("run"))}
    engine = Engine(load(path=None, environ={}, overrides=roots))
    import_tar(
        str(busybox_tree), content=engine.content, store=engine.images, reference="busybox:latest",
        changes=['CMD ["sh"]', "ENV PATH=/bin"],
    )  # fmt: skip
    assert engine.runtime
    for kind in ("storage", "limits", "network", "logging"):
        engine.default_driver(kind)
    engine.close()
    return engine.state_dir, engine.run_dir


@pytest.fixture
def empty_transom(tmp_path):
    """The command over empty roots: no image, no container."""
    transom = Transom(tmp_path / "data", tmp_path / "run")
    yield transom
    transom.close()


@pytest.fixture
def transom(empty_transom, _images):
    """The command over roots of its own that hold the image ``busybox``."""
    data, run = _images
    for part in ("content", "images"):
        shutil.copytree(data / part, empty_transom.data / "transom" / part)
    shutil.copytree(run, empty_transom.run / "transom", symlinks=True)
    return empty_transom
