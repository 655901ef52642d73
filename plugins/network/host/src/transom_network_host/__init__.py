"""The network driver ``host``: containers share the host's network namespace.

Nothing is made, so nothing can be left behind: ports that a container listens on are the host's own.
"""

from __future__ import annotations

from transom.contract.network import (
    Attachment,
    Endpoint,
    Netns,
    NetnsKind,
    Network,
    NetworkCapability,
    NetworkDriver,
    Owned,
)
from transom.errors import NotSupported


class Host(NetworkDriver):
    """See the module's text."""

    name = "host"
    api = 1
    capabilities = frozenset({NetworkCapability.SINGLETON})

    def create_network(self, network: Network) -> None:
        """Do nothing: the host's network is there."""

    def delete_network(self, network: Network) -> None:
        """Do nothing: the host's network stays."""

    def netns(self, endpoint: Endpoint) -> Netns:
        """Say the host's."""
        return Netns(kind=NetnsKind.HOST)

    def attach(self, network: Network, endpoint: Endpoint, netns: int) -> Attachment:
        """Refuse: a namespace of its own is what this driver's containers do not have."""
        raise NotSupported("network driver host shares the host's namespace: there is nothing to attach to")

    def detach(self, network: Network, endpoint: Endpoint) -> None:
        """Do nothing: nothing was attached."""

    def owned(self) -> Owned:
        """Report nothing."""
        return Owned()
