"""``transom config``: every value with its origin, and files checked before they are put in force."""

import msgspec


def written(tmp_path, **keys):
    file = tmp_path / "daemon.json"
    file.write_bytes(msgspec.json.encode(keys))
    return file


def test_show_tells_each_value_with_its_origin(empty_transom, tmp_path):
    file = written(tmp_path, **{"mtu": 1400, "log-opts": {"max-size": "1m"}, "live-restore": True})
    lines = empty_transom("--config", file, "--log-driver", "json-file", "config", "show").splitlines()
    assert lines[0].split() == ["KEY", "VALUE", "ORIGIN"]
    rows = {line.split()[0]: line.split(None, 2)[1:] for line in lines}
    assert rows["mtu"] == ["1400", f"file {file}"]
    assert rows["log-opts"] == ['{"max-size":"1m"}', f"file {file}"]
    assert rows["log-driver"] == ["json-file", "command line --log-driver"]
    assert rows["data-root"] == [str(empty_transom.data), "environment TRANSOM_DATA_ROOT"]
    assert rows["ipv6"] == ["false", "default"]
    assert rows["live-restore"] == [
        "true", f"file {file}; ignored: containers never depend on a daemon: they outlive it always"
    ]  # fmt: skip


def test_show_as_json_prints_an_object_a_line(empty_transom):
    rows = [msgspec.json.decode(line) for line in empty_transom("config", "show", "--format", "json").splitlines()]
    assert {"Key": "icc", "Value": "true", "Origin": "default"} in rows


def test_check_accepts_a_good_file_and_names_what_is_ignored(empty_transom, tmp_path):
    file = written(tmp_path, **{"storage-driver": "overlay2", "log-format": "json"})
    assert empty_transom("config", "check", file).splitlines() == [
        f"log-format: file {file}; ignored: the engine writes plain text",
        f"{file} is valid",
    ]


def test_check_finds_unknown_keys_and_bad_values(empty_transom, tmp_path):
    file = written(tmp_path, **{"storage-drivr": "overlay2"})
    assert empty_transom.fails("config", "check", file, code=125) == (
        f"{file}: unknown key 'storage-drivr' (did you mean storage-driver?)"
    )
    file = written(tmp_path, mtu="x")
    assert empty_transom.fails("config", "check", file, code=125) == (
        f'{file}: mtu must be a whole number, at least 0, at most 65535, not "x"'
    )
    assert empty_transom.fails("config", "check", tmp_path / "none") == (
        f"{tmp_path}/none: no such file (named by --config)"
    )


def test_check_names_every_driver_that_is_missing_and_every_option_that_is_off(empty_transom, tmp_path):
    file = written(tmp_path, **{"storage-driver": "overlay3", "log-opts": {"max-sise": "1m"}})
    text = empty_transom.fails("config", "check", file, code=125)
    assert "no storage driver 'overlay3' (did you mean overlay2?)" in text
    assert f"json-file has no option 'max-sise' (from file {file}: log-opts) (did you mean max-size?)" in text
