"""The network driver ``none``: a container has a namespace of its own with nothing but its loopback, up."""

from __future__ import annotations

from transom.contract.network import Attachment, Endpoint, Network, NetworkCapability, NetworkDriver, Owned
from transom.errors import DriverError
from transom.services.netns import inside, loopback_up


class Null(NetworkDriver):
    """See the module's text."""

    name = "none"
    api = 1
    capabilities = frozenset({NetworkCapability.SINGLETON})

    def create_network(self, network: Network) -> None:
        """Do nothing: there is no network."""

    def delete_network(self, network: Network) -> None:
        """Do nothing: there is no network."""

    def attach(self, network: Network, endpoint: Endpoint, netns: int) -> Attachment:
        """Set the loopback up, which the container may rely on; there is no interface."""
        try:
            inside(netns, loopback_up)
        except OSError as error:
            raise DriverError("attach", driver="network none", subject=endpoint.id, cause=error) from error
        return Attachment()

    def detach(self, network: Network, endpoint: Endpoint) -> None:
        """Do nothing: the namespace takes its loopback along."""

    def owned(self) -> Owned:
        """Report nothing: nothing is on the host."""
        return Owned()
