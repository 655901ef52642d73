"""Random changes to a tree, in all the ways that containers make them."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

from transom_conformance.storage.layers import clear


def scribble(top: Path, seed: int, *, steps: int = 60) -> None:
    """Change a tree at random in all the ways that containers do; the same seed does the same."""
    dice = random.Random(seed)
    for step in range(steps):
        walked = list(os.walk(top))
        directories = sorted(Path(d) for d, _, _ in walked)
        others = sorted(path for d, names, files in walked for f in (*names, *files) if _is_leaf(path := Path(d) / f))
        place = dice.choice(directories)
        new = place / dice.choice(["a", "b", "c", "d-e", "f.g", "\udcff", f"n{step}"])
        _STEPS[dice.randrange(len(_STEPS))](dice, new, dice.choice(others) if others else None)


def _is_leaf(path: Path) -> bool:
    return path.is_symlink() or not path.is_dir()


def _write(dice: random.Random, new: Path, _old: Path | None) -> None:
    if new.is_symlink() or not new.is_file():
        clear(new)
    new.write_bytes(dice.randbytes(dice.choice([0, 3, 5000])))


def _append(dice: random.Random, _new: Path, old: Path | None) -> None:
    if old and old.is_file() and not old.is_symlink():
        with open(old, "ab") as file:
            file.write(dice.randbytes(10))


def _touch(_dice: random.Random, _new: Path, old: Path | None) -> None:
    if old and old.is_file() and not old.is_symlink():
        os.close(os.open(old, os.O_RDWR))


def _make_directory(_dice: random.Random, new: Path, _old: Path | None) -> None:
    if new.is_symlink() or not new.is_dir():
        clear(new)
        new.mkdir()


def _delete(_dice: random.Random, new: Path, old: Path | None) -> None:
    clear(old or new)


def _delete_tree(dice: random.Random, new: Path, _old: Path | None) -> None:
    clear(new)
    if dice.random() < 0.5:
        new.mkdir()


def _rename(_dice: random.Random, new: Path, old: Path | None) -> None:
    if old and old != new:
        clear(new)
        if os.path.lexists(old):
            old.rename(new)


def _link(dice: random.Random, new: Path, old: Path | None) -> None:
    if old and old != new:
        clear(new)
        if os.path.lexists(old) and dice.random() < 0.6:
            os.link(old, new, follow_symlinks=False)
        else:
            new.symlink_to(dice.choice(["a", "/etc", "../gone"]))


def _metadata(dice: random.Random, new: Path, old: Path | None) -> None:
    path = old if old and not old.is_symlink() else new.parent
    kind = dice.randrange(4)
    if kind == 0:
        path.chmod(dice.choice([0o600, 0o644, 0o755, 0o4711, 0o1777]))
    elif kind == 1:
        os.chown(path, dice.choice([0, 1000, 2**31]), dice.choice([0, 7]))
    elif kind == 2:
        _set_attribute(path, dice.randbytes(4))
    elif path.is_file():
        os.utime(path, ns=(0, dice.choice([-5_000_000_001, 1, 4_200_000_000_000_000_009])))


def _set_attribute(path: Path, value: bytes) -> None:
    try:
        os.setxattr(path, "trusted.scribble", value)
    except OSError as error:
        if error.errno != errno.ENOTSUP:  # `Storage.keeps_attributes`: other cases judge
            raise


def _special(dice: random.Random, new: Path, _old: Path | None) -> None:
    clear(new)
    kind = dice.choice([stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK])
    os.mknod(new, kind | 0o640, os.makedev(12, dice.randrange(1, 2**20)))


_STEPS: tuple[Callable[[random.Random, Path, Path | None], None], ...] = (
    _write, _write, _append, _touch, _make_directory, _make_directory, _delete, _delete_tree, _rename, _link,
    _metadata, _metadata, _special,
)  # fmt: skip
