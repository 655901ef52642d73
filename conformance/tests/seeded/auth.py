"""Auth drivers with one fault each, and the case that must find it."""

import msgspec

from seeded.found import found_by
from transom.contract.auth import Identity, Request, UnixPeer
from transom_auth_peer import Peer

replace = msgspec.structs.replace

CORRECT = (Peer,)
EXAMPLES = {"known": (Request(unix=UnixPeer(pid=1, uid=0, gid=0)), Request(unix=UnixPeer(pid=1, uid=4242, gid=4242)))}


@found_by("test_a_request_that_carries_nothing_is_left_to_other_drivers")
class KnowsEverybody(Peer):
    def authenticate(self, request):
        return super().authenticate(request) or Identity(name="anybody", method=self.name)


@found_by("test_known_callers_get_an_identity_that_names_them_and_the_driver")
class SpeaksForAnother(Peer):
    def authenticate(self, request):
        found = super().authenticate(request)
        return found and replace(found, method="peer")


@found_by("test_the_same_request_is_the_same_caller_after_a_restart_too")
class NamesAreItsOwn(Peer):
    def authenticate(self, request):
        found = super().authenticate(request)
        return found and replace(found, method=self.name, name=f"{found.name}-{id(self)}")


@found_by("test_no_request_makes_it_fail")
class TripsOverHeaders(Peer):
    def authenticate(self, request):
        dict(header.split("=") for _, header in request.headers[:1])
        return super().authenticate(request)
