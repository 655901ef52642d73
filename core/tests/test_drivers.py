"""Finding, checking and opening drivers: what an author or a user gets to read for each mistake."""

import importlib.metadata
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest

from transom.contract import Probe
from transom.contract.storage import Mount, State, Storage, StorageCapability, Usage
from transom.drivers import Call, Drivers, Wrapper, bind, check, contract_of, installed
from transom.errors import ConfigError, ContractError, NotFound, NotSupported


class Good(Storage):
    """A driver that keeps its contract."""

    name = "good"
    api = 1

    def prepare(self, id, parents, size, idmap):
        self.made = id

    def mounts(self, id, parents, state):
        return (Mount(type="bind", source=f"/{id}", readonly=state is not State.ACTIVE),)

    def remove(self, id):
        return None

    def owned(self):
        return frozenset()

    def usage(self, id, parents):
        return Usage(size=0, inodes=0)


def fault(**members):
    """Return what `check` says of `Good` with some members replaced; None deletes one."""
    base = {key: value for key, value in vars(Good).items() if not key.startswith("__") and key != "_abc_impl"}
    for key, value in members.items():
        if callable(value) and not isinstance(value, type):
            value.__qualname__ = f"Bad.{key}"  # as if written in the class
    kept = {key: value for key, value in {**base, **members}.items() if value is not None}
    with pytest.raises(ContractError) as error:
        check(type("Bad", (Storage,), kept), Storage, who="storage driver 'good' of mine 1.0", name="good")
    return str(error.value).removeprefix("storage driver 'good' of mine 1.0 breaks its contract: ")


def test_a_driver_that_keeps_its_contract_passes():
    check(Good, Storage, who="it", name="good")


def test_a_missing_operation_is_named_with_its_parameters():
    assert fault(owned=None) == "it does not implement owned()"


def test_a_misspelt_operation_is_recognised():
    assert (
        fault(prepare=None, prepar=lambda self, id: None)
        == "it does not implement prepare(id, parents, size, idmap) (is prepar it, misspelt?)"
    )


def test_a_parameter_that_would_never_arrive_is_named():
    assert fault(remove=lambda self: None) == "remove never receives id; it must be remove(id)"


def test_keyword_only_and_catch_all_parameters_are_refused():
    def keyword_only(self, *, id):
        return None

    def catch_all(self, **kwargs):
        return None

    assert fault(remove=keyword_only) == "remove cannot be called with id; it must be remove(id)"
    assert fault(remove=catch_all) == "remove never receives id; it must be remove(id)"


def test_an_argument_that_the_contract_does_not_have_is_named():
    text = fault(remove=lambda self, id, force: None)
    assert "Argument(s) {'force'} are declared in the hookimpl but can not be found in the hookspec" in text


def test_a_capability_without_its_operation_is_named():
    assert fault(capabilities=frozenset({StorageCapability.CLONE})) == (
        "it declares clone but does not implement clone(id, source, parents)"
    )


def test_capabilities_of_the_wrong_type_are_refused():
    assert fault(capabilities={"clone"}) == (
        "capabilities must be a frozenset of transom.contract.storage's Capability enum"
    )


def test_another_contract_version_is_refused_before_anything_else():
    assert fault(api=7, owned=None) == (
        "it was written for contract version 7, this core has 1: install a matching release"
    )


def test_a_class_of_another_name_than_its_entry_point_is_refused():
    assert fault(name="other") == "its entry point is called 'good' but the class says name = 'other'"


def test_options_without_default_or_text_are_refused():
    class Options(msgspec.Struct, frozen=True):
        size: int

    assert fault(Options=Options) == "Options.size must have a default; option_docs must describe 'size'"
    assert fault(Options=dict) == "Options must be a frozen msgspec.Struct"


def test_something_else_than_a_class_of_the_kind_is_refused():
    with pytest.raises(ContractError) as error:
        check(print, Storage, who="it", name="print")
    assert "must be a class derived from transom.contract.storage.Storage" in str(error.value)


def test_all_faults_are_reported_at_once():
    text = fault(owned=None, remove=lambda self: None, capabilities=frozenset({StorageCapability.CLONE}))
    assert "owned()" in text
    assert "remove never receives id" in text
    assert "declares clone" in text


# Installed distributions


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Return a function that installs a distribution with entry points into a directory on sys.path."""
    place = tmp_path / "site"
    place.mkdir()
    monkeypatch.syspath_prepend(str(place))
    # The first entry is the script's own place and does not count.
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    made = []

    def install(name, points, *, source="", group="transom.storage", version="1.0"):
        module = "mod_" + name.replace("-", "_") + tmp_path.name.replace("-", "_")
        made.append(module)
        (place / f"{module}.py").write_text(textwrap.dedent(source))
        info = place / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = "".join(f"{key} = {value.replace('MODULE', module)}\n" for key, value in points.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
        importlib.metadata.MetadataPathFinder.invalidate_caches(None)
        importlib.invalidate_caches()
        return place / f"{module}.py"

    yield install
    for module in made:
        sys.modules.pop(module, None)


SOURCE = """
    from transom.contract.storage import Storage, Usage
    class Mine(Storage):
        name = "mine"
        api = 1
        def prepare(self, id, parents, size, idmap): return None
        def mounts(self, id, parents, state): return ()
        def remove(self, id): return None
        def owned(self): return frozenset()
        def usage(self, id, parents): return Usage(size=0, inodes=0)
"""


@pytest.fixture
def drivers(tmp_path):
    return Drivers(state=tmp_path / "state", run=tmp_path / "run")


def test_a_driver_installed_a_moment_ago_is_found_and_opened(distribution, drivers, tmp_path):
    distribution("transom-mine", {"mine": "MODULE:Mine"}, source=SOURCE)
    driver = drivers.storage("mine")
    assert driver.root == tmp_path / "state" / "storage" / "mine"
    assert driver.run == tmp_path / "run" / "storage" / "mine"
    assert next(d for d in installed("storage") if d.name == "mine").distribution == "transom-mine"


def test_an_unknown_driver_lists_those_installed_and_the_nearest(distribution, drivers):
    distribution("transom-mine", {"mine": "MODULE:Mine"}, source=SOURCE)
    with pytest.raises(NotFound) as error:
        drivers.storage("mime")
    names = sorted(driver.name for driver in installed("storage"))
    assert {"mine", "overlay2", "vfs"} <= {*names}
    assert str(error.value).startswith(
        f"no storage driver 'mime' (did you mean mine?); installed: {', '.join(names)}; a driver comes with"
    )


def test_an_unknown_kind_lists_the_kinds(drivers):
    with pytest.raises(ConfigError) as error:
        contract_of("storag")
    assert str(error.value) == (
        "no such kind of driver: 'storag' (did you mean storage?);"
        " the kinds are auth, limits, logging, network, storage"
    )


def test_a_name_that_two_distributions_provide_names_both(distribution, drivers):
    distribution("transom-one", {"mine": "MODULE:Mine"}, source=SOURCE)
    distribution("transom-two", {"mine": "MODULE:Mine"}, source=SOURCE, version="2.0")
    with pytest.raises(ConfigError) as error:
        drivers.storage("mine")
    text = str(error.value)
    assert text.startswith("storage driver 'mine' is provided more than once: transom-one 1.0 (")
    assert "transom-two 2.0 (" in text
    assert text.endswith("uninstall one")


def test_a_module_that_cannot_be_imported_names_its_distribution(distribution, drivers):
    distribution("transom-mine", {"mine": "MODULE:Mine"}, source="import no_such_module_at_all")
    with pytest.raises(ContractError) as error:
        drivers.storage("mine")
    assert str(error.value).startswith(
        "storage driver 'mine' of transom-mine 1.0 cannot be loaded from mod_transom_mine"
    )
    assert str(error.value).endswith("ModuleNotFoundError: No module named 'no_such_module_at_all'")


def test_an_entry_point_to_nothing_is_named(distribution, drivers):
    distribution("transom-mine", {"mine": "MODULE:Gone"}, source=SOURCE)
    with pytest.raises(ContractError) as error:
        drivers.storage("mine")
    assert "cannot be loaded from" in str(error.value)
    assert "AttributeError" in str(error.value)


def test_a_name_that_came_into_pyproject_after_the_installation_asks_to_install_again(distribution, drivers, tmp_path):
    file = distribution("transom-mine", {"mine": "MODULE:Mine"}, source=SOURCE)
    source = tmp_path / "my source"
    source.mkdir()
    (source / "pyproject.toml").write_text('[project.entry-points."transom.storage"]\nother = "mine:Other"\n')
    info = next(file.parent.glob("*.dist-info"))
    (info / "direct_url.json").write_text(
        f'{{"url": "file://{tmp_path}/my%20source", "dir_info": {{"editable": true}}}}'
    )
    with pytest.raises(NotFound) as error:
        drivers.storage("other")
    assert str(error.value).endswith(
        f"; {source}/pyproject.toml names it, but was changed after it was installed: install it again"
        f" (pip install -e {source})"
    )
    with pytest.raises(NotFound) as error:
        drivers.storage("another")
    assert str(error.value).endswith("a driver comes with a distribution such as transom-storage-another")


def test_a_driver_that_passed_is_checked_again_when_its_file_changes(distribution, drivers, tmp_path):
    file = distribution("transom-mine", {"mine": "MODULE:Mine"}, source=SOURCE)
    drivers.storage("mine")
    assert (tmp_path / "run" / "drivers.json").exists()
    file.write_text(textwrap.dedent(SOURCE).replace("def owned(self): return frozenset()", ""))
    sys.modules.pop(file.stem)
    with pytest.raises(ContractError) as error:
        Drivers(state=tmp_path / "state", run=tmp_path / "run").storage("mine")
    assert "does not implement owned()" in str(error.value)


def test_a_warm_open_imports_neither_stevedore_nor_pluggy(tmp_path):
    import subprocess

    code = (
        "import sys; from pathlib import Path; from transom.drivers import Drivers;"
        f"Drivers(state=Path({str(tmp_path)!r}), run=Path({str(tmp_path)!r})).storage('overlay2');"
        "print({'stevedore', 'pluggy', 'importlib.metadata'} & set(sys.modules))"
    )
    outputs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)]
    assert "stevedore" in outputs[0]
    assert outputs[1] == "set()\n"


def test_a_damaged_index_is_found_anew(tmp_path):
    (tmp_path / "drivers.json").write_text("{ torn")
    assert Drivers(state=tmp_path, run=tmp_path).storage("overlay2").name == "overlay2"


def test_listing_imports_no_driver():
    import subprocess

    code = (
        "import sys; from transom.drivers import installed; assert len(installed()) >= 8;"
        "print([m for m in sys.modules if m.startswith('transom_')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_first_usable_driver_is_taken_and_a_refusal_has_every_reason(distribution, drivers):
    source = "from transom.contract import Probe\n" + textwrap.dedent(SOURCE)
    source += "    def probe(self): return Probe(usable=False, reason='no such kernel')\n"
    distribution("transom-mine", {"mine": "MODULE:Mine"}, source=source)
    assert drivers.first_usable("storage", ["mine", "absent", "vfs"]) == "vfs"
    with pytest.raises(NotSupported) as error:
        drivers.first_usable("storage", ["mine", "absent"])
    assert str(error.value).startswith("no usable storage driver: mine: no such kernel;")


def test_a_probe_that_raises_means_unusable_with_the_exception_as_reason(distribution, drivers):
    source = textwrap.dedent(SOURCE) + "    def probe(self): raise RuntimeError('boom')\n"
    distribution("transom-mine", {"mine": "MODULE:Mine"}, source=source)
    assert drivers.probe("storage", "mine") == Probe(usable=False, reason="RuntimeError: boom")


# Wrappers


class Recorder(Wrapper):
    def __init__(self, name, said):
        self.name, self.said = name, said

    def around(self, call):
        self.said.append((self.name, call.operation, dict(call.arguments)))
        try:
            return (yield)
        finally:
            self.said.append((self.name, "end", {}))


def opened(tmp_path, *wrappers):
    driver = Good(options=Good.Options(), root=tmp_path, run=tmp_path)
    return driver, bind(driver, Storage, wrappers)


def test_wrappers_stand_around_every_operation_the_first_outermost(tmp_path):
    said = []
    driver, bound = opened(tmp_path, Recorder("outer", said), Recorder("inner", said))
    bound.prepare(id="a", parents=(), size=None, idmap=None)
    assert driver.made == "a"
    arguments = {"id": "a", "parents": (), "size": None, "idmap": None}
    assert said == [
        ("outer", "prepare", arguments),
        ("inner", "prepare", arguments),
        ("inner", "end", {}),
        ("outer", "end", {}),
    ]
    assert bound.probe() == Probe(usable=True)


def test_without_wrappers_a_call_goes_straight_to_the_driver(tmp_path):
    driver, bound = opened(tmp_path)
    assert bound is driver


def test_a_wrapper_that_raises_keeps_the_driver_from_being_called(tmp_path):
    class Veto(Wrapper):
        def around(self, call: Call):
            raise NotSupported("not today")
            yield

    driver, bound = opened(tmp_path, Veto())
    with pytest.raises(NotSupported):
        bound.prepare(id="a", parents=(), size=None, idmap=None)
    assert not hasattr(driver, "made")


def test_a_wrapper_sees_the_drivers_error_and_may_replace_its_result(tmp_path):
    class Shout(Wrapper):
        def around(self, call: Call):
            result = yield
            return frozenset({"x"}) if call.operation == "owned" else result

    _, bound = opened(tmp_path, Shout())
    assert bound.owned() == frozenset({"x"})
    with pytest.raises(NotSupported):
        bound.clone(id="a", source="b", parents=())
    assert bound.name == "good"
    assert bound.root == Path(tmp_path)


def test_an_unknown_wrapper_lists_those_installed(tmp_path):
    with pytest.raises(NotFound) as error:
        Drivers(state=tmp_path, run=tmp_path, wrappers=["timing"]).storage("overlay2")
    assert str(error.value) == "no wrapper 'timing'; installed: none"


def test_a_wrapper_that_is_no_wrapper_is_refused(distribution, tmp_path):
    distribution("transom-w", {"w": "MODULE:W"}, source="class W: pass", group="transom.wrappers")
    with pytest.raises(ContractError) as error:
        Drivers(state=tmp_path, run=tmp_path, wrappers=["w"]).storage("overlay2")
    assert str(error.value).endswith("must derive from transom.drivers.Wrapper")
