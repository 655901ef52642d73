"""``transom container`` and ``transom image``."""


def test_the_group_has_dockers_commands(transom):
    name = transom.detached()
    assert transom("container", "ls", "-q", "--no-trunc") == name
    assert transom("container", "stop", "-t", "0", name) == name
    assert transom("container", "rm", name) == name


def test_every_command_of_the_groups_has_its_help(empty_transom):
    for group in ("container", "image"):
        listed = [line.split()[0] for line in empty_transom(group, "--help").splitlines() if line.startswith("  ")]
        for name in listed[listed.index("--help,") + 1 if "--help," in listed else 1 :]:
            if not name.startswith("-"):
                assert "Usage: transom" in empty_transom(group, name, "--help")


def test_a_group_names_the_command_that_was_meant(empty_transom):
    assert empty_transom.fails("container", "lss", code=125) == (
        "no such command: container lss (did you mean ls?); see `transom container --help`"
    )


def test_list_and_remove_are_second_names_of_ls_and_rm(transom):
    transom("network", "create", "net")
    transom("volume", "create", "vol")
    assert transom("network", "list", "-q", "-f", "name=net") == transom("network", "ls", "-q", "-f", "name=net")
    assert transom("network", "remove", "net") == "net"
    assert transom("volume", "list", "-q") == "vol"
    assert transom("volume", "remove", "vol") == "vol"
    assert transom("container", "list", "-aq") == ""
    assert transom("image", "list", "-q") == transom("image", "ls", "-q")
    assert transom.fails("network", "lss") == (
        "no such command: network lss (did you mean ls?); see `transom network --help`"
    )


def test_a_group_without_a_command_shows_its_help(empty_transom):
    assert empty_transom("container").startswith("Usage: transom container ")
