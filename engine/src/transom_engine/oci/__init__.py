"""From a container's record to a running process: the OCI configuration, and the runtime that carries it out.

`transom_engine.oci.spec` turns a record into ``config.json`` (OCI runtime specification 1.0.2), equal to what
Docker gives a container; `transom_engine.oci.runtime` finds a runtime that works on this host.
"""
