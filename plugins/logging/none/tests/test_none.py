"""What the suite cannot see of the driver none."""

import os
from pathlib import Path

import pytest

from transom.contract.logging import Chunk, LogContainer, Query, Stream
from transom.errors import ConfigError, NotSupported
from transom.services.options import convert
from transom_logging_none import Discard


def test_nothing_is_written_and_nothing_can_be_read(tmp_path):
    driver = Discard(options=convert(driver=Discard, options={}, where="--log-opt"), root=Path("/x"), run=Path("/x"))
    container = LogContainer(id="c" * 64, name="web", directory=str(tmp_path))
    writer = driver.open(container=container)
    writer.write([Chunk(Stream.STDOUT, 0, b"one\ntwo\n")])
    writer.close(timeout=1)
    assert (writer.stats().taken, writer.stats().delivered) == (2, 2)
    assert os.listdir(tmp_path) == []
    with pytest.raises(NotSupported) as caught:
        driver.read(container=container, query=Query())
    assert str(caught.value) == "logging driver none does not support read"


def test_it_has_no_options():
    with pytest.raises(ConfigError) as caught:
        convert(driver=Discard, options={"max-size": "1m"}, where="--log-opt")
    assert str(caught.value) == "logging driver none has no option 'max-size' (from --log-opt); it has no options"
