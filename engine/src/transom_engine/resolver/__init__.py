"""The embedded resolver: containers on a user-defined network find each other by name, as docker's do.

It is a thread of the container's supervisor and listens inside the container's network namespace on 127.0.0.11, on
ports of the kernel's choice to which that namespace translates port 53: the container may serve port 53 itself.

A container has on each of its networks the names that docker gives it: its own name, its short id, its hostname and
its aliases there, and each of them with the network's name behind a dot; besides, for one that has a link to it, the
link's alias. They are read from the engine's records whenever these have changed, and hold for a second. What nobody
is called is asked of the name servers that the user gave (from inside the container's namespace) or else of the host's
(from the host's, and only with a network that has a way out).

The protocol is RFC 1035's, with RFC 6891 for longer datagrams; dnslib reads and writes it.

    serving     the sockets, and what is done with what comes in
    questions   a client's message, and answers in the shape that the client can take
    names       what containers are called, as the records have it
    forwarding  questions taken to name servers
    workers     threads for what goes by TCP
"""

from transom_engine.resolver.serving import Resolver

__all__ = ["Resolver"]
