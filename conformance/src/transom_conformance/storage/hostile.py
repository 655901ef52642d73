"""Tars that nobody should have made: entries that lead out of the layer, headers that lie or have no end."""

from __future__ import annotations

import io
import tarfile

FILE, DIR, LINK, SYMLINK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE
FIFO, CHAR = tarfile.FIFOTYPE, tarfile.CHRTYPE

Entry = tuple[bytes, str, str]
"""Type, name, and where it links to; a file's content is its own name. OUT stands for the directory outside."""

ESCAPES: dict[str, list[Entry]] = {
    "dots": [(FILE, "../OUT/new", "")],
    "many dots": [(FILE, "../" * 30 + "OUT/new", "")],
    "dots behind a name": [(FILE, "a/../../OUT/new", "")],
    "an absolute name": [(FILE, "/OUT/new", "")],
    "the parent itself": [(DIR, "..", "")],
    "the root as a file": [(FILE, "./", "")],
    "the root as a symlink": [(SYMLINK, ".", "/OUT"), (FILE, "new", "")],
    "an absolute symlink": [(SYMLINK, "l", "/OUT"), (FILE, "l/new", "")],
    "a relative symlink": [(SYMLINK, "l", "../" * 30 + "OUT"), (FILE, "l/new", "")],
    "a symlink to the parent": [(SYMLINK, "l", ".."), (FILE, "l/" + "../" * 30 + "OUT/new", "")],
    "two symlinks": [(SYMLINK, "a", "/OUT"), (SYMLINK, "b", "a"), (FILE, "b/new", "")],
    "a symlink in a directory": [(DIR, "d", ""), (SYMLINK, "d/l", "/OUT"), (SYMLINK, "e", "d/l"), (FILE, "e/new", "")],
    "dots behind a symlink": [(DIR, "d/e", ""), (SYMLINK, "l", "d/e/../../../.."), (FILE, "l/OUT/new", "")],
    "a loop of symlinks": [(SYMLINK, "a", "b"), (SYMLINK, "b", "a"), (FILE, "a/new", "")],
    "a file over a symlink": [(SYMLINK, "l", "/OUT/victim"), (FILE, "l", "")],
    "a directory over a symlink": [(SYMLINK, "l", "/OUT"), (DIR, "l", ""), (FILE, "l/new", "")],
    "a symlink over a directory": [(DIR, "d/e", ""), (SYMLINK, "d", "/OUT"), (FILE, "d/new", "")],
    "a fifo over a symlink": [(SYMLINK, "l", "/OUT/victim"), (FIFO, "l", "")],
    "a device over a symlink": [(SYMLINK, "l", "/OUT/victim"), (CHAR, "l", "")],
    "a hard link by dots": [(LINK, "p", "../" * 30 + "OUT/victim"), (FILE, "p", "")],
    "a hard link by an absolute name": [(LINK, "p", "/OUT/victim"), (FILE, "p", "")],
    "a hard link through a symlink": [(SYMLINK, "l", "/OUT"), (LINK, "p", "l/victim"), (FILE, "p", "")],
    "a hard link to a symlink": [(SYMLINK, "l", "/OUT/victim"), (LINK, "p", "l"), (FILE, "p", "")],
    "a hard link over a symlink": [(FILE, "f", ""), (SYMLINK, "l", "/OUT/victim"), (LINK, "l", "f")],
    "a hard link below a symlink": [(FILE, "f", ""), (SYMLINK, "l", "/OUT"), (LINK, "l/new", "f")],
    "a hard link of the root": [(FILE, "f", ""), (LINK, ".", "f")],
    "a hard link to a directory": [(DIR, "d", ""), (LINK, "p", "d"), (FILE, "p/new", "")],
    "a whiteout of the root": [(FILE, ".wh.", "")],
    "a whiteout of where it is": [(FILE, "d/.wh..", "")],
    "a whiteout of the parent": [(FILE, ".wh...", "")],
    "a whiteout by dots": [(FILE, "../" * 30 + "OUT/.wh.victim", "")],
    "a whiteout through a symlink": [(SYMLINK, "l", "/OUT"), (FILE, "l/.wh.victim", "")],
    "a whiteout of a symlink's target": [(SYMLINK, "l", "/OUT/victim"), (FILE, ".wh.l", "")],
    "an opaque mark by dots": [(FILE, "../OUT/.wh..wh..opq", "")],
    "an opaque mark through a symlink": [(SYMLINK, "l", "/OUT"), (FILE, "l/.wh..wh..opq", "")],
    "a file below a whiteout": [(FILE, ".wh.OUT/new", "")],
    "a file below a file": [(FILE, "f", ""), (FILE, "f/new", "")],
}


def tar_of(entries: list[Entry], *, outside: str) -> bytes:
    """Make the tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for type, name, target in entries:
            info = tarfile.TarInfo(name.replace("OUT", outside.strip("/")))
            info.type, info.linkname, info.mode = type, target.replace("OUT", outside.strip("/")), 0o666
            info.devmajor, info.devminor = 1, 3
            data = name.encode() if type == FILE and ".wh." not in name else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def damaged_tars(good: bytes) -> dict[str, bytes]:
    """Return tars that are cut, garbage, or claim what cannot be; `good` holds at least one file of 2,000 bytes."""
    huge = tarfile.TarInfo("huge")
    huge.size = 1 << 62
    endless = tarfile.TarInfo("endless")
    endless.type, endless.size = tarfile.XHDTYPE, 1 << 40
    many_holes = tarfile.TarInfo("GNUSparseFile.0/holes")
    many_holes.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "holes"}
    many_holes.pax_headers["GNU.sparse.realsize"] = str(1 << 62)
    many_holes.size = 1 << 50
    holes = many_holes.tobuf(tarfile.PAX_FORMAT) + b"9" * 30 + b"\n" + bytes(481)
    return {
        "cut in a file": good[:1536],
        "cut in a header": good[:700],
        "no end": good[: -len(good) % 512 - 1024] if len(good) % 512 else good[:-1024],
        "garbage": b"\x93garbage\x00" * 500,
        "a bad checksum": good[:100] + b"9" + good[101:],
        "a file without end": huge.tobuf() + bytes(512),
        "headers without end": endless.tobuf() + b"9" * 4096,
        "holes without end": holes,
    }
