"""What ``transom new`` writes: a distribution with one driver that passes the mandatory cases of its kind.

The drivers are the modules beside this one, `Sample` in each, as a type checker and the suites see them; the other
files are templates, ``*.in``. In all of them ``sample`` and ``Sample`` stand for the driver's name.
"""

from __future__ import annotations

import ast
import re
from importlib.resources import files as resources

import transom
from transom.drivers import contract_of, installed
from transom.errors import ConfigError, Conflict

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 40
_WORDS = re.compile(r"(?<=\bTest)Sample\b|\bSample(?=Writer\b)|\b(?:sample|Sample|KIND|Suite|MODULE|VERSIONS|DOC)\b")


def files(kind: str, name: str) -> dict[str, str]:
    """Return the distribution's files by path.

    Raises:
        ConfigError: no such kind, or a name that cannot be one.
        Conflict: an installed distribution has a driver of that name.
    """
    contract_of(kind)
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise ConfigError(
            f"{name!r} cannot be the name of a driver: write at most {_LONGEST} small letters and digits, in words"
            " joined by hyphens, beginning with a letter"
        )
    for present in installed(kind):
        if present.name == name:
            raise Conflict(f"{present.distribution} has a {kind} driver {name!r} already; choose another name")
    driver = _read(f"{kind}.py")
    words = {"sample": name, "Sample": _class_name(name, driver), "KIND": kind, "Suite": f"{kind.title()}Suite"}
    words |= {"MODULE": f"transom_{kind}_{name}".replace("-", "_"), "VERSIONS": _versions(), "DOC": _summary(driver)}

    def filled(text: str) -> str:
        return _WORDS.sub(lambda match: words[match[0]], text)

    found: dict[str, str] = {
        "pyproject.toml": _read("pyproject.toml.in"),
        "README.md": _read("README.md.in"),
        "src/MODULE/__init__.py": driver,
        "src/MODULE/py.typed": "",
        "tests/test_conformance.py": _read("test_conformance.py.in"),
        ".github/workflows/test.yml": _read("test.yml.in"),
        ".gitignore": _read("gitignore.in"),
    }
    return {filled(path): filled(text) for path, text in found.items()}


def _read(name: str) -> str:
    return resources(__name__).joinpath(name).read_text()


def _summary(source: str) -> str:
    doc = ast.get_docstring(ast.parse(source)) or ""
    return doc.splitlines()[0]


def _class_name(name: str, source: str) -> str:
    """Put the words together; a name that the module uses itself gets a word more."""
    joined = "".join(word.title() for word in name.split("-"))
    used = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    used |= {alias.name for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom) for alias in n.names}
    return f"{joined}Driver" if joined in used else joined


def _versions() -> str:
    major, minor, _ = transom.__version__.split(".")
    return f">={major}.{minor},<{major}.{int(minor) + 1}"
