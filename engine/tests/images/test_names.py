"""Image names: Docker's short forms, the grammar of distribution/reference, and what refuses them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import ConfigError
from transom_engine.images.names import Reference, parse, short_id

HEX = "0123456789abcdef" * 4
HELP = "a name reads [HOST[:PORT]/]PATH[:TAG][@sha256:HEX]"


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("docker.io/library/foo/bar", "docker.io/library/foo/bar:latest", "library/foo/bar:latest"),
        ("team/app", "docker.io/team/app:latest", "team/app:latest"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000/app:2", "localhost:5000/app:2", "localhost:5000/app:2"),
        ("quay.io/a/b/c", "quay.io/a/b/c:latest", "quay.io/a/b/c:latest"),
        ("Host/app", "Host/app:latest", "Host/app:latest"),
        ("[2001:db8::1]:5000/app", "[2001:db8::1]:5000/app:latest", "[2001:db8::1]:5000/app:latest"),
        ("a__b/c-d.e_f---g", "docker.io/a__b/c-d.e_f---g:latest", "a__b/c-d.e_f---g:latest"),
        ("app:5000", "docker.io/library/app:5000", "app:5000"),
        (f"app@sha256:{HEX}", f"docker.io/library/app@sha256:{HEX}", f"app@sha256:{HEX}"),
        (f"app:1@sha256:{HEX}", f"docker.io/library/app:1@sha256:{HEX}", f"app:1@sha256:{HEX}"),
        ("app:" + "t" * 128, "docker.io/library/app:" + "t" * 128, "app:" + "t" * 128),
        (HEX[:63], f"docker.io/library/{HEX[:63]}:latest", f"{HEX[:63]}:latest"),
    ],
)
def test_names_are_read_and_printed_as_docker_does(text, full, familiar):
    assert str(parse(text)) == full
    assert parse(text).familiar() == familiar


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", f"an image name is missing: {HELP}"),
        (HEX, f"invalid image name {HEX}: 64 hexadecimal digits are an image's id; choose another name"),
        (
            "BusyBox",
            "invalid image name BusyBox: repository name (BusyBox) must be lowercase; did you mean busybox?",
        ),
        (
            "quay.io/App:1",
            "invalid image name quay.io/App:1: repository name (App) must be lowercase; did you mean app?",
        ),
        (
            "app:-x",
            "invalid image name app:-x: -x is no tag (1 to 128 letters, digits, _ . and -, not beginning with . or -);"
            f" {HELP}",
        ),
        ("app@x", f"invalid image name app@x: x is no digest; {HELP}"),
        ("app@sha256:abc", f"invalid image name app@sha256:abc: sha256:abc is no digest; {HELP}"),
        (
            f"app@sha512:{HEX}",
            f"unsupported digest sha512:{HEX}: the algorithm is sha512, only sha256 is supported",
        ),
        (
            f"app@sha256:{HEX[:40]}",
            f"invalid digest sha256:{HEX[:40]}: sha256: is followed by 64 lower-case hexadecimal digits",
        ),
        ("-host.x/app", f"invalid image name -host.x/app: -host.x is no host; {HELP}"),
        (
            "a..b",
            "invalid image name a..b: the path library/a..b has parts other than lower-case letters"
            " and digits joined by"
            f" . _ __ or -; {HELP}",
        ),
        (
            "a//b",
            "invalid image name a//b: the path a//b has parts other than lower-case letters and digits joined by . _ __"
            f" or -; {HELP}",
        ),
        (
            "a/" + "b" * 300,
            f"invalid image name a/{'b' * 38}...: host and path have 312 characters, at most 255 are allowed",
        ),
    ],
)
def test_what_is_no_name_is_refused_in_words(text, error):
    with pytest.raises(ConfigError) as raised:
        parse(text)
    assert str(raised.value) == error


@pytest.mark.parametrize("text", ["app\n", "a b", "äpp", "app:tag/x", "[::1/app", "a.b:c/d", ".app", "app_", "../x/y"])
def test_odd_characters_are_refused(text):
    with pytest.raises(ConfigError, match=r"^invalid image name "):
        parse(text)


def test_without_a_default_tag_none_is_added():
    assert parse("app", default_tag=False) == Reference(domain="docker.io", path="library/app")


def test_an_id_is_shortened_as_docker_does():
    assert short_id(f"sha256:{HEX}") == "0123456789ab"


parts = st.from_regex(r"[a-z0-9]{1,8}([._-][a-z0-9]{1,8})?", fullmatch=True)
domains = st.sampled_from(["docker.io", "localhost", "quay.io", "h:5000", "[::1]:5000", "Upper"])


@given(
    domain=domains, path=st.lists(parts, min_size=1, max_size=4), tag=st.from_regex(r"[\w][\w.-]{0,20}", fullmatch=True)
)
def test_what_is_printed_reads_as_the_same(domain, path, tag):
    if not tag.isascii() or len("".join(path)) == 64:
        return
    reference = parse(f"{domain}/{'/'.join(path)}:{tag}")
    assert parse(str(reference)) == reference == parse(reference.familiar())


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_as_configuration(text):
    try:
        reference = parse(text)
    except ConfigError:
        return
    assert parse(reference.familiar()) == reference
