"""The suite of network drivers: real namespaces, real packets.

The numbers in the docstrings are those of docs/network-cases.md, the catalogue of network cases; they stay the same
from release to release. Each case builds a small world: a namespace that plays the host, in which the driver works,
and one that plays a neighbour on the network of the host, at the other end of `UPLINK`. So nothing of the real host is
touched, and cases can run side by side. The program ``ip`` (iproute2) builds it.

An author's own run::

    from transom_conformance.network import NetworkSuite

    class TestMine(NetworkSuite):
        driver = "mine"
        network_options = {"mode": "fast"}

and where users name a parent, once more on one that there is::

    class TestMineOnAParent(OnAParent, NetworkSuite):
        driver = "mine"
"""

from __future__ import annotations

from transom_conformance.network.cases import NetworkCases, own_site
from transom_conformance.network.connectivity import Connectivity
from transom_conformance.network.crashes import Crashes
from transom_conformance.network.dhcp import dhcp_server
from transom_conformance.network.hosts import Hosts
from transom_conformance.network.inputs import Inputs
from transom_conformance.network.isolation import Isolation
from transom_conformance.network.leases import Leases, Watch
from transom_conformance.network.lifecycle import LifeCycle
from transom_conformance.network.parents import OnAParent
from transom_conformance.network.publishing import Publishing
from transom_conformance.network.site import (
    HOST,
    HOST6,
    IMPATIENCE,
    NEIGHBOUR,
    NEIGHBOUR6,
    PATIENCE,
    TCP,
    UDP,
    UPLINK,
    Container,
    Site,
    Stream,
    connection,
    exchange,
    gateway_of,
    hears,
    ip_batch,
    ip_json,
    listen,
    plain,
    talk,
    together,
    unreachable,
)
from transom_conformance.network.tampering import Place, Tampering

__all__ = [
    "HOST",
    "HOST6",
    "IMPATIENCE",
    "NEIGHBOUR",
    "NEIGHBOUR6",
    "PATIENCE",
    "TCP",
    "UDP",
    "UPLINK",
    "Container",
    "NetworkCases",
    "NetworkSuite",
    "OnAParent",
    "Place",
    "Site",
    "Stream",
    "Watch",
    "connection",
    "dhcp_server",
    "exchange",
    "gateway_of",
    "hears",
    "ip_batch",
    "ip_json",
    "listen",
    "own_site",
    "plain",
    "talk",
    "together",
    "unreachable",
]


class NetworkSuite(Hosts, Crashes, Tampering, Leases, Publishing, Isolation, Connectivity, Inputs, LifeCycle):
    """What every network driver must do; see `transom.contract.network`. Derive from it and set `driver`.

    pytest runs the groups from the last base class to the first.
    """
