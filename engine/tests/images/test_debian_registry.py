"""Pulling from the registry that others run: Debian's docker-registry (CNCF distribution), with basic auth."""

import gzip
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from base64 import b64encode

import msgspec
import pytest

from transom.errors import DriverError, NotFound
from transom_engine.images import spec
from transom_engine.images.credentials import Credentials
from transom_engine.images.pull import pull
from transom_engine.images.unpack import unpack

pytestmark = pytest.mark.skipif(not shutil.which("docker-registry"), reason="docker-registry is not installed")

# bcrypt of "s3cret", the only kind the registry takes
HASH = "$2b$05$4eQBJpU1qICwjQvd5cCbO.F4ti46b0I9sXdkHIn3c4nzbPTDMwOaS"
CONFIG = """
version: 0.1
storage:
  filesystem:
    rootdirectory: {root}/data
http:
  addr: {address}
auth:
  htpasswd:
    realm: here
    path: {root}/htpasswd
"""


@pytest.fixture
def server(tmp_path):
    """A running registry's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    (tmp_path / "htpasswd").write_text(f"ann:{HASH}\n")
    (tmp_path / "config.yml").write_text(CONFIG.format(root=tmp_path, address=address))
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", tmp_path / "config.yml"], stdout=log, stderr=log)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield address
    process.kill()
    process.wait()


def push(address, repository, tag, layers):
    """Push an image as the distribution-spec has it: blobs in one request each, then the manifest."""
    connection = http.client.HTTPConnection(address, timeout=20)
    login = {"Authorization": "Basic " + b64encode(b"ann:s3cret").decode()}

    def request(method, target, body=b"", **headers):
        connection.request(method, target, body=body, headers={**login, **headers})
        response = connection.getresponse()
        said = response.read()
        assert response.status in (201, 202), said
        return response

    def blob(data):
        where = request("POST", f"/v2/{repository}/blobs/uploads/").getheader("Location")
        target = where[where.index("/v2/") :]
        digest = spec.digest_of(data)
        request("PUT", f"{target}&digest={digest}", data, **{"Content-Type": "application/octet-stream"})
        return {"digest": digest, "size": len(data)}

    packed = [gzip.compress(layer, mtime=0) for layer in layers]
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [*map(spec.digest_of, layers)]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": spec.DOCKER_MANIFEST,
            "config": {"mediaType": spec.DOCKER_CONFIG, **blob(config)},
            "layers": [{"mediaType": f"{spec.DOCKER_LAYER}.gzip", **blob(layer)} for layer in packed],
        }
    ).encode()
    request("PUT", f"/v2/{repository}/manifests/{tag}", manifest, **{"Content-Type": spec.DOCKER_MANIFEST})
    connection.close()
    return spec.digest_of(manifest)


def test_an_image_pushed_to_it_is_pulled_and_unpacked(server, content, store, settings, layers, tar):
    tars = [tar({"a": os.urandom(300_000)}), tar({"b": b"2"})]
    digest = push(server, "team/app", "1", tars)
    mine = msgspec.structs.replace(settings, login=Credentials("ann", "s3cret"))
    pulled = pull(f"{server}/team/app:1", content=content, store=store, settings=mine)
    assert pulled.digest == digest
    unpack(pulled.image, layers=layers, content=content)
    assert list(layers.kept.values()) == tars
    assert not pull(f"{server}/team/app@{digest}", content=content, store=store, settings=mine).newer


def test_a_broken_download_is_continued_from_it(server, content, store, settings, tar):
    layer = tar({"a": os.urandom(300_000)})
    push(server, "app", "1", [layer])
    packed = gzip.compress(layer, mtime=0)
    with content.writer(digest=spec.digest_of(packed), size=len(packed)) as writer:
        writer.write(packed[:100_000])
    seen = []
    mine = msgspec.structs.replace(settings, login=Credentials("ann", "s3cret"))
    pull(f"{server}/app:1", content=content, store=store, settings=mine, progress=seen.append)
    assert min(event.current for event in seen if event.status == "Downloading") > 100_000


def test_its_refusals_are_said_in_its_words(server, content, store, settings):
    with pytest.raises(DriverError, match="failed: unauthorized: authentication required; the repository"):
        pull(f"{server}/app", content=content, store=store, settings=settings)
    mine = msgspec.structs.replace(settings, login=Credentials("ann", "s3cret"))
    with pytest.raises(NotFound, match="manifest unknown: manifest unknown; check the name and the tag of"):
        pull(f"{server}/app", content=content, store=store, settings=mine)
