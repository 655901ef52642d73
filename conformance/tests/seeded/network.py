"""Network drivers with one fault each, and the case that must find it."""

import select
import subprocess
from unittest import mock

import msgspec

from seeded.found import found_by
from transom.contract.network import Attachment, Network, NetworkCapability, Owned
from transom.errors import Conflict, DriverError
from transom.services.interfaces import route_by, write_setting
from transom.services.netlink import Session, add_link, delete_altname, delete_link, set_alias
from transom.services.netns import create, inside
from transom_network_bridge import Bridge
from transom_network_macvlan import Macvlan
from transom_network_none import Null
from transom_network_overlay import Overlay

replace = msgspec.structs.replace

CORRECT = (
    Null,
    Bridge,
    Macvlan,
    Overlay,
)


@found_by("test_a_namespace_of_its_own_gets_a_loopback_that_is_up")
class LeavesLoopbackDown(Null):
    def attach(self, network, endpoint, netns):
        return Attachment()


@found_by("test_recovery_of_a_healthy_host_repairs_nothing")
class RepairsForEver(Null):
    def recover(self):
        return ["repaired what was whole"]


@found_by("test_undeclared_capabilities_are_refused")
class PublishesWithoutClaim(Null):
    def publish(self, network, endpoint, ports):
        return ports


@found_by("test_networks_are_made_and_removed_any_number_of_times")
class OwnsAGhost(Null):
    def owned(self):
        return Owned(networks=frozenset({"f" * 64}))


@found_by("test_an_attachment_is_what_is_in_the_namespace")
class ReportsAnotherMtu(Bridge):
    def attach(self, network, endpoint, netns):
        return replace(super().attach(network, endpoint, netns), mtu=1234)


@found_by("test_the_wanted_mac_is_given")
class IgnoresTheMac(Bridge):
    def attach(self, network, endpoint, netns):
        return super().attach(network, replace(endpoint, mac=""), netns)


@found_by("test_neighbours_learn_at_once_that_an_address_has_another_mac")
class KeepsAnnouncementsBack(Bridge):
    def attach(self, network, endpoint, netns):
        attachment = super().attach(network, endpoint, netns)
        words = ["bridge", "link", "set", "dev", f"vt{endpoint.id[:13]}", "bcast_flood", "off", "mcast_flood", "off"]
        subprocess.run(words, check=True)
        return attachment


@found_by("test_a_mac_address_that_no_interface_can_have_is_refused_and_nothing_changes")
class TakesAnotherMac(Bridge):
    def attach(self, network, endpoint, netns):
        try:
            return super().attach(network, endpoint, netns)
        except DriverError:
            return super().attach(network, replace(endpoint, mac=None), netns)


@found_by("test_an_mtu_that_cannot_be_is_refused_and_nothing_changes")
class TakesAnotherMtu(Bridge):
    def create_network(self, network):
        super().create_network(replace(network, mtu=1400))


@found_by("test_an_endpoint_is_attached_once")
class AttachesAgainQuietly(Bridge):
    def attach(self, network, endpoint, netns):
        try:
            return super().attach(network, endpoint, netns)
        except Conflict:
            return Attachment()


@found_by("test_detaching_twice_succeeds_and_the_endpoint_can_be_attached_again")
class LeavesTheInterface(Bridge):
    done = set()

    def detach(self, network, endpoint):
        if endpoint.id in self.done:
            super().detach(network, endpoint)
        self.done.add(endpoint.id)


@found_by("test_what_has_no_record_is_removed_by_its_id_alone")
class NeedsTheRecordToDelete(Bridge):
    def delete_network(self, network: Network):
        if network.name:
            super().delete_network(network)


@found_by("test_an_internal_network_has_no_way_out")
class LetsInternalNetworksOut(Bridge):
    def create_network(self, network):
        super().create_network(replace(network, internal=False))

    def attach(self, network, endpoint, netns):
        return super().attach(replace(network, internal=False), endpoint, netns)


@found_by("test_a_container_cannot_take_a_siblings_address")
class GuardsArpOnly(Bridge):
    def create_network(self, network):
        super().create_network(network)
        subprocess.run(["nft", "insert rule bridge transom ipv6 accept"], capture_output=True, check=False)


@found_by("test_a_port_published_at_loopback_is_the_hosts_alone")
class PublishesEverywhere(Bridge):
    def publish(self, network, endpoint, ports):
        return super().publish(network, endpoint, tuple(replace(port, address="") for port in ports))


def firewall(rule):
    """Add to the bridge's rules."""
    subprocess.run(["nft", *rule.split()], capture_output=True, check=True)


@found_by("test_a_published_port_is_reached_from_everywhere")
class ForgetsOneLoopback(Bridge):
    def publish(self, network, endpoint, ports):
        bound = super().publish(network, endpoint, ports)
        firewall("flush set inet transom loopback6")
        return bound


@found_by("test_a_published_port_is_reached_from_everywhere")
class HidesTheClient(Bridge):
    def publish(self, network, endpoint, ports):
        bound = super().publish(network, endpoint, ports)
        firewall("insert rule inet transom postrouting masquerade")
        return bound


class WithAnotherRule(Bridge):
    """A bridge whose rules are bent when a network is made."""

    rule = ""

    def create_network(self, network):
        super().create_network(network)
        firewall(self.rule)


@found_by("test_networks_are_apart")
class LeadsFromNetworkToNetwork(WithAnotherRule):
    rule = "insert rule inet transom incoming iifname @bridges accept"


@found_by("test_host_and_container_reach_each_other")
class KeepsContainersOffTheHost(WithAnotherRule):
    rule = "insert rule inet transom input iifname @bridges meta l4proto udp drop"


@found_by("test_endpoints_of_a_network_answer_echo_requests")
class AnswersTcpAndUdpAlone(Bridge):
    def attach(self, network, endpoint, netns):
        attachment = super().attach(network, endpoint, netns)
        rule = "meta l4proto icmp drop"
        table = f"table inet mute {{ chain input {{ type filter hook input priority 0; {rule}; }}; }}"
        inside(netns, firewall, table)
        return attachment


@found_by("test_an_internal_network_has_no_way_out")
class ServesInternalNetworks(WithAnotherRule):
    rule = "flush chain inet transom input"


@found_by("test_an_internal_network_does_not_reach_what_others_publish")
class PublishesToAll(WithAnotherRule):
    rule = "insert rule inet transom forward ct status dnat accept"


@found_by("test_what_is_not_published_is_not_reached_from_outside")
class LeadsIn(WithAnotherRule):
    rule = "insert rule inet transom incoming oifname @bridges accept"


@found_by("test_a_port_published_at_loopback_is_the_hosts_alone")
class TranslatesTheLoopback(WithAnotherRule):
    rule = "insert rule inet transom prerouting fib daddr type local jump published"


@found_by("test_foreign_state_is_left_alone")
class DropsWhatIsNotItsOwn(WithAnotherRule):
    rule = "insert rule inet transom forward iifname != @bridges oifname != @bridges drop"


@found_by("test_foreign_state_is_left_alone")
class ReplacesOthersTables(Bridge):
    def create_network(self, network):
        super().create_network(network)
        subprocess.run(["nft", "flush", "chain", "ip", "foreign", "forward"], capture_output=True, check=False)


@found_by("test_one_port_leads_to_as_many_containers_as_there_are_addresses")
class KnowsOneLoopback(Bridge):
    def publish(self, network, endpoint, ports):
        return super().publish(
            network, endpoint, tuple(replace(p, address=p.address.replace("127.0.0.2", "127.0.0.1")) for p in ports)
        )


@found_by("test_a_free_port_is_none_that_the_host_has_reserved")
class TakesReservedPorts(Bridge):
    def publish(self, network, endpoint, ports):
        with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
            low, high = map(int, file.read().split())
        ports = tuple(p if p.host else replace(p, host=low, host_end=high) for p in ports)
        return super().publish(network, endpoint, ports)


@found_by("test_a_client_that_keeps_sending_reaches_the_next_container")
class RemembersFlows(Bridge):
    def publish(self, network, endpoint, ports):
        with mock.patch("transom_network_bridge.firewall._forget_flows"):
            return super().publish(network, endpoint, ports)


@found_by("test_a_port_leads_to_the_next_container_at_once")
class HoldsPortsForAWhile(Bridge):
    def _withdraw(self, endpoint):
        pass


@found_by("test_publishing_again_replaces_and_withdrawing_ends_it")
class KeepsPortsPublished(Bridge):
    def unpublish(self, network, endpoint):
        pass


@found_by("test_an_error_at_any_system_call_is_said_in_words_and_undone")
class LeavesHalfAnEndpoint(Bridge):
    def attach(self, network, endpoint, netns):
        try:
            return super().attach(network, endpoint, netns)
        except DriverError:
            with Session() as session:
                session.request(add_link(name="half0", kind="bridge"))
            raise


@found_by("test_what_was_spoiled_on_the_host_is_reported_and_made_good")
class SeesNoMissingRule(Bridge):
    def check(self, network, endpoints):
        return [line for line in super().check(network, endpoints) if "nftables" not in line and "port" not in line]


@found_by("test_what_was_spoiled_on_the_host_is_reported_and_made_good")
class RepairsNoRoute(Bridge):
    def create_network(self, network):
        if not any("route" in line for line in super().check(network, ())):
            super().create_network(network)


@found_by("test_an_endpoint_that_was_spoiled_is_reported_and_joins_again_and_its_siblings_lose_no_byte")
class LooksAtTheHostOnly(Bridge):
    def check(self, network, endpoints):
        return [line for line in super().check(network, endpoints) if "eth0" not in line]


@found_by("test_an_endpoint_that_was_spoiled_is_reported_and_joins_again_and_its_siblings_lose_no_byte")
class BlamesEverybody(Bridge):
    def check(self, network, endpoints):
        said = super().check(network, endpoints)
        return said + [f"endpoint {endpoint.id[:12]} is to blame" for endpoint in endpoints if said]


@found_by("test_a_container_connects_and_disconnects_and_nothing_adds_up")
class KeepsADescriptor(Bridge):
    def detach(self, network, endpoint):
        super().detach(network, endpoint)
        create()


@found_by("test_the_last_endpoint_costs_what_the_first_did")
class LooksAtEachEndpoint(Bridge):
    def attach(self, network, endpoint, netns):
        attachment = super().attach(network, endpoint, netns)
        for identity in self.owned().endpoints:
            with Session() as session:
                session.link(f"vt{identity[:13]}")
        return attachment


@found_by("test_a_hundred_processes_attach_at_once_and_all_are_reached")
class GivesFewMacs(Bridge):
    def attach(self, network, endpoint, netns):
        mac = f"02:42:00:00:00:{int(endpoint.id[:2], 16):02x}"
        return super().attach(network, replace(endpoint, mac=mac), netns)


@found_by("test_what_a_killed_engine_attached_goes_away_by_itself")
class HoldsItsOwnNote(Bridge):
    def attach(self, network, endpoint, netns):
        with Session() as session:
            session.request(add_link(name=f"no{endpoint.id[:13]}", kind="bridge"))
        return super().attach(network, endpoint, netns)

    def detach(self, network, endpoint):
        super().detach(network, endpoint)
        with Session() as session:
            if session.link(f"no{endpoint.id[:13]}"):
                session.request(delete_link(f"no{endpoint.id[:13]}"))


@found_by("test_after_a_reboot_everything_is_made_again_where_it_was")
class RemembersItsPorts(Bridge):
    def publish(self, network, endpoint, ports):
        note = self.root / f"port-{ports[0].host}"
        if note.exists() and note.read_text() == endpoint.id:
            raise Conflict("the port is taken")
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(endpoint.id)
        return super().publish(network, endpoint, ports)


@found_by("test_a_network_and_ten_endpoints_come_and_go_without_a_trace")
class LeavesATrace(Bridge):
    def create_network(self, network):
        super().create_network(network)
        write_setting("ipv4/conf/all/route_localnet", "1")


@found_by("test_killed_at_any_point_nothing_is_left_and_everything_goes_on")
class MarksItsBridgeLater(Bridge):
    def create_network(self, network):
        with Session() as session:
            session.request(add_link(name="later0", kind="bridge"))
            super().create_network(network)
            session.request(delete_link("later0"))


@found_by("test_what_the_hosts_firewall_drops_stays_dropped")
class SweepsOthersRulesAway(Bridge):
    def publish(self, network, endpoint, ports):
        subprocess.run(["nft", "delete", "table", "ip", "mine"], capture_output=True, check=False)
        return super().publish(network, endpoint, ports)


@found_by("test_a_driver_makes_no_default_route")
class RoutesByItself(Bridge):
    def attach(self, network, endpoint, netns):
        attachment = super().attach(network, endpoint, netns)
        route_by(netns, [(attachment.interface, gateway) for gateway in attachment.gateways])
        return attachment


@found_by("test_undeclared_capabilities_are_refused")
class RefusesWithoutAName(Null):
    def lookup(self, network, name):
        error = self.unsupported(NetworkCapability.LOOKUP)
        raise type(error)("no")


@found_by("test_networks_are_made_and_removed_any_number_of_times")
class LeavesItsParent(Macvlan):
    def _leave(self, session, network):
        name = self.own_parent(network)
        session.request(delete_altname(name, self._claim(network).altname), set_alias(name, "left"))


@found_by("test_endpoints_of_a_network_reach_each_other")
class IgnoresTheMode(Macvlan):
    def child_data(self, network):
        return super().child_data(replace(network, options=replace(network.options, mode="private")))


def with_access(network):
    """Return the network as one that the host has access to."""
    subnets = tuple(replace(s, reserved={"host": f"{s.gateway}99"}) for s in network.subnets)
    return replace(network, options=replace(network.options, host_access=True), subnets=subnets)


@found_by("test_detaching_after_the_namespace_is_gone_cleans_up")
class KeepsRoutesToTheDead(Macvlan):
    def create_network(self, network):
        super().create_network(with_access(network))

    def attach(self, network, endpoint, netns):
        return super().attach(with_access(network), endpoint, netns)

    def _unroute(self, session, unwanted):
        return 0


@found_by("test_a_lease_is_given_back_when_its_endpoint_is_left")
class KeepsItsLeases(Macvlan):
    def watch(self, network, endpoint, netns, stop, changed):
        select.select([stop], [], [])


class OnTwoHosts(Overlay):
    examples = "transom_network_overlay.examples:EXAMPLES"

    def after(self, network, *commands):
        """Spoil the device's tables."""
        device = f"vx-{network[:12]}"
        for command in commands:
            subprocess.run([*command.split(), "dev", device], capture_output=True, check=False)


@found_by("test_endpoints_on_two_hosts_reach_each_other_and_nobody_is_asked_for_their_addresses")
class FloodsTheUnknown(OnTwoHosts):
    def apply(self, network, host, new, **words):
        done = super().apply(network, host, new, **words)
        for peer in new.peers:
            if peer.host != host:
                address = peer.addresses[0].partition("/")[0]
                self.after(
                    network, f"bridge fdb append 00:00:00:00:00:00 dst {peer.vtep}", f"ip neigh delete {address}"
                )
        return done


@found_by("test_what_is_sent_to_an_endpoint_that_left_its_host_leaves_this_one_no_more")
class ForgetsNoEntry(OnTwoHosts):
    def apply(self, network, host, new, **words):
        kept = {peer.endpoint: peer for peer in self.known(network).peers if peer.host != host}
        peers = {**kept, **{peer.endpoint: peer for peer in new.peers}}
        return super().apply(network, host, replace(new, peers=tuple(peers.values())), **words)


@found_by("test_what_a_host_forgot_of_the_endpoints_on_another_is_reported_and_made_good")
class SeesNoStrayEntry(OnTwoHosts):
    def check(self, network, endpoints):
        return [line for line in super().check(network, endpoints) if ", not " not in line]


@found_by("test_an_address_is_one_hosts_at_a_time")
class GivesNoAddressBack(OnTwoHosts):
    def release(self, network, endpoint):
        pass


@found_by("test_a_name_and_a_subnet_are_one_networks_on_both_hosts")
class TellsNobodyApart(OnTwoHosts):
    def settle(self, network):
        try:
            return super().settle(network)
        except Conflict:
            return network


@found_by("test_a_name_is_known_on_the_other_host_for_as_long_as_its_endpoint_is_there")
class RemembersNames(OnTwoHosts):
    said = {}

    def lookup(self, network, name):
        self.said[name] = super().lookup(network, name) or self.said.get(name, ())
        return self.said[name]


@found_by("test_a_network_is_listed_on_both_hosts_and_not_removed_in_use")
class RemovesFromUnderOthers(OnTwoHosts):
    def delete_network(self, network):
        try:
            super().delete_network(network)
        except Conflict:
            super().delete_network(replace(network, name=""))
