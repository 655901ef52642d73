"""Sizes by project quota, on an ext4 that has them: where the kernel knows none, in a guest (make test-vm)."""

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

from transom.contract.storage import State
from transom.services.mounts import mount_all, privately
from transom_conformance.disks import disk, lacking
from transom_conformance.storage.limits import Limits
from transom_storage_overlay2 import Overlay2, Overlay2Options, quota

MEBIBYTE = 1 << 20


@cache
def ground():
    """Return the root of an ext4 with project quotas, or say why there is none."""
    if reason := lacking("ext4"):
        return None, reason
    try:
        made = ("-O", "quota,project", "-E", "quotatype=prjquota")
        return disk("ext4", mkfs=made, options="loop,prjquota"), ""
    except subprocess.CalledProcessError:
        return None, "needs a kernel with project quotas (CONFIG_QFMT_V2)"


pytestmark = pytest.mark.skipif(not ground()[0], reason=ground()[1])


class TestOverlay2WithProjectQuotas(Limits):
    driver = "overlay2"

    @classmethod
    def ground(cls):
        return ground()[0]


@pytest.fixture
def driver():
    place = Path(tempfile.mkdtemp(dir=ground()[0]))
    yield Overlay2(options=Overlay2Options(), root=place / "root", run=place / "run")
    shutil.rmtree(place)


def quotas(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return quota._project(fd)
    finally:
        os.close(fd)


def test_the_quota_goes_with_the_layer(driver):
    driver.prepare(id="a", parents=(), size=8 * MEBIBYTE, idmap=None)
    project = quotas(driver.root / "a" / "diff")
    assert project == quotas(driver.root / "a" / "work") >= 1 << 30
    driver.remove(id="a")
    fd = os.open(driver.root, os.O_RDONLY)
    found = bytearray(112)
    try:
        quota._quotactl(fd, quota._GET_QUOTA, project, found)
    except OSError:
        return  # the kernel knows nothing of it any more
    finally:
        os.close(fd)
    assert not any(found[8:56])


def test_copying_up_counts_and_the_image_does_not(driver, tmp_path):
    driver.prepare(id="base", parents=(), size=None, idmap=None)
    (driver.root / "base" / "diff" / "large").write_bytes(os.urandom(16 * MEBIBYTE))
    driver.commit(id="base", parents=())
    driver.prepare(id="child", parents=("base",), size=8 * MEBIBYTE, idmap=None)
    mounts = driver.mounts(id="child", parents=("base",), state=State.ACTIVE)
    (tmp_path / "merged").mkdir()

    def check():
        mount_all(mounts, str(tmp_path / "merged"))
        assert len((tmp_path / "merged" / "large").read_bytes()) == 16 * MEBIBYTE
        with pytest.raises(OSError, match=r"quota exceeded|No space left"), open(tmp_path / "merged" / "large", "ab"):
            pass
        (tmp_path / "merged" / "small").write_bytes(os.urandom(4 * MEBIBYTE))

    privately(check)
