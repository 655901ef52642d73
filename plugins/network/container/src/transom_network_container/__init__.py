"""The network driver ``container``: a container shares another container's network namespace.

Selected as ``container:NAME``. Both see the same interfaces, addresses and ports; the other one's networks and
published ports are the only ones there are.
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
from transom.errors import ConfigError, NotSupported


class Container(NetworkDriver):
    """See the module's text."""

    name = "container"
    api = 1
    capabilities = frozenset({NetworkCapability.REFERENCE})

    def create_network(self, network: Network) -> None:
        """Do nothing: the other container is on its networks already."""

    def delete_network(self, network: Network) -> None:
        """Do nothing: the other container's networks are not ours."""

    def netns(self, endpoint: Endpoint) -> Netns:
        """Say that of the container that the endpoint refers to.

        Raises:
            ConfigError: it refers to none.
        """
        if not endpoint.reference:
            raise ConfigError("network driver container needs to know whose network to share: write container:NAME")
        return Netns(kind=NetnsKind.CONTAINER, of=endpoint.reference)

    def attach(self, network: Network, endpoint: Endpoint, netns: int) -> Attachment:
        """Refuse: a namespace of its own is what this driver's containers do not have."""
        raise NotSupported(
            "network driver container shares another container's namespace: there is nothing to attach to"
        )

    def detach(self, network: Network, endpoint: Endpoint) -> None:
        """Do nothing: nothing was attached."""

    def owned(self) -> Owned:
        """Report nothing."""
        return Owned()
