"""The core of Transom: contracts, the driver loader, configuration, errors and shared services.

Nothing is imported here: a command that lists images must not pay for the network contract. Import what
you need by its module, for example ``from transom.contract.storage import Storage``.
"""

__version__ = "0.1.0"
