"""Unpacking: verified, in order, and nothing is kept that is not what the image says."""

import io

import pytest

from transom.errors import Conflict, ContractError, DriverError, NotFound
from transom_engine.images import spec
from transom_engine.images.store import Image
from transom_engine.images.unpack import unpack


@pytest.fixture
def image(content, tar):
    """An image of two layers; the uncompressed tars go with it."""
    tars = [tar({"a": b"1"}), tar({"b": b"2"})]
    chain = spec.chain_ids([spec.digest_of(one) for one in tars])
    layers = tuple(
        spec.Layer(digest=content.ingest(one), diff_id=spec.digest_of(one), chain_id=name, size=len(one), media_type="")
        for one, name in zip(tars, chain, strict=True)
    )
    return Image(id=spec.digest_of(b"c"), manifest=spec.digest_of(b"m"), layers=layers, raw_config=b"{}"), tars


def test_only_missing_layers_are_unpacked_upon_their_parents(image, content, layers):
    made, tars = image
    layers.kept[made.layers[0].chain_id] = tars[0]
    told, measured = [], {}
    top = unpack(
        made, layers=layers, content=content, progress=lambda *line: told.append(line), measured=measured.__setitem__
    )
    assert top == made.chain_id
    assert layers.kept[top] == tars[1]
    assert told == [(made.layers[1].digest, "Extracting"), (made.layers[1].digest, "Pull complete")]
    assert measured == {made.layers[1].diff_id: len(tars[1])}


def test_content_other_than_the_configuration_says_is_not_kept(image, content, layers, tar):
    made, _ = image
    with open(content.path(made.layers[1].digest), "wb") as file:
        file.write(tar({"evil": b""}))
    with pytest.raises(DriverError) as raised:
        unpack(made, layers=layers, content=content)
    assert str(raised.value) == (
        f"image layer: unpack {made.layers[1].diff_id} failed: digest mismatch: the uncompressed content's is"
        f" {spec.digest_of(tar({'evil': b''}))}; the image is damaged where it comes from; the layer was not kept"
    )
    assert list(layers.kept) == [made.layers[0].chain_id]


def test_damaged_compressed_content_is_said_and_not_kept(image, content, layers):
    made, _ = image
    with open(content.path(made.layers[0].digest), "wb") as file:
        file.write(b"\x1f\x8b\x08" + b"\xff" * 100)
    with pytest.raises(
        DriverError, match=f"image layer: decompress {made.layers[0].digest} failed: the gzip data is damaged"
    ):
        unpack(made, layers=layers, content=content)
    assert layers.kept == {}


def test_a_blob_that_is_gone_is_said(image, content, layers):
    made, _ = image
    content.delete(made.layers[0].digest)
    with pytest.raises(NotFound, match="is not here; pull its image again"):
        unpack(made, layers=layers, content=content)


def test_whoever_comes_second_finds_the_layer_there(image, content, layers):
    made, _ = image

    class Racing(type(layers)):
        def apply(self, *, chain_id, parent, stream):
            self.kept[chain_id] = b"by another process"
            raise Conflict("exists")

    racing = Racing()
    assert unpack(made, layers=racing, content=content) == made.chain_id
    assert set(racing.kept) == {layer.chain_id for layer in made.layers}


def test_a_target_that_keeps_what_was_not_verified_breaks_the_contract(image, content, layers):
    made, _ = image

    class Careless(type(layers)):
        def apply(self, *, chain_id, parent, stream):
            self.kept[chain_id] = stream.read(10)

    with pytest.raises(ContractError, match=r"before stream.finish\(\) verified it"):
        unpack(made, layers=Careless(), content=content)


def test_trailing_bytes_count_towards_the_digest(content, layers, tar):
    data = tar({"a": b""}) + b"trailer"
    layer = spec.Layer(
        digest=content.ingest(io.BytesIO(data)),
        diff_id=spec.digest_of(data),
        chain_id=spec.digest_of(data),
        size=1,
        media_type="",
    )
    made = Image(id="sha256:" + "0" * 64, manifest="", layers=(layer,), raw_config=b"{}")
    assert unpack(made, layers=layers, content=content) == layer.chain_id
