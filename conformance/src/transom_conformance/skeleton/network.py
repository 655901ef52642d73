"""A network driver whose containers are alone with their loopback."""

from transom.contract.network import Attachment, Endpoint, Network, NetworkCapability, NetworkDriver, Owned
from transom.errors import DriverError
from transom.services.netns import inside, loopback_up


class Sample(NetworkDriver):
    """There is one such network, and nothing of it on the host: nothing to make, to find or to remove."""

    name = "sample"
    api = 1
    capabilities = frozenset({NetworkCapability.SINGLETON})

    def create_network(self, network: Network) -> None:
        """There is nothing to make."""

    def delete_network(self, network: Network) -> None:
        """There is nothing to remove."""

    def attach(self, network: Network, endpoint: Endpoint, netns: int) -> Attachment:
        """Set the loopback up; `netns` is a descriptor of the container's namespace."""
        try:
            inside(netns, loopback_up)
        except OSError as error:
            raise DriverError("attach", driver="network sample", subject=endpoint.id, cause=error) from error
        return Attachment()

    def detach(self, network: Network, endpoint: Endpoint) -> None:
        """The namespace takes its loopback along."""

    def owned(self) -> Owned:
        """Nothing is on the host."""
        return Owned()
