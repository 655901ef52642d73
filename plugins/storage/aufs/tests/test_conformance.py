"""The driver aufs in the suite that every storage driver passes, where the kernel has aufs."""

from transom_conformance.storage import StorageSuite


class TestAufs(StorageSuite):
    driver = "aufs"
    known_failures = {
        "test_names_that_mean_deletion_in_a_tar_are_plain_names_in_a_layer": (
            "aufs keeps names that begin with .wh. for itself, and refuses to make them (EPERM)"
        ),
    }
    stride = 3  # each run mounts
