"""A driver author's first hour: what `transom new` writes is green, and the larger examples work from their wheels."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from distributions import ROOT, Environment, build

from transom_conformance.skeleton import files

KINDS = ("storage", "network", "logging", "limits", "auth")
EXAMPLES = ROOT / "docs" / "examples"
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/*/pyproject.toml"))
USED = [ROOT / "core", ROOT / "conformance", ROOT / "engine", *PLUGINS]

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="not root: suites and containers need mounts and namespaces"),
]


def write(kind, name, place):
    """Have the command write a distribution."""
    done = subprocess.run(
        [sys.executable, "-m", "transom_engine", "new", kind, name, "--output", place],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A fresh environment with everything of ours, five new distributions and the examples, all from wheels."""
    place = tmp_path_factory.mktemp("author")
    sources = [write(kind, f"first-{kind}", place / f"transom-{kind}-first-{kind}") for kind in KINDS]
    for example in sorted(EXAMPLES.iterdir()):
        sources.append(shutil.copytree(example, place / example.name))
    environment = Environment(place / "environment")
    environment.add(*(build(source, place / "dist") for source in [*USED, *sources]))
    environment.sources = place
    yield environment
    for top in ("pids/transom-first-limits", "transom-first-limits"):
        if os.path.isdir(f"/sys/fs/cgroup/{top}"):
            os.rmdir(f"/sys/fs/cgroup/{top}")  # the parent, which stays; it holds nothing


def prove(environment, folder, *words):
    """Run a distribution's own tests, a copy of them, in the environment."""
    done = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", *words, cwd=folder)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_passes_its_suite_as_it_is(environment, kind):
    # Of storage, whose suite is the longest, the part that tells whether the skeleton is right.
    select = ("-k", "life or parent or removing or usage or killed_at_any_step or names") if kind == "storage" else ()
    said = prove(environment, environment.sources / f"transom-{kind}-first-{kind}", *select)
    assert int(said.rpartition(" passed")[0].split()[-1]) >= 6


def test_a_container_runs_with_what_is_written(environment, transom):
    transom.program = [environment.python, "-m", "transom_engine"]
    chosen = ("--storage-driver", "first-storage", "--limits-driver", "first-limits")
    words = ("--name", "box", "--network", "first-network", "--log-driver", "first-logging", "busybox")
    assert transom(*chosen, "run", *words, "echo", "it works") == "it works"
    shown = transom.inspect("box")
    assert shown["Driver"] == "first-storage"
    assert shown["HostConfig"]["LogConfig"]["Type"] == "first-logging"
    transom("rm", "box")
    listed = transom("drivers", "ls")
    assert all(f"first-{kind}" in listed for kind in KINDS)


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.iterdir()))
def test_an_example_passes_its_own_tests(environment, example):
    thinned = ("-k", "not killed and not power_loss and not system_call") if "storage" in example else ()
    prove(environment, environment.sources / example, *thinned)


def test_a_container_writes_to_sqlite_and_is_read_back(environment, transom):
    transom.program = [environment.python, "-m", "transom_engine"]
    transom("run", "--name", "box", "--network", "none", "--log-driver", "sqlite", "busybox", "seq", "5")
    assert transom("logs", "--tail", "2", "box").split() == ["4", "5"]
    assert transom.inspect("box")["HostConfig"]["LogConfig"]["Type"] == "sqlite"


def test_a_container_runs_on_layers_that_share_blocks(environment, transom, tmp_path):
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(1 << 30)
    subprocess.run(["mkfs.btrfs", "--quiet", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
    try:
        (mounted / "storage").mkdir()
        (transom.data / "transom" / "storage").symlink_to(mounted / "storage")
        transom.program = [environment.python, "-m", "transom_engine"]
        assert transom("--storage-driver", "reflink", "run", "--rm", "--network", "none", "busybox", "echo", "x") == "x"
        transom("--storage-driver", "reflink", "image", "rm", "-f", "busybox")
    finally:
        subprocess.run(["umount", "--lazy", mounted], check=True)


def test_the_wrapper_notes_what_a_run_calls(environment, transom, tmp_path):
    transom.program = [environment.python, "-m", "transom_engine"]
    config = tmp_path / "daemon.json"
    config.write_text('{"transom": {"wrappers": ["timings"]}}')
    transom.env |= {"TRANSOM_CONFIG": str(config), "TRANSOM_TIMINGS": str(tmp_path / "timings")}
    transom("run", "--rm", "--network", "none", "busybox", "true")
    lines = [json.loads(line) for line in (tmp_path / "timings").read_text().splitlines()]
    called = {f"{line['kind']} {line['operation']}" for line in lines}
    assert {"storage prepare", "storage mounts", "limits create", "network attach", "logging open"} <= called


# What `transom new` says


def new(*words, cwd):
    return subprocess.run(
        [sys.executable, "-m", "transom_engine", "new", *words], cwd=cwd, capture_output=True, text=True, check=False
    )


REFUSED = """
storge mine
    no such kind of driver: 'storge' (did you mean storage?); the kinds are auth, limits, logging, network, storage
storage My_Disk
    'My_Disk' cannot be the name of a driver: write at most 40 small letters and digits, in words joined by hyphens,
    beginning with a letter
storage vfs
    transom-storage-vfs has a storage driver 'vfs' already; choose another name
storage mine -o full
    full is there already; name another directory with --output
storage mine -o /proc/mine
    new: write /proc/mine failed: No such file or directory
"""


@pytest.mark.parametrize(
    ("words", "text"),
    re.findall(r"^(\S.*)\n((?:    .*\n)+)", REFUSED, re.MULTILINE),
    ids=lambda text: text.strip()[:30],
)
def test_what_cannot_be_written_is_refused_in_one_line(tmp_path, words, text):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    done = new(*words.split(), cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (125, f"transom: {' '.join(text.split())}\n", "")
    assert [*tmp_path.rglob("*")] == [tmp_path / "full", tmp_path / "full" / "mine.txt"]


def test_what_was_written_is_listed_and_what_to_do_next_is_said(tmp_path):
    done = new("logging", "my-log", cwd=tmp_path)
    listed, _, next = done.stdout.partition("\n\n")
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == {*listed.split("\n")}
    assert "pip install -e 'transom-logging-my-log[test]'" in next


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_of_the_skeletons_own_makes_another_class(kind):
    source = files(kind, kind)[f"src/transom_{kind}_{kind}/__init__.py"]
    compile(source, kind, "exec")
    assert f"class {kind.title()}Driver(" in source or f"class {kind.title()}(" in source
