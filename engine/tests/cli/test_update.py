"""``transom update``."""


def test_update_changes_limits_of_a_running_container(transom):
    name = transom.detached("-m", "64m")
    assert transom("update", "-m", "32m", "--pids-limit", "5", "--cpus", "0.5", name) == name
    host = transom.inspect(name)["HostConfig"]
    assert (host["Memory"], host["PidsLimit"], host["NanoCpus"]) == (32 << 20, 5, 500_000_000)
    assert "/ 32MiB" in transom("stats", "--no-stream", name)
    done = transom.call("exec", name, "sh", "-c", "for i in 1 2 3 4 5 6; do sleep 9 & done")
    assert "can't fork" in done.err


def test_update_of_a_stopped_container_acts_when_it_starts(transom):
    name = transom("create", "--network", "none", "busybox", "sleep", "1000")
    transom("update", "--memory", "48m", name)
    transom("start", name)
    assert "/ 48MiB" in transom("stats", "--no-stream", name)


def test_update_changes_the_restart_policy_at_once(transom):
    name = transom.detached(command=("sh", "-c", "sleep 1; exit 1"))
    transom("update", "--restart", "on-failure:1", name)
    assert transom("wait", name) == "1"
    assert transom.inspect(name)["RestartCount"] == 1


def test_update_says_what_is_wrong_and_changes_nothing(transom):
    name = transom.detached("-m", "64m")
    assert transom.fails("update", name, code=125) == (
        "you must provide one or more flags when using this command; see `transom update --help`"
    )
    assert transom.fails("update", "--restart", "sometimes", name, code=125).startswith(
        "--restart 'sometimes': invalid restart policy 'sometimes'"
    )
    assert transom.fails("update", "-m", "lots", name, code=125) == (
        "--memory 'lots': invalid size; expected a size such as 512m or 2g"
    )
    assert transom.fails("update", "--log-opt", "max-size=lots", name, code=1) == (
        "logging driver json-file: max-size='lots' (from --log-opt): expected a size such as 10m"
    )
    assert transom.fails("update", "--restart", "no", "nosuch", code=1) == (
        "no such container: nosuch; `transom ps -a` lists those here"
    )
    assert transom.fails("update", "-m", "1k", name, code=1)
    assert transom.inspect(name)["HostConfig"]["Memory"] == 64 << 20


def test_update_refuses_a_restart_policy_for_what_is_removed_when_it_ends(transom):
    name = transom.detached("--rm")
    assert transom.fails("update", "--restart", "always", name, code=1) == (
        "restart policy cannot be updated because AutoRemove (--rm) is enabled for the container"
    )
