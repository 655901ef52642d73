"""A command's connection to a supervisor."""

import os

import pytest

from transom_engine.wire import Connection


@pytest.mark.parametrize("place", ["gone/control", "control"])
def test_a_connection_to_nobody_leaves_no_descriptor(tmp_path, place):
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="No such file"):
        Connection.to(str(tmp_path / place))
    assert os.listdir("/proc/self/fd") == before
