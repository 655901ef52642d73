"""Image references as Docker reads and prints them.

The grammar is that of distribution/reference, the short forms ("busybox" for
``docker.io/library/busybox:latest``) are Docker's. A name has a domain, which is a registry's host and port, a
path in it, and a tag, a digest or both.
"""

from __future__ import annotations

import re
from functools import cache

import msgspec

from transom.errors import ConfigError

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
_LEGACY_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"
_MAX_NAME = 255
_HELP = "a name reads [HOST[:PORT]/]PATH[:TAG][@sha256:HEX]"


class Reference(msgspec.Struct, frozen=True):
    """A parsed name; a missing tag or digest is empty."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Domain and path, in full."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """Domain and path as Docker prints them: without the default domain and its ``library/``.

        A path that would then read as another host's keeps its domain (Docker's own form is ambiguous there).
        """
        for short in (self.path.removeprefix(_OFFICIAL), self.path):
            if self.domain == DEFAULT_DOMAIN and _split_domain(short) == (self.domain, self.path):
                return short
        return self.name

    def familiar(self) -> str:
        """Return the whole reference as Docker prints it."""
        return self.familiar_name + self._suffix

    def __str__(self) -> str:
        return self.name + self._suffix

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse(text: str, *, default_tag: bool = True) -> Reference:
    """Read a reference as a user writes it.

    Args:
        default_tag: give a name without tag and digest the tag ``latest``.

    Raises:
        ConfigError: it is no image name; says why.
    """
    if not text:
        raise ConfigError(f"an image name is missing: {_HELP}")
    if _hex64().fullmatch(text):
        raise ConfigError(f"invalid image name {text}: 64 hexadecimal digits are an image's id; choose another name")
    domain, rest = _split_domain(text)
    remote = re.split("[:@]", rest, maxsplit=1)[0]
    if remote != remote.lower():
        written = remote.removeprefix(_OFFICIAL)
        raise ConfigError(
            f"invalid image name {text}: repository name ({written}) must be lowercase; did you mean {written.lower()}?"
        )
    match = _grammar().fullmatch(f"{domain}/{rest}")
    if match is None:
        raise ConfigError(f"invalid image name {text}: {_fault(domain, rest)}; {_HELP}")
    path, tag, digest = match["path"], match["tag"] or "", match["digest"] or ""
    if len(domain) + 1 + len(path) > _MAX_NAME:
        raise ConfigError(
            f"invalid image name {text[:40]}...: host and path have {len(domain) + 1 + len(path)} characters,"
            f" at most {_MAX_NAME} are allowed"
        )
    if digest:
        check_digest(digest)
    elif not tag and default_tag:
        tag = DEFAULT_TAG
    return Reference(domain=domain, path=path, tag=tag, digest=digest)


def is_digest(text: str) -> bool:
    """Say whether the text is a digest: ``sha256:`` and 64 lower-case hexadecimal digits."""
    return text.startswith("sha256:") and _hex64().fullmatch(text, 7) is not None


def check_digest(text: str) -> str:
    """Return the digest as it is.

    Raises:
        ConfigError: it is none, or of an algorithm other than sha256.
    """
    if is_digest(text):
        return text
    algorithm = text.partition(":")[0]
    if algorithm != "sha256":
        raise ConfigError(f"unsupported digest {text}: the algorithm is {algorithm}, only sha256 is supported")
    raise ConfigError(f"invalid digest {text}: sha256: is followed by 64 lower-case hexadecimal digits")


def short_id(id: str) -> str:
    """Return the 12 digits that Docker prints for an image's or a layer's id."""
    return id.removeprefix("sha256:")[:12]


def _split_domain(text: str) -> tuple[str, str]:
    """Tell host from path as Docker does: a first part with a dot, a port or capitals, or ``localhost``, is a host."""
    first, slash, rest = text.partition("/")
    if not slash or not (re.search("[.:]", first) or first == "localhost" or first != first.lower()):
        domain, rest = DEFAULT_DOMAIN, text
    else:
        domain = DEFAULT_DOMAIN if first == _LEGACY_DOMAIN else first
    if domain == DEFAULT_DOMAIN and "/" not in rest:
        rest = _OFFICIAL + rest
    return domain, rest


def _fault(domain: str, rest: str) -> str:
    if not _domain().fullmatch(domain):
        return f"{domain} is no host"
    path, _, suffix = re.sub("([:@])", r"\n\1", rest, count=1).partition("\n")
    if not _path().fullmatch(path):
        return f"the path {path} has parts other than lower-case letters and digits joined by . _ __ or -"
    if suffix.startswith(":"):
        return f"{suffix[1:]} is no tag (1 to 128 letters, digits, _ . and -, not beginning with . or -)"
    return f"{suffix[1:]} is no digest"


@cache
def _hex64() -> re.Pattern[str]:
    return re.compile("[a-f0-9]{64}")


_COMPONENT = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_COMPONENT}(?:\.{_COMPONENT})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_PART = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = f"{_PART}(?:/{_PART})*"
_DIGEST = "[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"


@cache
def _domain() -> re.Pattern[str]:
    return re.compile(_DOMAIN)


@cache
def _path() -> re.Pattern[str]:
    return re.compile(_PATH)


@cache
def _grammar() -> re.Pattern[str]:
    return re.compile(
        rf"(?:{_DOMAIN})/(?P<path>{_PATH})(?::(?P<tag>[a-zA-Z0-9_][a-zA-Z0-9_.-]{{0,127}}))?(?:@(?P<digest>{_DIGEST}))?"
    )
