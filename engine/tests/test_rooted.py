"""Paths resolved with another root, while everything around them moves."""

import os
import threading

import pytest

from transom_engine.rooted import open_rooted


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root/sub").mkdir(parents=True)
    (tmp_path / "root/file").write_text("inside")
    (tmp_path / "file").write_text("outside")
    fd = os.open(tmp_path / "root", os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_dots_and_links_lead_no_further_than_the_root_while_files_are_renamed(root, tmp_path):
    stop = threading.Event()
    (tmp_path / "root/link").symlink_to("/../../file")

    def rename(name):
        place = tmp_path / name
        place.touch()
        while not stop.is_set():
            os.rename(place, f"{place}.new")
            os.rename(f"{place}.new", place)

    movers = [threading.Thread(target=rename, args=[name]) for name in ("one", "two")]
    for mover in movers:
        mover.start()
    try:
        for _ in range(2000):
            for path in ("/sub/../../../file", "link"):
                with open(open_rooted(root, path, os.O_RDONLY)) as file:
                    assert file.read() == "inside"
    finally:
        stop.set()
        for mover in movers:
            mover.join()


def test_what_is_not_there_is_named(root):
    with pytest.raises(FileNotFoundError) as caught:
        open_rooted(root, "/sub/none", os.O_RDONLY)
    assert caught.value.filename == "/sub/none"
