"""A world for each test: a content store, an image store, and real registries on the loopback interface."""

import base64
import gzip
import hashlib
import io
import json
import os
import re
import socket
import struct
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from transom_engine.images import spec
from transom_engine.images.content import ContentStore
from transom_engine.images.registry import Settings
from transom_engine.images.store import ImageStore


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def make_tar(files: dict[str, bytes], *, mode: str = "w", format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=format) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


class Faults:
    """What the server does wrong, each until it is used up: (pattern of the path, what, how often)."""

    def __init__(self):
        self.planned = []

    def add(self, pattern, *, times=1, **what):
        self.planned.append([re.compile(pattern), times, what])

    def take(self, path):
        for plan in self.planned:
            if plan[1] and plan[0].search(path):
                plan[1] -= 1
                return plan[2]
        return {}


class RegistryServer:
    """A registry of the v2 API with token or basic auth, ranges and faults; serves what `add_image` put in."""

    def __init__(self, *, auth="", users=None, ranges=True, blobs_at=None, context=None, host="127.0.0.1"):
        self.auth, self.users, self.ranges, self.blobs_at = auth, users or {}, ranges, blobs_at
        self.blobs, self.manifests, self.requests, self.tokens = {}, {}, [], set()
        self.faults = Faults()
        self.peak = self.active = 0
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"registry": self})
        server = type("Server", (_Quiet,), {"address_family": socket.AF_INET6 if ":" in host else socket.AF_INET})
        self.server = server((host, 0), handler)
        if context:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.server.daemon_threads = True
        self.domain = f"{f'[{host}]' if ':' in host else host}:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def add_blob(self, data):
        self.blobs[digest_of(data)] = data
        return digest_of(data)

    def add_image(
        self,
        repository,
        tag,
        *,
        layers=(),
        architecture="amd64",
        variant="",
        config=None,
        docker=False,
        compress=gzip.compress,
        os_name="linux",
    ):
        """Put an image in; return its manifest's digest."""
        diffs = [digest_of(layer) for layer in layers]
        body = json.dumps(
            {
                "architecture": architecture,
                "os": os_name,
                "variant": variant,
                "created": "2024-05-06T07:08:09.123456789Z",
                "config": config or {"Cmd": ["sh"], "Env": None},
                "rootfs": {"type": "layers", "diff_ids": diffs},
                "history": [
                    {"created": "2024-05-06T07:08:09Z", "created_by": f"step {n}"} for n, _ in enumerate(layers)
                ],
            }
        ).encode()
        suffix = {gzip.compress: ".gzip" if docker else "+gzip"}.get(compress, "")
        blobs = [compress(layer) for layer in layers]
        layer_type = (spec.DOCKER_LAYER if docker else spec.OCI_LAYER) + suffix
        manifest = {
            "schemaVersion": 2,
            "mediaType": spec.DOCKER_MANIFEST if docker else spec.OCI_MANIFEST,
            "config": {
                "mediaType": spec.DOCKER_CONFIG if docker else spec.OCI_CONFIG,
                "digest": self.add_blob(body),
                "size": len(body),
            },
            "layers": [{"mediaType": layer_type, "digest": self.add_blob(blob), "size": len(blob)} for blob in blobs],
        }
        return self.add_manifest(repository, tag, manifest)

    def add_index(self, repository, tag, entries, *, docker=False):
        """Put a list in; entries are (digest, platform as a dict)."""
        kind = spec.DOCKER_MANIFEST if docker else spec.OCI_MANIFEST
        return self.add_manifest(
            repository,
            tag,
            {
                "schemaVersion": 2,
                "mediaType": spec.DOCKER_LIST if docker else spec.OCI_INDEX,
                "manifests": [
                    {
                        "mediaType": kind,
                        "digest": digest,
                        "size": len(self.manifests[repository, digest][1]),
                        "platform": platform,
                    }
                    for digest, platform in entries
                ],
            },
        )

    def add_manifest(self, repository, tag, manifest):
        body = json.dumps(manifest).encode()
        for name in (tag, digest_of(body)):
            if name:
                self.manifests[repository, name] = (manifest.get("mediaType", spec.OCI_MANIFEST), body)
        return digest_of(body)

    def fetched(self, pattern):
        """The requests whose path matches, as (path, headers)."""
        return [(path, headers) for _, path, headers in self.requests if re.search(pattern, path)]


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: RegistryServer

    def log_message(self, *args):
        pass

    def do_POST(self):
        self.form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.do_GET()

    def do_GET(self):
        registry, parts = self.registry, urlsplit(self.path)
        registry.requests.append((self.command, self.path, dict(self.headers.items())))
        fault = registry.faults.take(self.path)
        if "status" in fault:
            return self.answer(fault["status"], fault.get("body", b"{}"), fault.get("headers", {}))
        if parts.path == "/token":
            return self.token(parse_qs(parts.query))
        if registry.auth and not self.authorized(parts.path):
            return None
        if match := re.fullmatch("/v2/(.+)/manifests/([^/]+)", parts.path):
            return self.manifest(*match.groups(), fault)
        if match := re.fullmatch("/v2/(.+)/blobs/([^/]+)", parts.path):
            return self.blob(match[2], fault)
        return self.answer(200 if parts.path == "/v2/" else 404, b"{}")

    def authorized(self, path):
        registry, given = self.registry, self.headers.get("Authorization", "")
        if registry.auth == "basic":
            challenge = 'Basic realm="here, there"'
            good = given.startswith("Basic ") and self.user(given)
        else:
            challenge = f'Bearer realm="http://{registry.domain}/token",service="the service",error="invalid_token"'
            good = given.removeprefix("Bearer ") in registry.tokens
        if not good:
            self.error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge})
        return good

    def user(self, header):
        name, _, password = base64.b64decode(header.split()[1]).decode().partition(":")
        return name if self.registry.users.get(name) == password else ""

    def token(self, query):
        given, form = self.headers.get("Authorization", ""), getattr(self, "form", {})
        if given and not self.user(given):
            return self.error(401, "UNAUTHORIZED", "incorrect username or password")
        if form and form["refresh_token"] != ["refresh me"]:
            return self.error(401, "UNAUTHORIZED", "bad refresh token")
        if self.registry.users and not given and not form:
            return self.error(401, "DENIED", "requested access to the resource is denied")
        assert (form or query)["scope"][0].endswith(":pull")
        token = os.urandom(8).hex()
        self.registry.tokens.add(token)
        return self.answer(200, json.dumps({"token": token, "expires_in": 60}).encode())

    def manifest(self, repository, name, fault):
        if (repository, name) not in self.registry.manifests:
            return self.error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        kind, body = self.registry.manifests[repository, name]
        return self.answer(
            200, fault.get("body", body), {"Content-Type": kind, "Docker-Content-Digest": digest_of(body)}, fault
        )

    def blob(self, digest, fault):
        registry = self.registry
        if registry.blobs_at:
            return self.answer(307, b"elsewhere", {"Location": f"http://{registry.blobs_at}{self.path}"})
        if digest not in registry.blobs:
            return self.error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        data, start = fault.get("body", registry.blobs[digest]), 0
        if registry.ranges and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                return self.answer(416, b"")
            return self.answer(
                206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}, fault
            )
        return self.answer(200, data, {}, fault)

    def error(self, status, code, message, headers=None):
        return self.answer(status, json.dumps({"errors": [{"code": code, "message": message}]}).encode(), headers)

    def answer(self, status, body, headers=None, fault=None):
        fault, registry = fault or {}, self.registry
        with registry.lock:
            registry.active += "/blobs/" in self.path
            registry.peak = max(registry.peak, registry.active)
        try:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if "pause" in fault:
                fault["pause"].wait(30)
            cut = fault.get("cut")
            self.wfile.write(body[:cut])
            if "hold" in fault:
                self.wfile.flush()
                fault["hold"].wait(30)
            if cut is not None:
                self.close_connection = True
                if fault.get("reset"):
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
        finally:
            with registry.lock:
                registry.active -= "/blobs/" in self.path


@pytest.fixture
def registry():
    """Make registries: ``registry(auth="token", users={...})``."""
    made = []

    def make(**options):
        made.append(RegistryServer(**options))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def content(tmp_path):
    return ContentStore(tmp_path / "images" / "content")


@pytest.fixture
def store(tmp_path, content):
    opened = ImageStore(tmp_path / "images", content)
    yield opened
    opened.close()


@pytest.fixture
def settings(tmp_path):
    """Settings without this host's logins and certificates, and without waiting between tries."""
    return Settings(
        login_file=str(tmp_path / "config.json"), certificates=str(tmp_path / "certs"), delay=0.01, timeout=10
    )


@pytest.fixture
def tar():
    return make_tar


@pytest.fixture
def noise():
    """Bytes that do not compress."""
    return os.urandom


class Layers:
    """A layer target that keeps each tar in memory."""

    def __init__(self):
        self.kept = {}

    def exists(self, *, chain_id):
        return chain_id in self.kept

    def apply(self, *, chain_id, parent, stream):
        assert parent is None or parent in self.kept
        data = stream.read()
        stream.finish()
        self.kept[chain_id] = data
        return None


@pytest.fixture
def layers():
    return Layers()
