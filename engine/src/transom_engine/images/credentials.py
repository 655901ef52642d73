"""Login data for registries, from where ``docker login`` puts them.

``$DOCKER_CONFIG/config.json`` or ``~/.docker/config.json`` holds them under ``auths``, or names a program,
``docker-credential-NAME``, that is asked (``credHelpers`` for one registry, ``credsStore`` for all;
github.com/docker/docker-credential-helpers: the registry goes in on standard input, JSON comes out).
"""

from __future__ import annotations

import os

import msgspec

from transom.errors import ConfigError, DriverError
from transom_engine.images.names import DEFAULT_DOMAIN

_HUB_KEY = "https://index.docker.io/v1/"
_HELPER_SECONDS = 30


class Credentials(msgspec.Struct, frozen=True):
    """A user's name and password, or a token that stands for them (OAuth 2 refresh token)."""

    username: str = ""
    password: str = ""
    identity_token: str = ""


class _Auth(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identity_token: str = msgspec.field(default="", name="identitytoken")

    def credentials(self) -> Credentials:
        from base64 import b64decode

        user, password = self.username, self.password
        if self.auth:
            user, _, password = b64decode(self.auth).decode().partition(":")
        return Credentials(username=user, password=password.rstrip("\0"), identity_token=self.identity_token)


class _File(msgspec.Struct, rename="camel"):
    auths: dict[str, _Auth] = {}
    cred_helpers: dict[str, str] = {}
    creds_store: str = ""


class _Answer(msgspec.Struct, rename="pascal"):
    username: str = ""
    secret: str = ""


def find(host: str, *, path: str | None = None) -> Credentials | None:
    """Return the login data for a registry, or None.

    Args:
        host: the registry's host and port, or ``docker.io``.
        path: the file to read instead of Docker's; it need not exist.

    Raises:
        ConfigError: the file is damaged.
        DriverError: the program that keeps the login data failed.
    """
    file = path or os.path.join(os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker"), "config.json")
    try:
        with open(file, "rb") as opened:
            known = msgspec.json.decode(opened.read(), type=_File)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"cannot read the login data in {file}: {error}; repair it or log in again") from None
    key = _HUB_KEY if host == DEFAULT_DOMAIN else host
    if helper := known.cred_helpers.get(key) or known.cred_helpers.get(host) or known.creds_store:
        return _ask(helper, key)
    for name, auth in known.auths.items():
        if name == key or _host(name) == host:
            try:
                return auth.credentials()
            except ValueError:
                raise ConfigError(f"cannot read the login data for {name} in {file}: log in again") from None
    return None


def _host(name: str) -> str:
    """Reduce ``https://HOST/v1/`` to the host, as older files have it."""
    return name.removeprefix("https://").removeprefix("http://").partition("/")[0]


def _ask(helper: str, key: str) -> Credentials | None:
    import subprocess

    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"], input=key.encode(), capture_output=True, timeout=_HELPER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failed(program, key, error) from None
    if done.returncode:
        # The helpers' protocol has no code for "none known", only this sentence.
        if b"credentials not found" in done.stdout + done.stderr:
            return None
        raise _failed(program, key, (done.stdout + done.stderr).decode(errors="replace").strip() or "it said nothing")
    try:
        answer = msgspec.json.decode(done.stdout, type=_Answer)
    except msgspec.MsgspecError as error:
        raise _failed(program, key, error) from None
    if answer.username == "<token>":
        return Credentials(identity_token=answer.secret)
    return Credentials(username=answer.username, password=answer.secret)


def _failed(program: str, key: str, cause: object) -> DriverError:
    return DriverError(
        "get", driver=program, subject=key, cause=cause, hint="install or repair it, or take it out of config.json"
    )
