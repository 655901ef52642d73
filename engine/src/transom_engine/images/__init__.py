"""Images: names, content by digest, registries, and the records that tie them together.

    names      what users write, as Docker reads it
    spec       the data of the OCI image-spec and of Docker's image manifests
    content    blobs by digest in an OCI image layout; a partial blob survives a crash and is continued
    store      which images are here and what they are called (SQLite); all that starting a container needs
    registry   a client of the distribution-spec's registry API, `credentials` its login data
    pull       a registry's image into content and store
    importer   a tar or a directory as an image; a container's changes as an image
    unpack     an image's layers into a storage driver

Image content belongs to no storage driver: a driver holds unpacked layers only, under their chain ids.
"""
