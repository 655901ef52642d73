"""docs/networking.md says what is so: its commands run, in their order, and its error texts are those of the code."""

import os
import re
import shlex
import socket
import subprocess
from pathlib import Path

import pytest

from transom.services.netns import create, inside
from transom_conformance.network import ip_batch, ip_json

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "networking.md").read_text()
OFFICE, ELSEWHERE = "192.168.1.77", "203.0.113.7"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def neighbour(transom):
    """A neighbour of the host on its LAN, with an address of the office's and one of elsewhere."""
    netns = create()
    inside(
        transom.netns, ip_batch,
        f"link add eth0 type veth peer name lan0 netns /proc/{os.getpid()}/fd/{netns}",
        "address add 192.168.1.10/24 dev eth0", "link set eth0 up", "route add default via 192.168.1.1",
    )  # fmt: skip
    inside(
        netns, ip_batch,
        f"address add {OFFICE}/24 dev lan0", f"address add {ELSEWHERE}/32 dev lan0", "link set lan0 up",
    )  # fmt: skip
    yield netns
    os.close(netns)


def hears(netns, address, port, source=""):
    """Say whether somebody answers there."""
    try:
        with inside(
            netns, socket.create_connection, (address, port), timeout=2, source_address=(source, 0) if source else None
        ) as client:
            return client.recv(100) == b"hello\n"
    except OSError:
        return False


def test_the_commands_run_and_do_what_the_page_says(transom, neighbour):
    for line in (line for block in blocks("sh") for line in block.splitlines()):
        words = shlex.split(line)
        assert words[0] == "transom", line
        out = transom(*words[1:])
        if words[1:3] == ["network", "exposed"]:
            assert [row.split() for row in out.splitlines()[1:]] == [
                ["192.168.1.10", "8081/tcp", "shop", "80/tcp", "front", "published"]
            ]
            assert hears(neighbour, "192.168.1.10", 8081)
            assert not hears(neighbour, "192.168.1.10", 8080)
            assert hears(transom.netns, "127.0.0.1", 8080)
        if "nslookup" in words:
            assert transom.inspect("web")["NetworkSettings"]["Networks"]["app"]["IPAddress"] in out
    inside(transom.netns, ip_batch, f"route add {ELSEWHERE}/32 dev eth0")
    assert hears(neighbour, "192.168.1.10", 8081, ELSEWHERE)
    (rules,) = blocks("nft")
    inside(transom.netns, subprocess.run, ["nft", "-f", "-"], input=rules, text=True, check=True)
    assert hears(neighbour, "192.168.1.10", 8081, OFFICE)
    assert not hears(neighbour, "192.168.1.10", 8081, ELSEWHERE)
    api = transom.inspect("api")["NetworkSettings"]["Networks"]
    assert ({*api}, api["app"]["GwPriority"]) == ({"app", "data"}, 1)
    assert transom.inspect("tv")["NetworkSettings"]["Networks"]["lan"]["IPAddress"] == "192.168.1.140"
    assert transom.inspect("lan2")["ConfigFrom"] == {"Network": "lan-here"}
    assert "lan2" in transom("network", "ls", "--format", "{{.Name}}").split()
    assert any(link["ifname"].startswith("mh-") for link in inside(transom.netns, ip_json, "link"))


def test_its_error_texts_are_those_of_the_code():
    table = PAGE.partition("| The text says |")[2].partition("\n\n")[0]
    texts = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    source = "\n".join(
        path.read_text()
        for folder in ("engine/src", "core/src", "plugins/network")
        for path in (ROOT / folder).rglob("*.py") if "tests" not in path.parts
    )  # fmt: skip
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a text over several lines
    source = re.sub(r"\{reasons\[last\]\}", "a program on this host uses it", source)
    assert len(texts) > 10
    assert [text for text in texts if text not in source] == []


def test_its_options_are_those_of_the_drivers(tmp_path):
    from transom.drivers import Drivers

    names = {"bridge", "macvlan", "ipvlan", "overlay"}
    known = set()
    for name in names:
        driver = Drivers(state=tmp_path, run=tmp_path).load("network", name)
        known |= {*driver.NetworkOptions.__struct_encode_fields__, *driver.Options.__struct_encode_fields__}
    written = set(re.findall(r"-o\s([a-z][\w.-]*)=", PAGE)) | set(re.findall(r"--opt ([a-z]+)", PAGE))
    assert written - known == set()
