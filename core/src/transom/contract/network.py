"""The network contract: networks, and the endpoints by which containers join them.

Glossary
    network     something that endpoints join: a bridge, a parent interface with its macvlan children, a
                VXLAN segment over several hosts, the host itself.
    endpoint    one container's place on one network: a name on it, addresses, an interface.
    namespace   a Linux network namespace (network_namespaces(7)), handed over as a descriptor. The engine
                makes it without a name in the file system, so the kernel takes it and every interface in
                it away when the last process that holds it dies.
    publish     make a container's port reachable at an address of the host.

Life cycle::

    create_network(network) ----------------------------------------> delete_network(network)
         netns(endpoint) -> whose namespace the container gets
         attach(network, endpoint, netns) -> Attachment ---> detach(network, endpoint)
              publish(network, endpoint, ports) -> bound --> unpublish(network, endpoint)
              watch(network, endpoint, netns, stop, changed): while attached, for drivers that must keep at it

Everything a driver is told is in the `Network` and the `Endpoint` that it is given at each call: it keeps no
records of its own. What it makes on the host carries an id it can read back, so that `owned` can report it:
core compares that with its records and detaches or deletes what has no record. A driver that keeps state at a
remote end (an overlay's etcd) reports only this host's part.

Addresses
    By default core's IPAM (`transom.services.ipam`) gives each endpoint its addresses and the driver sets
    them. A driver whose addresses come from elsewhere (macvlan by DHCP, an overlay whose pool several hosts
    share) declares `NetworkCapability.ADDRESSES`, and says by `keeps_addresses` for which networks: for those
    core calls `settle` before `create_network`, `allocate` before `attach` and `release` after `detach`.
    `allocate` may leave an endpoint without an address when that is only known inside the namespace (DHCP);
    `attach` then returns it in the `Attachment`, and `watch` renews the lease and says what has changed with it.

Routes
    A driver makes no default route. It reports the next hops of an endpoint's network (`Attachment.gateways`);
    a container may be on several networks, and core makes the default routes of the one with the highest
    priority, for each address family, and of the next one when that is left (`transom.services.interfaces`).
    Nor does it announce an endpoint's addresses to its neighbours: core does, from the container's supervisor.

Several hosts
    Networks of a driver with `NetworkCapability.MULTI_HOST` are made on one host and used on all. The driver
    keeps them where all hosts look (`create_network`, `delete_network`), and `networks` lists them; core takes
    those that it has no record of as its own, with the same id.

Whose namespace
    `netns` returns `Netns(own)`, `Netns(host)` or `Netns(container, of=ID)`. In the last two cases the engine
    makes no namespace and calls neither `attach` nor `publish`. A driver with `NetworkCapability.REFERENCE`
    is selected by ``NAME:REFERENCE`` on the command line; `Endpoint.reference` carries the text after the
    colon, resolved to a container id by the engine.

A worked example, a driver whose containers have only a loopback::

    class Null(NetworkDriver):
        name = "none"
        api = 1

        def create_network(self, network): ...
        def delete_network(self, network): ...
        def attach(self, network, endpoint, netns):
            set_loopback_up(netns)
            return Attachment()
        def detach(self, network, endpoint): ...
        def owned(self):
            return Owned()
"""

from __future__ import annotations

import enum
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import msgspec

from transom.contract import Capability, Driver, NoOptions, operation


class NetworkCapability(Capability):
    """What a network driver can do beyond joining containers to something."""

    L2 = "l2"
    """Endpoints get an interface and reach each other."""
    PUBLISH = "publish"
    """`NetworkDriver.publish`: makes ports reachable at the host."""
    NAMES = "names"
    """Containers on a user-defined network find each other by name through the engine's resolver."""
    LOOKUP = "lookup"
    """`NetworkDriver.lookup`: knows the names of endpoints on other hosts."""
    ADDRESSES = "addresses"
    """`NetworkDriver.settle`, `allocate`, `release`: addresses need not come from core's IPAM."""
    IPV6 = "ipv6"
    """Networks may have IPv6 subnets."""
    INTERNAL = "internal"
    """`Network.internal` is honoured: no way out of the network."""
    HOT_PLUG = "hot-plug"
    """`attach` and `detach` work while the container runs; a container can be on several networks."""
    MAC = "mac"
    """Each endpoint has a MAC address of its own, that of `Endpoint.mac` where one is asked for."""
    ANTISPOOF = "antispoof"
    """With the network option ``antispoof=true`` no endpoint can send frames that bear another's addresses."""
    MULTI_HOST = "multi-host"
    """One network spans hosts; `NetworkDriver.networks` lists those of all hosts."""
    WATCH = "watch"
    """`NetworkDriver.watch` must run while an endpoint is attached."""
    REFERENCE = "reference"
    """Selected as ``NAME:CONTAINER``; networks of this driver are not created by users."""
    SINGLETON = "singleton"
    """There is exactly one network of this driver, with the driver's name; users create and remove none."""
    DEFAULT = "default"
    """Can carry the default network, with core's address pools and Docker's ``bip`` key."""


class Subnet(msgspec.Struct, frozen=True):
    """A range of addresses of a network; all texts are in CIDR or plain address notation (RFC 4632, 4291).

    Attributes:
        pool: the subnet, "172.18.0.0/16".
        gateway: an address in it, or None when the network has no way out through this subnet.
        range: the part of the pool that endpoints get addresses from; None for all of it.
        reserved: addresses never given to endpoints (Docker's --aux-address), by name.
    """

    pool: str
    gateway: str | None = None
    range: str | None = None
    reserved: dict[str, str] = {}


class Network(msgspec.Struct, frozen=True):
    """A network as the engine records it.

    Attributes:
        id: 64 hexadecimal digits.
        name: unique on this host; on every host where the driver spans several.
        options: the driver's own, an instance of `NetworkDriver.NetworkOptions`.
        subnets: at most one IPv4 and any number of IPv6 ones, settled by core's IPAM or by the driver.
        internal: endpoints reach each other and nothing else.
        default: it is the host's default network: no resolver, no aliases (Docker's rule).
        mtu: in bytes; None lets the driver derive it from what carries the network.
    """

    id: str
    name: str
    options: msgspec.Struct = NoOptions()
    subnets: tuple[Subnet, ...] = ()
    internal: bool = False
    default: bool = False
    mtu: int | None = None
    labels: dict[str, str] = {}


class Port(msgspec.Struct, frozen=True):
    """A container's port and where it is published.

    Attributes:
        container: 1 to 65535.
        protocol: ``tcp``, ``udp`` or ``sctp``.
        host: the first host port; 0 asks for a free one of the kernel's ephemeral range.
        host_end: the last of the host ports that will do; 0 means just `host`.
        address: the host's address, IPv4 or IPv6; empty means every address of both families.
    """

    container: int
    protocol: str = "tcp"
    host: int = 0
    host_end: int = 0
    address: str = ""


class Endpoint(msgspec.Struct, frozen=True):
    """One container's place on one network.

    Attributes:
        id: 64 hexadecimal digits; a new one for each attachment.
        container: the container's id.
        names: what other endpoints may call it: container name, short id, aliases.
        addresses: with prefix length ("172.18.0.2/16"), IPv4 first; empty when the driver is to choose.
        link_local: addresses with prefix that the interface has besides, "169.254.9.9/16" (RFC 3927; RFC 4291, 2.5.6).
        static: the addresses were asked for by the user; the driver may not change them.
        mac: "02:42:ac:12:00:02", or None for the driver's choice. A driver derives it from the address where
            it can, so that a neighbour's cache stays right when an address is used again.
        interface: the wanted name in the container, or None for the next free ``ethN``.
        options: the driver's own, an instance of `NetworkDriver.EndpointOptions`.
        reference: the container id after the colon, with `NetworkCapability.REFERENCE`.
        ports: what `publish` has returned for it, for `check`.
    """

    id: str
    container: str
    names: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    link_local: tuple[str, ...] = ()
    static: bool = False
    mac: str | None = None
    interface: str | None = None
    options: msgspec.Struct = NoOptions()
    reference: str | None = None
    ports: tuple[Port, ...] = ()


class NetnsKind(enum.StrEnum):
    """Whose network namespace a container gets."""

    OWN = "own"
    HOST = "host"
    CONTAINER = "container"


class Netns(msgspec.Struct, frozen=True):
    """Whose network namespace a container gets; `of` is a container id with `NetnsKind.CONTAINER`."""

    kind: NetnsKind
    of: str | None = None


class Attachment(msgspec.Struct, frozen=True):
    """What `attach` made, for ``inspect``, /etc/hosts and the resolver.

    Attributes:
        interface: its name in the container; None when there is none (the driver ``none``).
        mac: of that interface.
        addresses: with prefix length; they are those of the endpoint unless the driver chose them.
        gateways: the next hops towards everything else, at most one for each address family; "0.0.0.0" and "::"
            stand for the link itself. None on an internal network.
        dns: name servers that came with the addresses (DHCP); empty otherwise.
        search: search domains that came with the addresses.
        mtu: of the interface, in bytes.
    """

    interface: str | None = None
    mac: str | None = None
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    mtu: int | None = None


class Reach(enum.StrEnum):
    """How endpoints are reached at their own addresses from outside their network and the host."""

    NEIGHBOUR = "neighbour"
    """At every port, by what is on the network that their interfaces are on."""
    ROUTED = "routed"
    """At every port, by who has a route."""
    TRUSTED = "trusted"
    """At every port, from interfaces of the host that the network's options name."""
    PUBLISHED = "published"
    """At the ports that `NetworkDriver.publish` is called for, by who has a route; no port of the host is bound."""


class Owned(msgspec.Struct, frozen=True):
    """Ids of networks and endpoints of which anything is on this host, half-made ones too."""

    networks: frozenset[str] = frozenset()
    endpoints: frozenset[str] = frozenset()


class NetworkDriver(Driver):
    """The contract of a network driver; see the module's text."""

    kind: ClassVar[str] = "network"
    NetworkOptions: ClassVar[type[msgspec.Struct]] = NoOptions
    """What ``network create --opt`` accepts; `option_docs` describes these fields too."""
    EndpointOptions: ClassVar[type[msgspec.Struct]] = NoOptions
    """What ``network connect --driver-opt`` accepts."""

    @operation()
    @abstractmethod
    def create_network(self, network: Network) -> None:
        """Make the network on this host, or complete one of which `check` reports something (after a reboot).

        Idempotent: it is called before the first endpoint of each engine run.

        Raises:
            Conflict: what the options name is in use (a parent interface in another mode, a taken name).
            NotSupported: the kernel lacks a feature that the options need; nothing was made.
        """

    @operation()
    @abstractmethod
    def delete_network(self, network: Network) -> None:
        """Remove everything of the network from this host. Absent is success.

        It has no endpoints. For a network that core has no record of, `network` carries its id only.
        What the driver found and did not make (an adopted bridge, a parent interface) stays.
        """

    @operation()
    def netns(self, endpoint: Endpoint) -> Netns:
        """Say whose network namespace the container gets; the inherited body says its own."""
        return Netns(kind=NetnsKind.OWN)

    @operation()
    @abstractmethod
    def attach(self, network: Network, endpoint: Endpoint, netns: int) -> Attachment:
        """Join the namespace to the network: interface, addresses, all of it up; no default route.

        Fails cleanly: raised, nothing of the endpoint is left on the host or in the namespace.

        Args:
            netns: a descriptor of the container's namespace, the driver's to use but not to close.

        Raises:
            Conflict: the interface name or an address is taken.
        """

    @operation()
    @abstractmethod
    def detach(self, network: Network, endpoint: Endpoint) -> None:
        """Take the endpoint off the network. Absent is success; the namespace may be gone already.

        Withdraws published ports too. For an endpoint that core has no record of, `endpoint` and `network`
        carry ids only, and the network's may be empty.
        """

    @operation()
    @abstractmethod
    def owned(self) -> Owned:
        """Report what is on this host."""

    @operation()
    def check(self, network: Network, endpoints: tuple[Endpoint, ...]) -> list[str]:
        """Compare the host, and endpoints' namespaces, with what should be there; describe each difference in a line.

        A line about an endpoint has the first 12 digits of its id. What is off with the network `create_network` makes
        good, and with an endpoint `publish`, or `detach` and `attach`; core calls them for those endpoints only.
        """
        return []

    @operation(needs=NetworkCapability.PUBLISH)
    def publish(self, network: Network, endpoint: Endpoint, ports: tuple[Port, ...]) -> tuple[Port, ...]:
        """Publish the ports, all or none; publishing again replaces what was published for the endpoint.

        The endpoint's `addresses` are set. The source address of connections is kept.

        Returns:
            one entry for each address a port was bound at, `host` and `address` settled. A port that is reached
            at the endpoint's own address alone (a routed network's) has none.

        Raises:
            Conflict: a port is taken, by name of the holder where it is one of ours.
        """
        raise self.unsupported(NetworkCapability.PUBLISH)

    @operation(needs=NetworkCapability.PUBLISH)
    def unpublish(self, network: Network, endpoint: Endpoint) -> None:
        """Withdraw every published port of the endpoint. None published is success."""
        raise self.unsupported(NetworkCapability.PUBLISH)

    @operation()
    def reach(self, network: Network) -> dict[int, Reach]:
        """Say how endpoints are reached beside published ports of the host, for each address family, 4 and 6, in which
        they are; the inherited body: in none."""
        return {}

    @operation(needs=NetworkCapability.MULTI_HOST)
    def networks(self) -> tuple[Network, ...]:
        """List the networks that are known on any of the hosts, in full.

        Raises:
            DriverError: what the hosts share cannot be reached; core goes on with those it knows.
        """
        raise self.unsupported(NetworkCapability.MULTI_HOST)

    @operation(needs=NetworkCapability.MULTI_HOST)
    def peers(self, network: Network) -> dict[str, str]:
        """Return the hosts that have endpoints on the network, as this one knows it: their names and addresses."""
        raise self.unsupported(NetworkCapability.MULTI_HOST)

    @operation()
    def keeps_addresses(self, network: Network) -> bool:
        """Say whether the network's addresses come from the driver; the inherited body: those of all networks do,
        if it declares `NetworkCapability.ADDRESSES`."""
        return NetworkCapability.ADDRESSES in self.capabilities

    @operation(needs=NetworkCapability.ADDRESSES)
    def settle(self, network: Network) -> Network:
        """Complete the subnets of a new network, of which `network` has what the user asked for, and return it.

        A range that is asked for may lack its gateway. The pools "0.0.0.0/0" and "::/0" ask for one of that family, of
        the driver's choice; they stay where only the endpoints get to know theirs (DHCP). Idempotent; what it reserves
        `delete_network` gives back.

        Raises:
            Conflict: a subnet overlaps another one, or none is free.
        """
        raise self.unsupported(NetworkCapability.ADDRESSES)

    @operation(needs=NetworkCapability.ADDRESSES)
    def allocate(self, network: Network, endpoint: Endpoint) -> Endpoint:
        """Claim addresses for the endpoint where the driver's own allocator keeps them; return it with them.

        Idempotent for one endpoint id. Addresses already in `endpoint` were asked for by the user.

        Raises:
            Conflict: an asked address is taken, or the pool is exhausted.
        """
        raise self.unsupported(NetworkCapability.ADDRESSES)

    @operation(needs=NetworkCapability.ADDRESSES)
    def release(self, network: Network, endpoint: Endpoint) -> None:
        """Give the endpoint's addresses back. Absent is success."""
        raise self.unsupported(NetworkCapability.ADDRESSES)

    @operation(needs=NetworkCapability.LOOKUP)
    def lookup(self, network: Network, name: str) -> tuple[str, ...]:
        """Return the addresses, without prefix, that `name` has on the network's other hosts; none: empty.

        Of what this host knows, without asking another one: every question of the container's waits for it.
        """
        raise self.unsupported(NetworkCapability.LOOKUP)

    @operation(needs=NetworkCapability.WATCH)
    def watch(
        self, network: Network, endpoint: Endpoint, netns: int, stop: int, changed: Callable[[Attachment], None]
    ) -> None:
        """Do what must be done for as long as the endpoint is attached: renew a lease, follow peers.

        Runs in a thread of the container's supervisor, after `attach`. Returns soon after the descriptor
        `stop` becomes readable. Trouble is waited out, not raised: a data plane that works stays as it is.

        Args:
            changed: to be told, from any thread, what the endpoint is now where that is not what `attach` returned:
                core routes by it, records it, and has the resolver ask its name servers. The driver has set the
                addresses. One without addresses says that the endpoint has lost them.
        """
        raise self.unsupported(NetworkCapability.WATCH)
