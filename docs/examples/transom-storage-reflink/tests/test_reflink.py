"""What is this driver's own: it shares blocks, and refuses to work where it cannot."""

import os
import subprocess

from transom_storage_reflink import Reflink


def driver(place):
    return Reflink(options=Reflink.Options(), root=place / "root", run=place / "run")


def used(place):
    os.sync()
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def test_a_copy_takes_no_space_for_data(tmp_path):
    layers = driver(tmp_path)
    layers.prepare(id="base", parents=(), size=None, idmap=None)
    (tmp_path / "root/base/big").write_bytes(os.urandom(32 << 20))
    before = used(tmp_path)
    layers.prepare(id="child", parents=("base",), size=None, idmap=None)
    assert used(tmp_path) - before < 4 << 20
    assert (tmp_path / "root/child/big").stat().st_size == 32 << 20


def test_on_a_file_system_without_reflinks_the_probe_says_so(tmp_path):
    place = tmp_path / "plain"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    try:
        assert "cannot share blocks (" in driver(place).probe().reason
    finally:
        subprocess.run(["umount", place], check=True)
