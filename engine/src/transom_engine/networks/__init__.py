"""Networks and the places of containers on them: records, addresses, and the drivers' operations in order.

A network's record is in the shape of Docker's API; a container's place on it is in the container's own record.
Addresses come from core's IPAM unless the driver has an allocator of its own. A container keeps its addresses while
it runs and through restarts by its policy; `Endpoints.forget` gives them back, and a later start asks for them again.

    model      records of networks
    making     what a new network is to be: checked, or refused
    records    the networks there are: made, found, listed, removed
    addresses  subnets and addresses
    contracts  records as the data that drivers are called with
    checking   what a container asks of its networks: settled, or refused
    endpoints  the places of containers: joined, left, changed while they run
    ways       default routes and published ports
    files      hostname, hosts and resolv.conf of a container
    names      which names containers find each other by
    repair     networks put right while containers run
    exposure   what of containers is reached from outside this host
"""
