"""A file system of a case's own, which can be full, and copied as a power loss would leave it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from transom.services.mounts import privately, unmount
from transom_conformance.disks import lacking
from transom_conformance.storage.layers import Layers, wait_for_detached
from transom_conformance.suite import World


class Disk:
    """A file system in a file, as the root of a world, mounted where only the calling thread sees it.

    For a file system that is not made by mkfs.KIND and mounted by a loop device: derive from it, and give the suite
    that as its `disk`.
    """

    size: ClassVar[int] = 160 << 20

    def __init__(self, world: World, kind: str) -> None:
        self._world, self.kind, self._home = world, kind, world.path
        self._image, self._copied = self._home / "disk.img", self._home / "copy.img"
        self.place = self._home / "disk"

    def lacking(self) -> str:
        """Say what this host has not got for it; empty when nothing is missing."""
        return lacking(self.kind)

    def make(self, image: Path) -> None:
        """Make the file system in the file."""
        subprocess.run([f"mkfs.{self.kind}", "-q", image], check=True, capture_output=True)

    def mount(self, image: Path) -> None:
        """Mount the file system in the file at `place`."""
        subprocess.run(["mount", "-o", "loop", "-t", self.kind, image, self.place], check=True)

    def forget(self, image: Path) -> None:
        """Return when nothing holds the file any more, which is no longer mounted."""
        wait_for_detached(image)

    def __enter__(self) -> Disk:
        """Make it, where that is possible."""
        if reason := self.lacking():
            pytest.skip(reason)
        self.place.mkdir(exist_ok=True)
        with open(self._image, "wb") as file:
            file.truncate(self.size)
        self.make(self._image)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing of it."""
        for image in (self._image, self._copied):
            if image.exists():
                self.forget(image)
                image.unlink()

    def copy(self) -> None:
        """Keep what has reached the disk by now, as if the power went."""
        subprocess.run(["cp", "--sparse=always", self._image, self._copied], check=True)

    def using(self, function: Callable[[Layers], None], *, after_the_loss: bool = False) -> None:
        """Call `function` with layers on the disk, or on what was left of it when it was copied."""
        image = self._copied if after_the_loss else self._image

        def run() -> None:
            self.mount(image)
            try:
                self._world.path = self.place
                layers = Layers(self._world)
                try:
                    function(layers)
                finally:
                    layers.close()
            finally:
                self._world.path = self._home
                unmount(str(self.place), detach=False)

        privately(run)
        self.forget(image)
