"""``transom volume``: make, list and remove volumes."""

import os

import pytest


def test_create_prints_the_name_and_repeats_quietly(empty_transom):
    assert empty_transom("volume", "create", "--label", "role=db", "data") == "data"
    assert empty_transom("volume", "create", "data") == "data"
    assert len(empty_transom("volume", "create")) == 64
    record = empty_transom.inspect("data")
    assert (record["Name"], record["Driver"], record["Labels"]) == ("data", "local", {"role": "db"})
    assert os.path.isdir(record["Mountpoint"])
    assert empty_transom("volume", "inspect", "-f", "{{.Scope}}", "data") == "local"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-d", "nfs", "a"], "no volume driver 'nfs': there is local; other file systems are bound with -v HOST:PATH"),
        (
            ["-o", "type=tmpfs", "a"],
            "--opt 'type=tmpfs': the volume driver local takes no options; mount it and bind it with -v",
        ),
        (["a b"], "invalid volume name 'a b': only a-z A-Z 0-9 _ . - are allowed, the first not a sign"),
    ],
)
def test_create_refuses_what_it_cannot_give(empty_transom, words, text):
    assert empty_transom.fails("volume", "create", *words, code=125) == text
    assert empty_transom("volume", "ls", "-q") == ""


def test_ls_prints_docker_s_table_and_filters(transom):
    transom("volume", "create", "--label", "role=db", "data")
    transom("volume", "create", "cache")
    transom("create", "--network", "none", "-v", "cache:/cache", "busybox")
    lines = transom("volume", "ls").splitlines()
    assert [line.split() for line in lines] == [["DRIVER", "VOLUME", "NAME"], ["local", "cache"], ["local", "data"]]
    assert transom("volume", "ls", "-q", "-f", "label=role=db") == "data"
    assert transom("volume", "ls", "-q", "-f", "dangling=true") == "data"
    assert transom("volume", "ls", "-q", "-f", "dangling=false") == "cache"
    assert transom("volume", "ls", "-q", "-f", "name=^c") == "cache"
    assert transom("volume", "ls", "-f", "driver=nfs", "-q") == ""
    assert transom("volume", "ls", "-f", "name=data", "--format", '{{.Label "role"}} {{.Labels}}') == "db role=db"


def test_ls_refuses_filters_that_make_no_sense(empty_transom):
    assert empty_transom.fails("volume", "ls", "-f", "dangling=x") == (
        "--filter dangling='x': invalid filter; there are true, false"
    )
    empty_transom("volume", "create", "data")
    assert empty_transom.fails("volume", "ls", "-f", "name=(") == (
        "--filter name='(': invalid regular expression: missing ), unterminated subpattern at position 0"
    )


def test_rm_goes_on_over_errors_and_refuses_what_is_in_use(transom):
    transom("create", "--name", "web", "--network", "none", "-v", "used:/data", "busybox")
    transom("volume", "create", "idle")
    done = transom.call("volume", "rm", "nosuch", "used", "idle")
    assert (done.code, done.out) == (1, "idle\n")
    assert done.err.splitlines() == [
        "transom: no such volume: nosuch; `transom volume ls` lists those here",
        "transom: volume used is in use by web: remove the container first",
    ]
    assert transom("volume", "rm", "-f", "nosuch") == "nosuch"
    assert os.listdir(transom.data / "transom/volumes") == ["used"]


def test_prune_takes_anonymous_volumes_and_all_takes_named_ones(transom):
    transom("create", "--network", "none", "-v", "used:/data", "busybox")
    transom("volume", "create", "--label", "keep", "named")
    anonymous = transom("volume", "create")
    (transom.data / "transom/volumes" / anonymous / "_data/file").write_bytes(b"x" * 1500)
    asked = transom("volume", "prune", input=b"no\n")
    assert asked == (
        "WARNING! This will remove anonymous local volumes not used by at least one container.\n"
        "Are you sure you want to continue? [y/N] "
    )
    assert transom("volume", "prune", "-f") == f"Deleted Volumes:\n{anonymous}\n\nTotal reclaimed space: 1.5kB"
    assert transom("volume", "prune", "-af", "--filter", "label!=keep") == "Total reclaimed space: 0B"
    asked = transom("volume", "prune", "-a", input=b"y\n")
    assert asked.startswith("WARNING! This will remove all local volumes not used by at least one container.")
    assert transom("volume", "ls", "-q") == "used"
