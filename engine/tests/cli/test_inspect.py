"""``transom inspect``."""

import json


def test_inspect_has_dockers_shape_of_a_container(transom):
    name = transom.detached("--name", "web", "-v", "kept:/data:ro", "-e", "A=1", "-p", "18090:80", network="bridge")
    found = transom.inspect("web")
    assert list(found)[:6] == ["Id", "Created", "Path", "Args", "State", "Image"]
    assert (found["Id"], found["Name"], found["Path"], found["Args"]) == (name, "/web", "sleep", ["1000"])
    assert found["State"]["Running"]
    assert found["State"]["Pid"] > 0
    assert found["HostConfig"]["UTSMode"] == ""
    assert found["HostConfig"]["PortBindings"] == {"80/tcp": [{"HostIp": "", "HostPort": "18090"}]}
    assert "A=1" in found["Config"]["Env"]
    assert found["Mounts"] == [
        {
            "Type": "volume", "Name": "kept", "Source": f"{transom.data}/transom/volumes/kept/_data",
            "Destination": "/data", "Driver": "local", "Mode": "ro", "RW": False, "Propagation": "",
        }
    ]  # fmt: skip
    settings = found["NetworkSettings"]
    assert settings["IPAddress"] == settings["Networks"]["bridge"]["IPAddress"] == "172.17.0.2"
    assert settings["Gateway"] == "172.17.0.1"
    assert {"HostIp": "0.0.0.0", "HostPort": "18090"} in settings["Ports"]["80/tcp"]
    assert set(found["GraphDriver"]["Data"]) == {"LowerDir", "MergedDir", "UpperDir", "WorkDir"}
    for file in ("ResolvConfPath", "HostnamePath", "HostsPath", "LogPath"):
        assert found[file].startswith(f"{transom.data}/transom/containers/{name}/")
    assert "SizeRw" not in found
    sized = transom.inspect("web", "--size")
    assert 0 <= sized["SizeRw"] < sized["SizeRootFs"]


def test_inspect_of_a_stopped_container_has_no_addresses(transom):
    name = transom.detached(network="bridge")
    transom("stop", "-t", "0", name)
    found = transom.inspect(name)
    assert found["State"]["Status"] == "exited"
    assert found["State"]["Pid"] == 0
    assert found["NetworkSettings"]["IPAddress"] == found["NetworkSettings"]["SandboxKey"] == ""


def test_inspect_finds_images_networks_and_volumes_too(transom):
    transom("create", "--name", "first", "-v", "kept:/data", "busybox")
    assert transom.inspect("busybox")["RepoTags"] == ["busybox:latest"]
    assert transom.inspect("bridge")["IPAM"]["Config"][0]["Subnet"] == "172.17.0.0/16"
    assert transom.inspect("kept")["Mountpoint"].endswith("/kept/_data")
    assert "Anonymous" not in transom.inspect("kept", "--type", "volume")
    done = transom.call("inspect", "busybox", "first", "kept")
    assert [item.get("Name") for item in json.loads(done.out)] == [None, "/first", "kept"]


def test_inspect_goes_on_over_names_that_are_not_there(transom):
    transom("create", "--name", "first", "--network", "none", "busybox")
    done = transom.call("inspect", "nosuch", "first", "No/Such:thing")
    assert done.code == 1
    assert [item["Name"] for item in json.loads(done.out)] == ["/first"]
    listed = "; `transom ps -a`, `images`, `network ls` and `volume ls` list those here"
    assert done.err == (f"transom: no such object: nosuch{listed}\ntransom: no such object: No/Such:thing{listed}\n")
    assert transom.fails("inspect", "--type", "container", "busybox", code=1) == (
        "no such container: busybox; `transom ps -a` lists those here"
    )


def test_inspect_formats(transom):
    transom("create", "--name", "first", "--network", "none", "busybox", "sleep", "5")
    transom("create", "--name", "second", "--network", "none", "busybox")
    template = "{{.Name}} {{.State.Status}} {{json .Args}}"
    assert transom("inspect", "-f", template, "first", "second") == '/first created ["5"]\n/second created []'
    shown = transom("inspect", "-f", "json", "first", "second")
    assert [item["Name"] for item in json.loads(shown)] == ["/first", "/second"], "a list on one line, as docker's"
    assert "\n" not in shown
    assert transom("container", "inspect", "-f", "{{.Name}}", "first") == "/first"
    assert transom("image", "inspect", "-f", "{{index .RepoTags 0}}", "busybox") == "busybox:latest"


def test_inspect_says_what_is_wrong(empty_transom):
    assert empty_transom.fails("inspect", "--type", "contain", "x", code=125) == (
        "--type 'contain' is not a valid value (did you mean container?); there are container, image, network, volume"
    )
    assert empty_transom.fails("inspect", "-f", "{{.Name", "x", code=125).startswith("--format '{{.Name', column ")


def test_inspect_says_which_field_is_not_there(transom):
    transom("create", "--name", "first", "--network", "none", "busybox")
    assert transom.fails("inspect", "-f", "{{.Nam}}", "first", code=125).startswith(
        "--format '{{.Nam}}': no field 'Nam' in . (did you mean Name?)"
    )
