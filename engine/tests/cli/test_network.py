"""``transom network``: make, list, join and remove networks, inside a network namespace of each test's own."""

import pytest


@pytest.fixture
def net(transom):
    """A network ``net`` with a subnet of its own."""
    transom("network", "create", "--subnet", "10.77.0.0/24", "net")
    return transom


def addresses(transom, name):
    return {key: place["IPAddress"] for key, place in transom.inspect(name)["NetworkSettings"]["Networks"].items()}


def test_create_prints_the_id_and_inspect_shows_what_was_asked(transom):
    words = ["--subnet", "10.9.0.0/24", "--ip-range", "10.9.0.128/25", "--gateway", "10.9.0.254", "--label", "a=b"]
    words += ["--aux-address", "printer=10.9.0.200", "-o", "com.docker.network.driver.mtu=1400", "--attachable"]
    id = transom("network", "create", *words, "n1")
    record = transom.inspect("n1", "--type", "network")
    assert (len(id), record["Id"], record["Driver"], record["Labels"]) == (64, id, "bridge", {"a": "b"})
    assert record["IPAM"]["Config"] == [
        {
            "Subnet": "10.9.0.0/24", "IPRange": "10.9.0.128/25", "Gateway": "10.9.0.254",
            "AuxiliaryAddresses": {"printer": "10.9.0.200"},
        }
    ]  # fmt: skip
    assert record["Options"] == {"com.docker.network.driver.mtu": "1400"}
    assert record["Attachable"] is True
    assert transom("network", "inspect", "-f", "{{.Name}} {{.Internal}}", "n1") == "n1 false"


def test_each_range_and_gateway_goes_to_the_subnet_that_it_is_in(transom):
    subnets = ["--subnet", "10.9.0.0/24", "--subnet", "fd09::/64", "--ipv6"]
    transom("network", "create", *subnets, "--gateway", "fd09::9", "--gateway", "10.9.0.9", "n1")
    form = "{{range .IPAM.Config}}{{.Subnet}} {{.Gateway}};{{end}}"
    assert transom("network", "inspect", "-f", form, "n1") == "10.9.0.0/24 10.9.0.9;fd09::/64 fd09::9;"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["--gateway", "1.2.3.4"],
            "--gateway 1.2.3.4: no matching subnet; those given are none, add one with --subnet",
        ),
        (
            ["--subnet", "10.9.0.0/24", "--ip-range", "10.8.0.0/25"],
            "--ip-range 10.8.0.0/25: no matching subnet; those given are 10.9.0.0/24, add one with --subnet",
        ),
        (
            ["--subnet", "10.9.0.0/24", "--aux-address", "a=10.8.0.1"],
            "--aux-address a=10.8.0.1: no matching subnet; those given are 10.9.0.0/24, add one with --subnet",
        ),
        (
            ["--subnet", "10.9.0.0/24", "--gateway", "10.9.0.1", "--gateway", "10.9.0.2"],
            "--gateway 10.9.0.2: subnet 10.9.0.0/24 has the gateway 10.9.0.1 already",
        ),
        (
            ["--subnet", "10.9.0.0/24", "--ip-range", "10.9.0.0/25", "--ip-range", "10.9.0.128/25"],
            "--ip-range 10.9.0.128/25: subnet 10.9.0.0/24 has the range 10.9.0.0/25 already",
        ),
        (["--gateway", "nonsense"], "--gateway 'nonsense': not an IP address, such as 172.28.5.254"),
        (["--aux-address", "a=b"], "--aux-address 'b': not an IP address, such as 172.28.5.254"),
        (["--subnet", "10.9.0.1/24"], "subnet 10.9.0.1/24 has bits set beyond its prefix: write 10.9.0.0/24"),
        (["--subnet", "x"], "'x' is not a subnet: write it as 172.18.0.0/16"),
        (["-d", "host"], "network driver host has one network only, which is there already: use it by its name"),
    ],
)  # fmt: skip
def test_create_refuses_words_that_do_not_fit(transom, words, text):
    assert transom.fails("network", "create", *words, "n1", code=125) == text
    assert transom("network", "ls", "--format", "{{.Name}}").split() == ["bridge", "host", "none"]


def test_create_refuses_bad_and_taken_names(net):
    assert net.fails("network", "create", "net") == (
        "network with name net already exists; choose another, or remove it first"
    )
    assert net.fails("network", "create", "bridge") == (
        "network with name bridge already exists; choose another, or remove it first"
    )
    assert net.fails("network", "create", "-bad", "x").startswith("No such option")
    assert net.fails("network", "create", "b@d") == (
        "invalid network name 'b@d': only a-z A-Z 0-9 _ . - are allowed, the first not a sign"
    )


def test_ls_prints_docker_s_table_and_filters(net):
    lines = net("network", "ls").splitlines()
    assert lines[0].split() == ["NETWORK", "ID", "NAME", "DRIVER", "SCOPE"]
    assert [line.split()[1:] for line in lines[1:]] == [
        ["bridge", "bridge", "local"], ["host", "host", "local"], ["net", "bridge", "local"], ["none", "none", "local"]
    ]  # fmt: skip
    name = ["network", "ls", "--format", "{{.Name}}"]
    assert net(*name, "-f", "type=custom") == "net"
    assert net(*name, "-f", "driver=bridge").split() == ["bridge", "net"]
    assert net(*name, "-f", "name=^n", "-f", "driver=none") == "none"
    assert net(*name, "-f", "dangling=true") == "net"
    id = net("network", "ls", "-q", "--no-trunc", "-f", "name=net")
    assert len(id) == 64
    assert net("network", "ls", "-q", "-f", f"id={id[:5]}") == id[:12]


def test_ls_refuses_filters_that_make_no_sense(net):
    assert net.fails("network", "ls", "-f", "name=(") == (
        "--filter name='(': invalid regular expression: missing ), unterminated subpattern at position 0"
    )
    assert net.fails("network", "ls", "-f", "type=x") == "--filter type='x': invalid filter; there are builtin, custom"
    assert net.fails("network", "ls", "-f", "dangling=x") == (
        "--filter dangling='x': invalid filter; there are true, false"
    )
    assert net.fails("network", "ls", "-f", "nam=x") == (
        "--filter 'nam=x': invalid filter 'nam' (did you mean name?);"
        " there are dangling, driver, id, label, name, scope, type"
    )


def test_connect_and_disconnect_act_on_a_running_container(net):
    net.detached("--name", "web", network="bridge")
    assert net("network", "connect", "--ip", "10.77.0.77", "--alias", "www", "net", "web") == ""
    assert addresses(net, "web")["net"] == "10.77.0.77"
    assert "10.77.0.77" in net("exec", "web", "ip", "addr")
    assert net.fails("network", "connect", "net", "web") == "container web is already on network net"
    assert net.inspect("net")["Containers"].popitem()[1]["IPv4Address"] == "10.77.0.77/24"
    net("network", "disconnect", "net", "web")
    assert "net" not in addresses(net, "web")
    assert "10.77.0.77" not in net("exec", "web", "ip", "addr")
    assert net.fails("network", "disconnect", "net", "web") == "container web is not on network net"
    assert net("network", "disconnect", "-f", "net", "web") == ""


def test_connect_refuses_links_and_unknown_names(net):
    assert net.fails("network", "connect", "--link", "a:b", "net", "web") == (
        "--link is not supported: containers of a network find each other by name, or by --alias"
    )
    assert net.fails("network", "connect", "net", "web") == "no such container: web; `transom ps -a` lists those here"
    net("create", "--name", "web", "--network", "net", "busybox")
    assert net.fails("network", "connect", "nett", "web") == (
        "no such network: nett (did you mean net?); networks here: bridge, net"
    )


def test_rm_goes_on_over_errors_and_refuses_what_is_in_use(net):
    net.detached("--name", "web", network="net")
    net("network", "create", "other")
    done = net.call("network", "rm", "nosuch", "net", "bridge", "other")
    assert (done.code, done.out) == (1, "other\n")
    assert done.err.splitlines() == [
        "transom: no such network: nosuch; networks here: bridge, net, other",
        "transom: network net has active endpoints: web; stop or disconnect them first",
        "transom: bridge is a pre-defined network and cannot be removed",
    ]
    assert net("network", "rm", "-f", "nosuch") == "nosuch"


def test_prune_leaves_networks_of_containers_even_stopped_ones(net):
    net("create", "--name", "web", "--network", "net", "busybox")
    net("network", "create", "--label", "keep", "kept")
    net("network", "create", "idle")
    asked = net("network", "prune", input=b"\n")
    assert asked == (
        "WARNING! This will remove all custom networks not used by at least one container.\n"
        "Are you sure you want to continue? [y/N] "
    )
    assert net("network", "prune", "-f", "--filter", "until=1h") == ""
    assert net("network", "prune", "-f", "--filter", "label!=keep") == "Deleted Networks:\nidle\n"
    assert net("network", "prune", "-f") == "Deleted Networks:\nkept\n"
    assert net("network", "ls", "-q", "-f", "name=net") != ""
