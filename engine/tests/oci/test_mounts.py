import pytest

from transom.errors import ConfigError
from transom.services import mounts as services
from transom_engine.model import HostConfig, MountPoint
from transom_engine.oci import mounts


def build(points=(), files=None, shm=None, init=None, **host_config):
    return mounts.build(host_config=HostConfig(**host_config), points=points, files=files or {}, shm=shm, init=init)


def by_destination(*args, **kwargs):
    return {mount["destination"]: mount for mount in build(*args, **kwargs)[0]}


def bind(source, destination, **more):
    return MountPoint(type="bind", source=str(source), destination=destination, **more)


def test_a_container_has_dockers_mounts_with_dockers_options():
    found = {m["destination"]: (m["type"], m["source"], m["options"]) for m in build()[0]}
    assert found == {
        "/proc": ("proc", "proc", ["nosuid", "noexec", "nodev"]),
        "/dev": ("tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        "/dev/pts": (
            "devpts",
            "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        "/sys": ("sysfs", "sysfs", ["nosuid", "noexec", "nodev", "ro"]),
        "/sys/fs/cgroup": ("cgroup", "cgroup", ["ro", "nosuid", "noexec", "nodev"]),
        "/dev/mqueue": ("mqueue", "mqueue", ["nosuid", "noexec", "nodev"]),
        "/dev/shm": ("tmpfs", "shm", ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]),
    }


def test_privileged_may_write_to_sys_and_cgroups():
    found = by_destination(privileged=True)
    assert "ro" not in found["/sys"]["options"]
    assert "ro" not in found["/sys/fs/cgroup"]["options"]


def test_the_size_of_shared_memory_is_the_users():
    assert "size=1000" in by_destination(shm_size=1000)["/dev/shm"]["options"]


def test_shared_memory_of_others_is_bound_and_none_is_none():
    assert by_destination(shm="/dev/shm", ipc_mode="host")["/dev/shm"]["type"] == "bind"
    assert "/dev/shm" not in by_destination(ipc_mode="none")


def test_binds_are_recursive_and_read_only_all_the_way_down():
    found = by_destination([bind("/a", "/x"), bind("/b", "/y", rw=False, propagation="rprivate")])
    assert found["/x"]["options"] == ["rbind"]
    assert found["/y"]["options"] == ["rbind", "ro", "rro", "rprivate"]


def test_a_mount_of_the_users_replaces_the_default_and_a_file_of_the_engines():
    found = by_destination([bind("/a", "/dev"), bind("/b", "/etc/hosts")], files={"/etc/hosts": "/h", "/etc/x": "/x"})
    assert found["/dev"]["source"] == "/a"
    assert not [path for path in found if path.startswith("/dev/")]
    assert found["/etc/hosts"]["source"] == "/b"
    assert found["/etc/x"]["options"] == ["rbind", "rprivate"]


def test_the_engines_files_are_read_only_where_the_root_is():
    found = by_destination(files={"/etc/hosts": "/h"}, readonly_rootfs=True)
    assert found["/etc/hosts"]["options"] == ["rbind", "ro", "rprivate"]


def test_a_mount_comes_before_the_mounts_below_it():
    order = [m["destination"] for m in build([bind("/a", "/x/y/z"), bind("/b", "/x"), bind("/c", "/x/y/")])[0]]
    assert order[-3:] == ["/x", "/x/y", "/x/y/z"]


def test_the_users_tmpfs_options_override_dockers_word_by_word():
    found = by_destination(tmpfs={"/run": "", "/x": "exec,size=64m,mode=700,ro,size=1m"})
    assert found["/run"]["options"] == ["noexec", "nosuid", "nodev", "rprivate"]
    assert found["/x"]["options"] == ["exec", "nosuid", "nodev", "rprivate", "size=1m", "mode=700", "ro"]


def test_an_init_is_bound_read_only():
    found = by_destination(init="/usr/bin/tini-static")
    assert found["/sbin/docker-init"]["options"] == ["bind", "ro"]


@pytest.mark.parametrize(
    ("points", "config", "text"),
    [
        ([bind("/a", "x")], {}, "invalid mount path: 'x' mount path must be absolute"),
        (
            [bind("/a", "/x/..")],
            {},
            "invalid mount path: destination can't be '/'; the image is there",
        ),
        ([bind("/a", "/x"), bind("/b", "/x/")], {}, "duplicate mount point: /x; mount one thing there"),
        ([bind("/a", "/x")], {"tmpfs": {"/x": ""}}, "duplicate mount point: /x; mount one thing there"),
        (
            [bind("/a", "/x", propagation="shard")],
            {},
            'invalid propagation "shard" for /x; known: private, rprivate, rshared, rslave, shared, slave',
        ),
    ],
)
def test_a_mount_that_does_not_fit_is_refused(points, config, text):
    with pytest.raises(ConfigError) as caught:
        build(points, **config)
    assert str(caught.value) == text


def test_an_unknown_tmpfs_option_is_refused_with_all_known():
    with pytest.raises(ConfigError) as caught:
        build(tmpfs={"/x": "sized=1"})
    assert str(caught.value).startswith('invalid tmpfs option "sized=1" for /x; known: async, atime, dev, ')


def build_over_tmpfs(directory, propagation, flag):
    """Build with a bind of a file system mounted in a namespace of its own."""

    def inside():
        services.mount("test", str(directory), "tmpfs")
        services.mount("", str(directory), flags=flag)
        return build([bind(directory, "/x", propagation=propagation)])

    return services.privately(inside)


@pytest.mark.parametrize(("propagation", "words"), [("rshared", "a shared"), ("rslave", "a shared or slave")])
def test_a_bind_cannot_share_mounts_that_its_source_keeps_private(tmp_path, propagation, words):
    mine = tmp_path / "a b"
    mine.mkdir()
    with pytest.raises(ConfigError) as caught:
        build_over_tmpfs(mine, propagation, services.MS_PRIVATE)
    assert str(caught.value) == f"path {mine} is mounted on {mine} but it is not {words} mount"


@pytest.mark.parametrize(("propagation", "root"), [("rshared", "shared"), ("shared", "shared"), ("rslave", "rslave")])
def test_a_bind_of_a_shared_mount_asks_for_a_root_that_shares(tmp_path, propagation, root):
    assert build_over_tmpfs(tmp_path, propagation, services.MS_SHARED)[1] == root
