"""Wheels of the workspace's distributions, and environments that hold only what their metadata asks for."""

import re
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build(source, target):
    """Build a distribution's sdist and wheel; return the wheel."""
    done = subprocess.run(
        [Path(sys.executable).with_name("hatchling"), "build", "--directory", target],
        cwd=source, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    name = source.name if source.name.startswith("transom-") else f"transom-{'-'.join(_parts(source))}"
    return next(Path(target).glob(f"{name.replace('-', '_')}-*.whl"))


def _parts(source):
    """Return what a folder of the workspace is called in its distribution's name."""
    parts = source.relative_to(ROOT).parts
    return parts[1:] if parts[0] == "plugins" else parts


def requirements(texts):
    """Return the names of what is required without an extra."""
    return [re.match(r"[\w.-]+", text)[0] for text in texts or () if "extra ==" not in text]


class Environment:
    """A new virtual environment with nothing in it, not even pip."""

    def __init__(self, place):
        venv.create(place, with_pip=False, symlinks=True)
        self.place, self.python = place, place / "bin" / "python"
        self.site = next(place.glob("lib/python*/site-packages"))

    def add(self, *wheels):
        """Install wheels and, from the workspace's own environment, the third-party packages that they declare."""
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(self.site)
                metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
                headers = archive.read(metadata).decode().partition("\n\n")[0]
            self._complete(re.findall(r"^Requires-Dist: (.*)$", headers, re.MULTILINE))

    def _complete(self, required):
        for name in requirements(required):
            if name.startswith("transom-"):
                continue  # a wheel of its own
            try:
                found = distribution(name)
            except PackageNotFoundError:
                continue  # for another platform or Python
            info = self.site / Path(found._path).name
            if info.exists():
                continue
            for file in found.files or ():
                source, target = Path(found.locate_file(file)), self.site / file
                if ".." not in file.parts and source.is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if not target.exists():
                        target.hardlink_to(source)
            info.mkdir(parents=True, exist_ok=True)
            self._complete(found.requires)

    def run(self, *words, **options):
        """Run the environment's Python; return how it ended."""
        return subprocess.run(
            [self.python, *words], **{"capture_output": True, "text": True, "check": False, "cwd": "/", **options}
        )
