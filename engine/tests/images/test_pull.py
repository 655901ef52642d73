"""Pulling from real registries on the loopback interface, with everything that goes wrong on the way."""

import base64
import gzip
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import msgspec
import pytest
import zstandard

from transom.errors import ConfigError, DriverError, NotFound, NotSupported
from transom_engine.images import spec
from transom_engine.images.credentials import Credentials
from transom_engine.images.pull import pull
from transom_engine.images.registry import HUB_HOST, Registry, Settings
from transom_engine.images.unpack import unpack


@pytest.fixture
def fetch(content, store, settings):
    """Pull with this test's stores; keeps the events."""

    def call(name, **options):
        call.events = []
        return pull(
            name,
            content=content,
            store=store,
            settings=options.pop("settings", settings),
            progress=call.events.append,
            **options,
        )

    return call


def partials(content):
    return os.listdir(f"{content.root}/ingest")


# What works


def test_pull_records_the_image_under_its_name_with_all_its_layers(registry, fetch, store, content, layers, tar):
    server, tars = registry(), [tar({"a": b"1"}), tar({"b": b"2"})]
    digest = server.add_image("team/app", "1.0", layers=tars)
    pulled = fetch(f"{server.domain}/team/app:1.0")
    assert pulled.digest == digest
    assert pulled.status == f"Status: Downloaded newer image for {server.domain}/team/app:1.0"
    image = store.resolve(f"{server.domain}/team/app:1.0")
    assert image == pulled.image == store.resolve(f"{server.domain}/team/app@{digest}")
    assert [layer.diff_id for layer in image.layers] == [spec.digest_of(layer) for layer in tars]
    assert unpack(image, layers=layers, content=content) == image.chain_id
    assert list(layers.kept.values()) == tars
    assert image.container_config().cmd == ["sh"]
    assert image.container_config().env == []
    assert partials(content) == []


def test_pull_again_fetches_no_blob_and_says_that_the_image_is_up_to_date(registry, fetch, tar):
    server = registry()
    server.add_image("app", "latest", layers=[tar({"a": b"1"})])
    fetch(f"{server.domain}/app")
    before = len(server.fetched("/blobs/"))
    again = fetch(f"{server.domain}/app")
    assert again.status == f"Status: Image is up to date for {server.domain}/app:latest"
    assert not again.newer
    assert len(server.fetched("/blobs/")) == before == 2
    assert "Already exists" in [event.status for event in fetch.events]


def test_a_moved_tag_takes_the_name_from_the_former_image(registry, fetch, store, tar):
    server = registry()
    server.add_image("app", "latest", layers=[tar({"a": b"1"})])
    old = fetch(f"{server.domain}/app").image
    server.add_image("app", "latest", layers=[tar({"a": b"2"})])
    new = fetch(f"{server.domain}/app")
    assert new.newer
    assert store.resolve(f"{server.domain}/app").id == new.image.id != old.id
    assert [reference.tag for reference in store.references(old.id)] == [""]


def test_progress_tells_docker_s_words_in_docker_s_order(registry, fetch, noise):
    server = registry()
    layers = [noise(300_000) for _ in range(5)]
    server.add_image("app", "latest", layers=layers)
    fetch(f"{server.domain}/app")
    assert fetch.events[0].status == "latest: Pulling from app"
    for number in range(len(layers)):
        digest = json.loads(server.manifests["app", "latest"][1])["layers"][number]["digest"]
        own = [event for event in fetch.events if event.layer == digest]
        words = [event.status for event in own]
        expected = [
            "Pulling fs layer",
            *(["Waiting"] if number >= 3 else []),
            "Downloading",
            "Verifying Checksum",
            "Download complete",
        ]
        assert list(dict.fromkeys(words)) == expected
        last = [event for event in own if event.status == "Downloading"][-1]
        assert last.current == last.total == len(server.blobs[digest])


def test_layers_are_fetched_three_at_once(registry, fetch, noise):
    server, gate = registry(), threading.Event()
    server.add_image("app", "latest", layers=[noise(100) for _ in range(6)])
    config = json.loads(server.manifests["app", "latest"][1])["config"]["digest"]
    server.faults.add(f"/blobs/(?!{config})", times=6, pause=gate)
    puller = threading.Thread(target=fetch, args=(f"{server.domain}/app",))
    puller.start()
    deadline = time.monotonic() + 10
    while server.active < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert server.active == 3
    gate.set()
    puller.join()
    assert server.peak == 3


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
def test_the_platform_is_chosen_from_a_list(registry, fetch, docker, tar):
    server = registry()
    entries = []
    for architecture, variant in (("amd64", ""), ("arm64", "v8"), ("arm", "v6")):
        digest = server.add_image(
            "app", "", layers=[tar({architecture: b""})], architecture=architecture, variant=variant, docker=docker
        )
        entries.append((digest, {"os": "linux", "architecture": architecture, "variant": variant}))
    entries.append((entries[0][0], {"os": "unknown", "architecture": "unknown"}))
    index = server.add_index("app", "latest", entries, docker=docker)
    for wanted, expected in (("linux/amd64", 0), ("linux/arm64", 1), ("aarch64", 1), ("linux/arm/v7", 2)):
        pulled = fetch(f"{server.domain}/app", platform=wanted)
        assert (pulled.image.manifest, pulled.digest) == (entries[expected][0], index)
    with pytest.raises(NotFound) as raised:
        fetch(f"{server.domain}/app", platform="linux/s390x")
    assert str(raised.value) == (
        f"{server.domain}/app:latest has no image for linux/s390x; it offers linux/amd64, linux/arm/v6, linux/arm64;"
        " choose one with --platform"
    )


def test_a_single_image_is_held_to_the_platform_that_was_asked_for(registry, fetch, tar):
    server = registry()
    server.add_image("app", "latest", layers=[tar({})], architecture="s390x")
    assert fetch(f"{server.domain}/app").image.config.architecture == "s390x"
    with pytest.raises(NotFound, match="has no image for linux/amd64; it offers linux/s390x"):
        fetch(f"{server.domain}/app", platform="linux/amd64")


def test_an_image_for_another_system_is_refused(registry, fetch):
    server = registry()
    server.add_image("app", "latest", os_name="windows")
    with pytest.raises(NotSupported, match="is an image for windows/amd64, which does not run on Linux"):
        fetch(f"{server.domain}/app")


def test_pull_by_digest_gives_no_tag(registry, fetch, store, tar):
    server = registry()
    digest = server.add_image("app", "latest", layers=[tar({})])
    pulled = fetch(f"{server.domain}/app@{digest}")
    assert [reference.familiar() for reference in store.references(pulled.image.id)] == [
        f"{server.domain}/app@{digest}"
    ]
    assert pulled.status == f"Status: Downloaded newer image for {server.domain}/app@{digest}"


@pytest.mark.parametrize(
    "compress", [gzip.compress, zstandard.ZstdCompressor().compress, bytes], ids=["gzip", "zstd", "plain"]
)
def test_layers_of_each_compression_are_unpacked(registry, fetch, content, layers, compress, tar):
    server, layer = registry(), tar({"a": b"x" * 100_000})
    server.add_image("app", "latest", layers=[layer], compress=compress)
    unpack(fetch(f"{server.domain}/app").image, layers=layers, content=content)
    assert list(layers.kept.values()) == [layer]


def test_the_same_layer_twice_is_fetched_once(registry, fetch, content, layers, tar):
    server, layer = registry(), tar({"a": b""})
    server.add_image("app", "latest", layers=[layer, layer, layer])
    image = fetch(f"{server.domain}/app").image
    assert len(server.fetched("/blobs/")) == 2
    unpack(image, layers=layers, content=content)
    assert len(layers.kept) == 3


def test_an_image_without_layers_can_be_pulled(registry, fetch, content, layers):
    server = registry()
    server.add_image("app", "latest")
    image = fetch(f"{server.domain}/app").image
    assert image.chain_id is None
    assert unpack(image, layers=layers, content=content) is None


# Who may


def test_a_registry_with_tokens_serves_the_anonymous_and_is_asked_once_for_a_token(registry, fetch, noise):
    server = registry(auth="token")
    server.add_image("team/app", "latest", layers=[noise(10) for _ in range(4)])
    fetch(f"{server.domain}/team/app")
    asked = server.fetched("^/token")
    assert len(asked) == 1
    assert "service=the+service" in asked[0][0]
    assert "scope=repository%3Ateam%2Fapp%3Apull" in asked[0][0]


def test_a_token_that_ran_out_is_replaced(registry, fetch, noise):
    server = registry(auth="token")
    server.add_image("app", "latest", layers=[noise(10)])
    reference_manifest = server.manifests["app", "latest"]

    class Forgetful(dict):
        def __getitem__(self, key):
            server.tokens.clear()
            return reference_manifest

    server.manifests = Forgetful(server.manifests)
    fetch(f"{server.domain}/app")
    assert len(server.fetched("^/token")) == 2


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_docker_s_login_file_is_used(registry, fetch, settings, auth, tar):
    server = registry(auth=auth, users={"ann": "s3:cret"})
    server.add_image("app", "latest", layers=[tar({})])
    with open(settings.login_file, "w") as file:
        json.dump({"auths": {server.domain: {"auth": base64.b64encode(b"ann:s3:cret").decode()}}}, file)
    assert fetch(f"{server.domain}/app").newer


def test_a_login_given_goes_before_the_file(registry, fetch, settings):
    server = registry(auth="basic", users={"ann": "right"})
    server.add_image("app", "latest")
    fetch(f"{server.domain}/app", settings=msgspec.structs.replace(settings, login=Credentials("ann", "right")))


def test_an_identity_token_is_exchanged_for_a_token(registry, fetch, settings):
    server = registry(auth="token", users={"ann": "x"})
    server.add_image("app", "latest")
    with open(settings.login_file, "w") as file:
        json.dump({"auths": {f"https://{server.domain}/v1/": {"identitytoken": "refresh me"}}}, file)
    fetch(f"{server.domain}/app")
    assert "POST" in [method for method, path, _ in server.requests if path.startswith("/token")]


def helper(tmp_path, monkeypatch, script):
    program = tmp_path / "bin" / "docker-credential-test"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_a_credential_helper_is_asked(registry, fetch, settings, tmp_path, monkeypatch):
    server = registry(auth="basic", users={"ann": "pw"})
    server.add_image("app", "latest")
    answer = '{"ServerURL":"x","Username":"ann","Secret":"pw"}'
    helper(tmp_path, monkeypatch, f"read host; [ $1 = get ] && [ $host = {server.domain} ] && echo '{answer}'")
    with open(settings.login_file, "w") as file:
        json.dump({"credHelpers": {server.domain: "test"}}, file)
    fetch(f"{server.domain}/app")


def test_a_credential_store_without_the_registry_leaves_us_anonymous(registry, fetch, settings, tmp_path, monkeypatch):
    server = registry(auth="token")
    server.add_image("app", "latest")
    helper(tmp_path, monkeypatch, "echo credentials not found in native keychain; exit 1")
    with open(settings.login_file, "w") as file:
        json.dump({"credsStore": "test"}, file)
    fetch(f"{server.domain}/app")


def test_a_credential_helper_that_fails_is_named(registry, fetch, settings, tmp_path, monkeypatch):
    server = registry(auth="token")
    server.add_image("app", "latest")
    helper(tmp_path, monkeypatch, "echo the vault is locked; exit 1")
    with open(settings.login_file, "w") as file:
        json.dump({"credsStore": "test"}, file)
    with pytest.raises(DriverError) as raised:
        fetch(f"{server.domain}/app")
    assert str(raised.value) == (
        f"docker-credential-test: get {server.domain} failed: the vault is locked; install or"
        " repair it, or take it out of"
        " config.json"
    )


def test_a_damaged_login_file_is_named(registry, fetch, settings):
    server = registry(auth="token")
    server.add_image("app", "latest")
    with open(settings.login_file, "w") as file:
        file.write("{")
    with pytest.raises(ConfigError, match=r"cannot read the login data in .*config.json: .*; repair it or log in"):
        fetch(f"{server.domain}/app")


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_a_refused_login_says_so_at_once_and_keeps_nothing(registry, fetch, settings, content, auth):
    server = registry(auth=auth, users={"ann": "right"})
    server.add_image("app", "latest")
    login = msgspec.structs.replace(settings, login=Credentials("ann", "wrong"))
    with pytest.raises(DriverError) as raised:
        fetch(f"{server.domain}/app", settings=login)
    assert str(raised.value) in [
        f"registry {server.domain}: fetch manifest {server.domain}/app:latest failed: unauthorized:"
        f" {reason}; the repository"
        f" {server.domain}/app may not exist, or needs `docker login {server.domain}`"
        for reason in ("authentication required", "incorrect username or password")
    ]
    assert len(server.fetched("/manifests/")) <= 2
    assert list(content.walk()) == []


def test_the_login_does_not_follow_a_redirect_to_another_host(registry, fetch, settings, tar):
    store = registry()
    server = registry(auth="basic", users={"ann": "pw"}, blobs_at=store.domain)
    server.add_image("app", "latest", layers=[tar({"a": b""})])
    store.blobs = server.blobs
    fetch(f"{server.domain}/app", settings=msgspec.structs.replace(settings, login=Credentials("ann", "pw")))
    assert len(store.fetched("/blobs/")) == 2
    assert not any("Authorization" in headers for _, headers in store.fetched(""))
    assert all("Authorization" in headers for _, headers in server.fetched("/blobs/"))


# What goes wrong


def test_an_unknown_tag_is_named_with_the_registry_s_words(registry, fetch):
    server = registry()
    with pytest.raises(NotFound) as raised:
        fetch(f"{server.domain}/app:9")
    assert str(raised.value) == (
        f"registry {server.domain} has no {server.domain}/app:9: manifest unknown: manifest"
        " unknown; check the name and the"
        f" tag of {server.domain}/app"
    )


def test_a_registry_that_is_not_there_is_said_at_once(fetch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        domain = f"127.0.0.1:{free.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(DriverError) as raised:
            fetch(f"{domain}/app")
    assert str(raised.value) == (
        f"registry {domain}: fetch manifest {domain}/app:latest failed: cannot connect to {domain}:"
        " Connection refused; is a"
        " registry running there?"
    )
    assert time.monotonic() - started < 2


def test_a_host_without_an_address_is_said_at_once(fetch):
    with pytest.raises(DriverError) as raised:
        fetch("no-such-host.invalid/app")
    assert "failed: no address for no-such-host.invalid: " in str(raised.value)
    assert str(raised.value).endswith("; check the name, and this host's DNS")


def test_errors_that_pass_are_outlasted(registry, fetch, noise):
    server = registry()
    server.add_image("app", "latest", layers=[noise(1000)])
    server.faults.add("/manifests/", status=503, times=2)
    server.faults.add("/blobs/", status=429, headers={"Retry-After": "0"}, times=2)
    server.faults.add("/blobs/", cut=0, reset=True, times=2)
    assert fetch(f"{server.domain}/app").newer


def test_errors_that_do_not_pass_end_after_the_tries(registry, fetch, settings):
    server = registry()
    server.add_image("app", "latest")
    server.faults.add("/manifests/", status=500, times=1000)
    with pytest.raises(DriverError) as raised:
        fetch(f"{server.domain}/app")
    assert str(raised.value) == (
        f"registry {server.domain}: fetch manifest {server.domain}/app:latest failed: HTTP 500 Internal Server Error;"
        f" tried {settings.tries} times; try again later"
    )
    assert len(server.fetched("/manifests/")) == settings.tries


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_blob_that_breaks_off_goes_on_where_it_broke(registry, fetch, noise, reset):
    server, layer = registry(), noise(2_000_000)
    server.add_image("app", "latest", layers=[layer])
    digest = json.loads(server.manifests["app", "latest"][1])["layers"][0]["digest"]
    server.faults.add(f"/blobs/{digest}", cut=1_000_000, reset=reset)
    server.faults.add(f"/blobs/{digest}", cut=500_000, reset=reset)
    fetch(f"{server.domain}/app")
    ranges = [headers.get("Range") for _, headers in server.fetched(digest)]
    assert len(ranges) == 3
    assert ranges[0] is None
    if not reset:
        assert ranges[1:] == ["bytes=1000000-", "bytes=1500000-"]


def test_a_registry_without_ranges_sends_a_broken_blob_anew(registry, fetch, noise):
    server = registry(ranges=False)
    server.add_image("app", "latest", layers=[noise(500_000)])
    server.faults.add("/blobs/", cut=100, times=1)
    server.faults.add("/blobs/", cut=300_000, times=1)
    assert fetch(f"{server.domain}/app").newer


def test_a_blob_that_always_breaks_off_at_the_same_byte_is_given_up(registry, fetch, settings, noise):
    server = registry(ranges=False)
    server.add_image("app", "latest", layers=[noise(500_000)])
    digest = json.loads(server.manifests["app", "latest"][1])["layers"][0]["digest"]
    server.faults.add(digest, cut=300_000, times=1000)
    with pytest.raises(
        DriverError, match=r"the connection ended after 300000 of .* bytes; tried 5 times; try again later"
    ):
        fetch(f"{server.domain}/app")


def test_a_blob_with_other_content_is_refused_and_not_kept(registry, fetch, store, content, noise):
    server = registry()
    server.add_image("app", "latest", layers=[noise(1000)])
    layer = json.loads(server.manifests["app", "latest"][1])["layers"][0]
    server.faults.add(layer["digest"], body=b"x" * layer["size"], times=1000)
    with pytest.raises(DriverError) as raised:
        fetch(f"{server.domain}/app")
    found = hashlib.sha256(b"x" * layer["size"]).hexdigest()
    assert str(raised.value) == (
        f"image content: verify {layer['digest']} failed: digest mismatch: the content's is"
        f" sha256:{found}; nothing of it"
        " was kept; pull again, and if that fails too its source is damaged"
    )
    assert not content.has(layer["digest"])
    assert partials(content) == []
    assert list(store.walk()) == []


def test_a_blob_longer_than_announced_is_refused(registry, fetch, noise):
    server = registry()
    server.add_image("app", "latest", layers=[noise(1000)])
    layer = json.loads(server.manifests["app", "latest"][1])["layers"][0]
    server.faults.add(layer["digest"], body=b"x" * (layer["size"] + 1), times=1000)
    with pytest.raises(DriverError, match=f"it is longer than the {layer['size']} bytes announced"):
        fetch(f"{server.domain}/app")


def test_a_manifest_with_other_content_is_refused(registry, fetch):
    server = registry()
    digest = server.add_image("app", "latest")
    server.faults.add("/manifests/", body=b"{}", times=1000)
    with pytest.raises(DriverError, match=f"digest mismatch: {digest} was announced"):
        fetch(f"{server.domain}/app@{digest}")


def test_a_blob_that_is_gone_is_named(registry, fetch, noise):
    server = registry()
    server.add_image("app", "latest", layers=[noise(1000) for _ in range(5)])
    gone = json.loads(server.manifests["app", "latest"][1])["layers"][2]["digest"]
    del server.blobs[gone]
    with pytest.raises(NotFound, match=f"registry {server.domain} has no {gone}: blob unknown"):
        fetch(f"{server.domain}/app")


def test_schema_1_is_refused_in_words(registry, fetch):
    server = registry()
    kind = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    server.add_manifest("app", "latest", {"schemaVersion": 1, "mediaType": kind, "fsLayers": []})
    with pytest.raises(NotSupported) as raised:
        fetch(f"{server.domain}/app")
    assert str(raised.value) == (
        f"{server.domain}/app:latest is an image of manifest schema 1, which is obsolete; its"
        " publisher must push it again"
        " with a current docker, podman or buildkit"
    )


@pytest.mark.parametrize(
    ("manifest", "text"),
    [
        (
            {"mediaType": "application/vnd.cncf.thing"},
            "has the media type application/vnd.cncf.thing, which is no image",
        ),
        ({"mediaType": spec.OCI_MANIFEST, "layers": 3}, "read manifest .* failed: "),
        (
            {
                "mediaType": spec.OCI_MANIFEST,
                "config": {"mediaType": "x/y", "digest": "sha256:" + "0" * 64, "size": 1},
                "layers": [],
            },
            "is no container image: its configuration is of type x/y",
        ),
        (
            {
                "mediaType": spec.OCI_MANIFEST,
                "config": {"mediaType": spec.OCI_CONFIG, "digest": "sha256:" + "0" * 64, "size": 1},
                "layers": [{"mediaType": "x/y", "digest": "sha256:" + "0" * 64, "size": 1}],
            },
            "has a layer of type x/y; supported",
        ),
        (
            {
                "mediaType": spec.OCI_MANIFEST,
                "config": {"mediaType": spec.OCI_CONFIG, "digest": "sha256:../../x", "size": 1},
                "layers": [],
            },
            "invalid digest sha256:../../x",
        ),
    ],
)
def test_what_is_no_image_is_refused(registry, fetch, manifest, text):
    server = registry()
    server.add_manifest("app", "latest", {"schemaVersion": 2, **manifest})
    with pytest.raises((NotSupported, DriverError, ConfigError), match=text):
        fetch(f"{server.domain}/app")


def test_a_config_that_does_not_fit_the_layers_is_refused(registry, fetch, tar):
    server = registry()
    server.add_image("app", "latest", layers=[tar({})])
    manifest = json.loads(server.manifests["app", "latest"][1])
    manifest["layers"] *= 2
    server.add_manifest("app", "latest", manifest)
    with pytest.raises(DriverError, match="the manifest lists 2 layers and the configuration 1"):
        fetch(f"{server.domain}/app")


def test_a_full_disk_is_said_with_what_to_do(registry, store, settings, tmp_path, noise):
    from transom_engine.images.content import ContentStore

    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "transom-test", small], check=True)
    try:
        server = registry()
        server.add_image("app", "latest", layers=[noise(1_000_000)])
        with pytest.raises(DriverError) as raised:
            pull(f"{server.domain}/app", content=ContentStore(small / "content"), store=store, settings=settings)
        assert "failed: No space left on device; free space under " in str(raised.value)
        assert raised.value.errno == 28
    finally:
        subprocess.run(["umount", small], check=True)


# Where


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=registry.test",
            "-addext",
            "subjectAltName=DNS:registry.test,IP:127.0.0.1",
            "-keyout",
            directory / "key",
            "-out",
            directory / "crt",
        ],
        check=True,
        capture_output=True,
    )
    return directory


@pytest.fixture
def secure(registry, certificate, monkeypatch):
    """A registry with TLS, under a name that is not excused as this host is."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "crt", certificate / "key")
    server = registry(context=context)
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: resolve("127.0.0.1" if host == "registry.test" else host, *rest, **more),
    )
    server.domain = server.domain.replace("127.0.0.1", "registry.test")
    return server


def test_a_certificate_that_nobody_vouches_for_is_refused(secure, fetch, settings):
    secure.add_image("app", "latest")
    with pytest.raises(DriverError) as raised:
        fetch(f"{secure.domain}/app")
    assert str(raised.value) == (
        f"registry {secure.domain}: fetch manifest {secure.domain}/app:latest failed: the"
        f" certificate of {secure.domain} is"
        " not trusted: self-signed certificate; put its authority's into"
        f" {settings.certificates}/{secure.domain}/ca.crt or"
        f" list {secure.domain} in insecure-registries"
    )


def test_a_certificate_in_the_registry_s_directory_is_trusted(secure, fetch, settings, certificate):
    secure.add_image("app", "latest")
    directory = os.path.join(settings.certificates, secure.domain)
    os.makedirs(directory)
    with open(os.path.join(directory, "ca.crt"), "wb") as file:
        file.write((certificate / "crt").read_bytes())
    assert fetch(f"{secure.domain}/app").newer


@pytest.mark.parametrize("entry", ["{}", "registry.test", "127.0.0.0/16"])
def test_an_insecure_registry_s_certificate_is_not_checked(secure, fetch, settings, entry):
    secure.add_image("app", "latest")
    insecure = msgspec.structs.replace(settings, insecure=(entry.format(secure.domain),))
    assert fetch(f"{secure.domain}/app", settings=insecure).newer


def test_plain_http_is_spoken_to_this_host_and_refused_to_others(registry, fetch, monkeypatch):
    server = registry()
    server.add_image("app", "latest")
    port = server.domain.partition(":")[2]
    assert fetch(f"localhost:{port}/app").newer
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: resolve("127.0.0.1" if host == "registry.test" else host, *rest, **more),
    )
    with pytest.raises(DriverError) as raised:
        fetch(f"registry.test:{port}/app")
    assert f"failed: registry.test:{port} does not speak TLS: " in str(raised.value)
    assert str(raised.value).endswith(f"; if it speaks plain HTTP, list registry.test:{port} in insecure-registries")


def test_a_registry_on_ipv6_is_reached(registry, fetch, store):
    try:
        server = registry(host="::1")
    except OSError as error:
        pytest.skip(f"no IPv6 loopback: {error}")
    server.add_image("app", "latest")
    pulled = fetch(f"{server.domain}/app")
    assert store.resolve(f"{server.domain}/app") == pulled.image
    assert server.domain.startswith("[::1]:")


def test_a_mirror_is_asked_first_and_the_hub_only_if_it_fails(registry, fetch, settings, content, store, tar):
    mirror, empty = registry(), registry()
    mirror.add_image("library/busybox", "latest", layers=[tar({"bin/sh": b""})])
    mirrored = msgspec.structs.replace(settings, mirrors=(f"http://{empty.domain}", f"http://{mirror.domain}/"))
    pulled = fetch("busybox", settings=mirrored)
    assert pulled.status == "Status: Downloaded newer image for busybox:latest"
    assert len(empty.fetched("/library/busybox/")) == 3
    assert store.resolve("busybox").id == pulled.image.id


def test_the_hub_s_host_is_asked_for_short_names():
    with Registry("docker.io", settings=Settings()) as hub:
        assert [endpoint._bases for endpoint in hub._endpoints] == [[f"https://{HUB_HOST}"]]


def test_a_mirror_that_is_no_url_is_refused(fetch, settings):
    with pytest.raises(ConfigError) as raised:
        fetch("busybox", settings=msgspec.structs.replace(settings, mirrors=("mirror.test",)))
    assert (
        str(raised.value) == "invalid registry mirror mirror.test: it reads https://HOST[:PORT] or http://HOST[:PORT]"
    )


def test_a_proxy_of_the_environment_is_used_but_not_for_this_host(registry, fetch, monkeypatch, settings):
    proxy, server = registry(), registry()
    server.add_image("app", "latest")
    monkeypatch.setenv("http_proxy", f"http://ann:pw@{proxy.domain}")
    fetch(f"{server.domain}/app")
    assert proxy.requests == []
    proxy.add_image("library/busybox", "latest")
    fetch("busybox", settings=msgspec.structs.replace(settings, mirrors=("http://mirror.invalid",)))
    path, headers = proxy.fetched("/manifests/")[0]
    assert path == "http://mirror.invalid/v2/library/busybox/manifests/latest"
    assert headers["Proxy-Authorization"] == "Basic " + base64.b64encode(b"ann:pw").decode()


# Killed


PULL = """
import sys
from transom_engine.images.content import ContentStore
from transom_engine.images.store import ImageStore
from transom_engine.images.pull import pull
from transom_engine.images.registry import Settings
root, name = sys.argv[1:]
content = ContentStore(root + "/content")
pull(name, content=content, store=ImageStore(root, content), settings=Settings(login_file="/nonexistent", delay=0.01))
"""


def test_a_pull_that_was_killed_fetches_only_the_rest(registry, fetch, content, store, tmp_path, noise):
    server, hold = registry(), threading.Event()
    layers = [noise(1_000_000), noise(700_000)]
    server.add_image("app", "latest", layers=layers)
    blobs = [layer["digest"] for layer in json.loads(server.manifests["app", "latest"][1])["layers"]]
    server.faults.add(blobs[0], cut=400_000, hold=hold)
    child = subprocess.Popen([sys.executable, "-c", PULL, str(tmp_path / "images"), f"{server.domain}/app"])
    partial = f"{content.root}/ingest/sha256-{blobs[0][7:]}.partial"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (
        os.path.exists(partial) and os.path.getsize(partial) >= 390_000 and content.has(blobs[1])
    ):
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    hold.set()
    kept = os.path.getsize(partial)
    assert kept >= 390_000
    assert list(store.walk()) == []
    server.requests.clear()
    fetch(f"{server.domain}/app")
    assert [(path.rpartition("/")[2], headers.get("Range")) for path, headers in server.fetched("/blobs/")] == [
        (blobs[0], f"bytes={kept}-")
    ]
    assert partials(content) == []


def test_a_partial_that_a_power_loss_damaged_is_fetched_anew(registry, fetch, content, noise):
    server = registry()
    server.add_image("app", "latest", layers=[noise(100_000)])
    layer = json.loads(server.manifests["app", "latest"][1])["layers"][0]
    content._prepare()
    with open(f"{content.root}/ingest/sha256-{layer['digest'][7:]}.partial", "wb") as file:
        file.write(bytes(50_000))
    fetch(f"{server.domain}/app")
    assert [headers.get("Range") for _, headers in server.fetched(layer["digest"])] == ["bytes=50000-", None]


def test_two_processes_that_pull_the_same_image_fetch_each_blob_once(registry, content, store, tmp_path, noise):
    server = registry()
    server.add_image("app", "latest", layers=[noise(2_000_000), noise(1_000_000)])
    command = [sys.executable, "-c", PULL, str(tmp_path / "images"), f"{server.domain}/app"]
    children = [subprocess.Popen(command) for _ in range(3)]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert len(server.fetched("/blobs/")) == 3
    assert partials(content) == []
    assert len(list(store.walk())) == 1


def test_a_failed_pull_leaves_no_thread_and_no_descriptor(registry, fetch, settings, noise):
    server = registry()
    server.add_image("app", "latest", layers=[noise(200_000) for _ in range(6)])
    gone = json.loads(server.manifests["app", "latest"][1])["layers"][3]["digest"]
    before = {thread.name for thread in threading.enumerate()}
    del server.blobs[gone]
    with pytest.raises(NotFound):
        fetch(f"{server.domain}/app")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(
        "work" in thread.name for thread in threading.enumerate() if thread.name not in before
    ):
        time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if "work" in thread.name and thread.name not in before]
    open_files = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert not [path for path in open_files if "/ingest/" in path or path.endswith("/content/lock")]
