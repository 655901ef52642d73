"""Subnets that the host has something else in."""

from __future__ import annotations

from ipaddress import ip_network

from transom.contract.network import Network
from transom.errors import Conflict
from transom.services.ipam import overlap
from transom.services.netlink import Route, Session
from transom_network_bridge.options import gateway_addresses


def refuse(session: Session, network: Network) -> None:
    """Refuse a subnet in which the host has something else, before the bridge's own route takes its place.

    That is a network at hand, of another interface, or what a route by some router names as closely as the subnet does
    or more so. Part of what a wider route leads to may be a subnet: the narrower route has its way, as is meant.

    Raises:
        Conflict: naming the route and its interface.
    """
    for own in {ip_network(address, strict=False) for address in gateway_addresses(network)}:
        for route in session.routes():
            block = ip_network(route.to)
            near = route.gateway is None or block.prefixlen >= own.prefixlen
            if block.prefixlen and near and overlap(own, block):
                raise Conflict(
                    f"network {network.name or network.id[:12]}: subnet {own} overlaps {_said(session, route)}, which "
                    "this host reaches elsewhere; choose another one"
                )


def _said(session: Session, route: Route) -> str:
    device = next((link.name for link in session.links() if link.index == route.index), "another interface")
    return f"{route.to} by {route.gateway} on {device}" if route.gateway else f"{route.to} on {device}"
