"""What was changed behind the driver's back is reported, and made good while everybody else goes on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec
import pytest

from transom.contract.network import Endpoint, Port
from transom.services.netns import inside
from transom_conformance.network.cases import NetworkCases
from transom_conformance.network.site import (
    HOST,
    TCP,
    Container,
    Has,
    Site,
    Stream,
    ip_json,
    plain,
    requires,
    talk,
)

INSIDE: dict[str, Callable[[str, Endpoint], str]] = {
    "the interface is down": lambda name, _: f"link set {name} down",
    "the interface is gone": lambda name, _: f"link delete {name}",
    "the MTU is another": lambda name, _: f"link set {name} mtu 1300",
    "the address is gone": lambda name, e: f"address delete {_whole(e)} dev {name}",
    "the IPv6 address is gone": lambda name, e: f"address delete {_whole(e, ipv6=True)} dev {name}",
}
"""Commands of ip(8) that spoil an endpoint's interface in the container."""
OUTSIDE: dict[str, tuple[str, Callable[[str], bool]]] = {
    "down": ("link set {} down", lambda name: bool(_link(name))),
    "gone": ("link delete {}", lambda name: bool(_link(name))),
    "out of its bridge": ("link set {} nomaster", lambda name: "master" in _link(name)),
    "addresses gone": ("address flush dev {} scope global", lambda name: bool(_addresses(name))),
    "route gone": ("route flush root 10.88.0.0/16 dev {}", lambda name: bool(_routes(name, "-4"))),
    "IPv6 route gone": ("-6 route flush root fd88::/16 dev {}", lambda name: bool(_routes(name, "-6"))),
}
"""Commands that spoil an interface of the host, and whether it has what they take away."""


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=True)


def _rules() -> str:
    return subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout


def _link(name: str) -> dict[str, object]:
    found = {link["ifname"]: link for link in ip_json("link")}
    return dict(found.get(name, {}))


def _addresses(name: str) -> list[object]:
    found = ip_json("address", "show", "dev", name, "scope", "global") if _link(name) else []
    return [address for link in found for address in link.get("addr_info", ())]


def _routes(name: str, family: str) -> list[object]:
    pool = "10.88.0.0/16" if family == "-4" else "fd88::/16"
    return list(ip_json(family, "route", "show", "root", pool, "dev", name)) if _link(name) else []


def _whole(endpoint: Endpoint, *, ipv6: bool = False) -> str:
    return next(address for address in endpoint.addresses if (":" in address) == ipv6)


class Tampering(NetworkCases):
    """What was changed behind the driver's back is reported, and made good while everybody else goes on."""

    # Tampering

    @requires(Has.L2)
    def test_check_finds_nothing_wrong_with_what_was_just_made(self, site: Site) -> None:
        """L9: a false alarm would be repaired again and again."""
        network = site.network()
        assert site.driver.check(network=network, endpoints=()) == []
        ends = tuple(site.joined(network)[1] for _ in range(3))
        assert site.driver.check(network=network, endpoints=ends) == []

    @requires(Has.L2)
    def test_an_endpoint_that_was_spoiled_is_reported_and_joins_again_and_its_siblings_lose_no_byte(
        self, site: Site
    ) -> None:
        """L9, L10: the line names the endpoint and no other one; the ports that it had are published again."""
        place = Place(site)
        spoiled = place.join()
        with place.siblings():
            others = [member.endpoint.id[:12] for member in place.members[1:]]
            for what, command in INSIDE.items():
                if "IPv6" in what and not site.has(Has.IPV6):
                    continue
                links = [link["ifname"] for link in spoiled.container.ip("link")]
                name = next(name for name in links if name.startswith("eth"))
                inside(spoiled.container.netns, _ip, command(name, spoiled.endpoint))
                said = place.check()
                assert any(spoiled.endpoint.id[:12] in line for line in said), f"{what}, is not among {said}"
                assert not any(other in line for other in others for line in said), said
                place.repair()
                assert place.check() == [], what
                place.works()

    @requires(Has.L2)
    def test_what_was_spoiled_on_the_host_is_reported_and_made_good(self, site: Site) -> None:
        """L9, L10, P9: each interface that the driver made, and the rules; connections live on."""
        before = _links(site)
        place = Place(site)
        if not _links(site) - before:
            pytest.skip("the driver makes no interface on the host")
        place.join()
        with place.siblings():
            for what, (command, there) in OUTSIDE.items():
                for name in sorted(_links(site) - before):
                    if not inside(site.host, there, name):
                        continue  # it has nothing of the sort, or went with another one
                    inside(site.host, _ip, command.format(name))
                    assert place.check(), f"{name}, {what}, is not reported"
                    place.repair()
                    assert place.check() == [], f"{name}, {what}, is not made good"
                    place.works()
        if site.has(Has.PUBLISH) and shutil.which("nft") and inside(site.host, _rules):
            inside(site.host, subprocess.run, ["nft", "flush", "ruleset"], check=True)  # connections are lost by that
            assert place.check(), "a flushed ruleset is not reported"
            place.repair()
            assert place.check() == [], "a flushed ruleset is not made good"
            place.works()


def _links(site: Site) -> set[str]:
    return {link["ifname"] for link in inside(site.host, ip_json, "link")}


class Member:
    """A container, the endpoint by which it is on the network, its server, and the ports that it wants published."""

    def __init__(self, container: Container, endpoint: Endpoint, ports: tuple[Port, ...]) -> None:
        self.container, self.endpoint, self.ports = container, endpoint, ports
        self.server = container.listen(TCP, 80)


class Place:
    """A network, its containers, and core's way of putting it right."""

    def __init__(self, site: Site, **fields: Any) -> None:
        self.site, self.network = site, site.network(**fields)
        self.members: list[Member] = []

    def join(self) -> Member:
        """Make a container on the network, with a published port where there are any."""
        container, endpoint = self.site.joined(self.network)
        ports = (Port(container=80, host=8080 + len(self.members)),) if self.site.has(Has.PUBLISH) else ()
        member = Member(container, endpoint, ports)
        self.members.append(member)
        self._publish(member)
        return member

    def _publish(self, member: Member) -> None:
        if member.ports:
            words = {"network": self.network, "endpoint": member.endpoint, "ports": member.ports}
            member.endpoint = msgspec.structs.replace(member.endpoint, ports=self.site.driver.publish(**words))

    @contextmanager
    def siblings(self) -> Iterator[None]:
        """Keep numbers going between two more containers, and from the neighbour to a published port."""
        client, member = self.join(), self.join()
        with ExitStack() as stack:
            streams = [Stream(client.container.netns, member.server, plain(member.endpoint))]
            if member.ports:
                streams.append(Stream(self.site.neighbour, member.server, HOST, member.ports[0].host))
            for stream in streams:
                stack.enter_context(stream)
            yield
            for stream in streams:
                stream.goes_on()

    def check(self, *members: Member) -> list[str]:
        """Return what the driver says of the network and all its endpoints, or of some."""
        ends = tuple(member.endpoint for member in members or self.members)
        found: list[str] = self.site.driver.check(network=self.network, endpoints=ends)
        return found

    def repair(self) -> None:
        """Do as core does: make the network anew, then have those endpoints join again that this does not help."""
        driver, network = self.site.driver, self.network
        driver.create_network(network=network)
        for member in self.members:
            if {*self.check(member)} <= {*driver.check(network=network, endpoints=())}:
                continue
            driver.detach(network=network, endpoint=member.endpoint)
            member.container.join(network, member.endpoint)
            self._publish(member)

    def works(self) -> None:
        """See that every container is reached by the one before, and at its port by the neighbour."""
        for before, member in zip(self.members, self.members[1:] + self.members[:1], strict=True):
            assert talk(before.container.netns, member.server, plain(member.endpoint))
            if member.ports:
                assert talk(self.site.neighbour, member.server, HOST, member.ports[0].host)
