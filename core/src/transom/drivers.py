"""Finding, checking and opening drivers.

Three tools, three jobs: stevedore imports the one driver that was named; the contract's ABC and mypy carry the
types; pluggy checks parameter names and carries wrappers around the operations. What none of them sees is
checked here, and all faults of a driver are reported in one error.

A driver that passed the check is not checked again until its file changes, and where a name leads is remembered
until something is installed or removed: both in one small index below the run directory. With it a command that
uses four drivers imports neither stevedore nor pluggy nor importlib.metadata. Without it, or when it is stale,
everything is found anew.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from transom.contract import API, KINDS, Capability, Driver, Probe
from transom.errors import ConfigError, ContractError, NotFound, NotSupported, choices, nearest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from transom.contract.auth import Auth
    from transom.contract.limits import Limits
    from transom.contract.logging import Logging
    from transom.contract.network import NetworkDriver
    from transom.contract.storage import Storage

D = TypeVar("D", bound=Driver)

_CONTRACTS = {
    "storage": "Storage",
    "network": "NetworkDriver",
    "logging": "Logging",
    "limits": "Limits",
    "auth": "Auth",
}
_SPEC: dict[str, Any] = {"firstresult": True, "historic": False, "warn_on_impl": None, "warn_on_impl_args": None}
_PLAIN: dict[str, Any] = dict.fromkeys(("wrapper", "hookwrapper", "optionalhook", "tryfirst", "trylast"), False)
_PLAIN["specname"] = None
_WRAPPER = {**_PLAIN, "wrapper": True}
_current: ContextVar[Call] = ContextVar("call")


class Installed(msgspec.Struct, frozen=True, order=True):
    """A driver as its distribution announces it; nothing of it has been imported."""

    kind: str
    name: str
    distribution: str
    version: str
    target: str
    """The entry point's value, "module:Class"."""

    def __str__(self) -> str:
        return f"{self.kind} driver {self.name!r} of {self.distribution} {self.version}"


class Call(msgspec.Struct, frozen=True):
    """One call of an operation, as a wrapper sees it."""

    kind: str
    driver: str
    operation: str
    arguments: Mapping[str, Any]


class Wrapper:
    """The base of a wrapper plugin: stands around every operation of every driver.

    Named by an entry point in the group ``transom.wrappers`` and switched on by the config's
    ``{"transom": {"wrappers": ["NAME"]}}``; the first named is the outermost. `around` is a generator that yields
    once: before it, raising stops the call and the driver is not reached; after it, the result may be replaced
    by returning another one. `yield` gives the result, or raises what the driver raised::

        class Timings(Wrapper):
            def around(self, call):
                start = time.perf_counter()
                try:
                    return (yield)
                finally:
                    print(call.driver, call.operation, time.perf_counter() - start)
    """

    def around(self, call: Call) -> Generator[None, Any, Any]:
        """Stand around one call; see the class's text."""
        return (yield)


def contract_of(kind: str) -> type[Driver]:
    """Import the contract of a kind."""
    if kind not in _CONTRACTS:
        raise ConfigError(f"no such kind of driver: {kind!r}{nearest(kind, KINDS)}; the kinds are {choices(KINDS)}")
    return cast("type[Driver]", _resolve(f"transom.contract.{kind}:{_CONTRACTS[kind]}"))


def operations_of(contract: type[Driver]) -> dict[str, Callable[..., Any]]:
    """Return the operations of a contract by name, inherited ones included."""
    members = {name: getattr(contract, name) for name in dir(contract) if not name.startswith("_")}
    return {name: member for name, member in members.items() if hasattr(member, "__transom_operation__")}


def installed(kind: str | None = None) -> list[Installed]:
    """List the installed drivers, of one kind or of all, sorted; imports none of them."""
    from importlib.metadata import entry_points

    kinds = (kind,) if kind else KINDS
    return sorted({_describe(k, point) for k in kinds for point in entry_points(group=f"transom.{k}")})


def _describe(kind: str, point: EntryPoint) -> Installed:
    dist = point.dist
    return Installed(kind, point.name, dist.name if dist else "?", dist.version if dist else "?", point.value)


class _Known(msgspec.Struct):
    """An entry of the index: where a name leads, and the state of the file that passed the check."""

    driver: Installed
    file: str = ""
    stamp: tuple[int, int] = (0, 0)


class _Index(msgspec.Struct):
    """The index on disk; valid while `paths` is: each directory of sys.path with its modification time."""

    api: int
    paths: list[tuple[str, int]]
    known: dict[str, _Known] = {}


# Made at import, not at first use: msgspec crashes when two threads meet a type for the first time at once.
_INDEX = msgspec.json.Decoder(_Index)


class Drivers:
    """The drivers of one configuration: finds, checks and opens them.

    Args:
        state: the engine's durable directory; a driver's `root` is ``KIND/NAME`` below it.
        run: the engine's volatile directory; a driver's `run` is ``KIND/NAME`` below it.
        wrappers: names of wrapper plugins to stand around every operation, outermost first.
    """

    def __init__(self, *, state: Path, run: Path, wrappers: Iterable[str] = ()) -> None:
        self.state, self.run, self._wrapper_names = state, run, tuple(wrappers)
        self._index_path = run / "drivers.json"
        self._loaded: _Index | None = None

    def storage(self, name: str, options: Mapping[str, str] | None = None, *, where: str = "config") -> Storage:
        """Open a storage driver; see `open`."""
        return cast("Storage", self.open("storage", name, options, where=where))

    def network(self, name: str, options: Mapping[str, str] | None = None, *, where: str = "config") -> NetworkDriver:
        """Open a network driver; see `open`."""
        return cast("NetworkDriver", self.open("network", name, options, where=where))

    def logging(self, name: str, options: Mapping[str, str] | None = None, *, where: str = "config") -> Logging:
        """Open a log driver; see `open`."""
        return cast("Logging", self.open("logging", name, options, where=where))

    def limits(self, name: str, options: Mapping[str, str] | None = None, *, where: str = "config") -> Limits:
        """Open a resource-limit driver; see `open`."""
        return cast("Limits", self.open("limits", name, options, where=where))

    def auth(self, name: str, options: Mapping[str, str] | None = None, *, where: str = "config") -> Auth:
        """Open an auth driver; see `open`."""
        return cast("Auth", self.open("auth", name, options, where=where))

    def open(self, kind: str, name: str, options: Mapping[str, str] | None = None, *, where: str = "config") -> Driver:
        """Make an instance of the named driver.

        Args:
            options: the user's words; converted to the driver's `Options`.
            where: where the options were written, for error texts.

        Raises:
            NotFound: no such driver is installed; the text lists those that are.
            ContractError: it cannot be imported or breaks its contract.
            ConfigError: an option is unknown or ill-typed.
        """
        from transom.services.options import convert

        cls = self.load(kind, name)
        typed = convert(driver=cls, options=options or {}, where=where)
        driver = cls(options=typed, root=self.state / kind / name, run=self.run / kind / name)
        return bind(driver, contract_of(kind), map(_open_wrapper, self._wrapper_names))

    def load(self, kind: str, name: str) -> type[Driver]:
        """Import the named driver's class and make sure that it keeps its contract; raises like `open`."""
        contract = contract_of(kind)
        index = self._index()
        known = index.known.get(f"{kind}/{name}") if index else None
        try:
            if known and _stamp(known.file) == known.stamp:
                return cast("type[Driver]", _resolve(known.driver.target))
        except Exception:
            pass  # found anew below, where the failure gets its text
        described, cls = _find(kind, name)
        check(cls, contract, who=str(described), name=name)
        self._remember(described, cls)
        return cast("type[Driver]", cls)

    def first_usable(self, kind: str, order: Iterable[str]) -> str:
        """Return the first installed driver of `order` whose probe says that this host can run it.

        Raises:
            NotSupported: none can; the text has each one's reason.
        """
        reasons = []
        present = {driver.name for driver in installed(kind)}
        for name in order:
            if name not in present:
                continue
            probe = self.probe(kind, name)
            if probe.usable:
                return name
            reasons.append(f"{name}: {probe.reason}")
        tried = "; ".join(reasons) or f"none of {choices(order)} is installed"
        raise NotSupported(f"no usable {kind} driver: {tried}; `transom drivers ls` shows all, the config can name one")

    def probe(self, kind: str, name: str) -> Probe:
        """Ask a driver, with default options, whether this host can run it; a driver that fails to say cannot."""
        try:
            return self.open(kind, name).probe()
        except Exception as error:
            return Probe(usable=False, reason=f"{type(error).__name__}: {error}".splitlines()[0])

    def _index(self) -> _Index | None:
        if self._loaded is None:
            try:
                index = _INDEX.decode(self._index_path.read_bytes())
            except (OSError, msgspec.DecodeError):
                return None
            if index.api != API or index.paths != _search_path():
                return None
            self._loaded = index
        return self._loaded

    def _remember(self, described: Installed, cls: type) -> None:
        """Note a driver that passed; without the right or the room to write it, the next command checks again."""
        from transom.services.files import write_atomic

        index = self._index() or _Index(api=API, paths=_search_path())
        file = getattr(sys.modules.get(cls.__module__), "__file__", None) or ""
        index.known[f"{described.kind}/{described.name}"] = _Known(described, file, _stamp(file))
        self._loaded = index
        try:
            self.run.mkdir(parents=True, exist_ok=True)
            write_atomic(self._index_path, msgspec.json.encode(index), mode=0o600, durable=False)
        except OSError:
            pass


def _search_path() -> list[tuple[str, int]]:
    """Return what tells that a distribution came or went: sys.path, the script's own place left out, with times."""
    return [(path, _stamp(path)[0]) for path in sys.path[1:]]


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


def _resolve(target: str) -> Any:
    from importlib import import_module

    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def _find(kind: str, name: str) -> tuple[Installed, Any]:
    """Find and import a driver by stevedore, and put into words what it leaves unsaid."""
    from importlib.metadata import entry_points

    from stevedore.driver import DriverManager

    group = f"transom.{kind}"
    points = tuple(entry_points(group=group, name=name))
    if not points:
        present = [driver.name for driver in installed(kind)]
        raise NotFound(
            f"no {kind} driver {name!r}{nearest(name, present)}; installed: {choices(present)}; "
            + (_edited(kind, name) or f"a driver comes with a distribution such as transom-{kind}-{name}")
        )
    if len(points) > 1:
        owners = "; ".join(f"{d.distribution} {d.version} ({d.target})" for d in installed(kind) if d.name == name)
        raise ConfigError(f"{kind} driver {name!r} is provided more than once: {owners}; uninstall one")
    described = _describe(kind, points[0])
    try:
        found: Any = DriverManager(
            group, name, on_load_failure_callback=lambda *_: None, on_missing_entrypoints_callback=None
        )
        if found.extensions[0].entry_point.value == described.target:
            return described, found.driver
    except Exception:
        pass  # stevedore's cache of entry points can be stale for minutes: the metadata has the last word
    try:
        return described, points[0].load()
    except Exception as error:
        raise ContractError(
            f"{described} cannot be loaded from {described.target}: {type(error).__name__}: {error}"
        ) from error


def _edited(kind: str, name: str) -> str:
    """Say in which distribution the driver is named by now, though not when it was installed for editing (PEP 660)."""
    import tomllib
    from importlib.metadata import distributions
    from urllib.parse import unquote, urlsplit

    for distribution in distributions():
        origin = msgspec.json.decode(distribution.read_text("direct_url.json") or "{}")
        if not origin.get("dir_info", {}).get("editable"):
            continue
        directory = unquote(urlsplit(origin["url"]).path)
        try:
            with open(f"{directory}/pyproject.toml", "rb") as file:
                points = tomllib.load(file).get("project", {}).get("entry-points", {})
        except (OSError, ValueError):
            continue
        if name in points.get(f"transom.{kind}", {}):
            return (
                f"{directory}/pyproject.toml names it, but was changed after it was installed: install it again"
                f" (pip install -e {directory})"
            )
    return ""


def check(cls: object, contract: type[Driver], *, who: str, name: str) -> None:
    """Compare a driver's class with its contract and report every fault in one `ContractError`."""
    faults = list(_faults(cls, contract, name))
    if faults:
        raise ContractError(f"{who} breaks its contract: " + "; ".join(faults))


def _faults(cls: object, contract: type[Driver], name: str) -> Generator[str, None, None]:
    if not isinstance(cls, type) or not issubclass(cls, contract):
        yield f"it must be a class derived from {contract.__module__}.{contract.__qualname__}, not {cls!r}"
        return
    if cls.api != API:
        yield f"it was written for contract version {cls.api}, this core has {API}: install a matching release"
        return
    if getattr(cls, "name", None) != name:
        yield f"its entry point is called {name!r} but the class says name = {getattr(cls, 'name', None)!r}"
    yield from _option_faults(cls)
    operations = operations_of(contract)
    missing = [o for o in sorted(operations) if getattr(getattr(cls, o), "__isabstractmethod__", False)]
    strangers = [m for m in vars(cls) if not m.startswith("_") and m not in operations and not hasattr(contract, m)]
    for operation in missing:
        yield f"it does not implement {operation}{_signature(operations[operation])}" + _misspelt(operation, strangers)
    for operation, spec in operations.items():
        if operation not in missing:
            yield from _signature_faults(cls, operation, spec)
    yield from _capability_faults(cls, contract, operations)
    yield from _pluggy_faults(cls, contract)


def _option_faults(cls: type[Driver]) -> Generator[str, None, None]:
    structures = {key: getattr(cls, key) for key in dir(cls) if key.endswith("Options")}
    for key, struct in structures.items():
        if not (isinstance(struct, type) and issubclass(struct, msgspec.Struct) and struct.__struct_config__.frozen):
            yield f"{key} must be a frozen msgspec.Struct"
            continue
        for field in msgspec.structs.fields(struct):
            if field.required:
                yield f"{key}.{field.name} must have a default"
            if not {field.name, field.encode_name} & cls.option_docs.keys():
                yield f"option_docs must describe {field.encode_name!r}"


def _misspelt(operation: str, strangers: list[str]) -> str:
    from difflib import get_close_matches

    match = get_close_matches(operation, strangers, n=1)
    return f" (is {match[0]} it, misspelt?)" if match else ""


def _signature(function: Callable[..., Any]) -> str:
    from inspect import signature

    return "(" + ", ".join(list(signature(function).parameters)[1:]) + ")"


def _signature_faults(cls: type, operation: str, spec: Callable[..., Any]) -> Generator[str, None, None]:
    """Find what pluggy lets pass: arguments that would never arrive, catch-alls, keyword-only parameters."""
    from inspect import Parameter, signature

    member = getattr(cls, operation)
    if not callable(member):
        yield f"{operation} must be a method"
        return
    wanted = list(signature(spec).parameters)[1:]
    parameters = list(signature(member).parameters.values())[1:]
    odd = [str(p) for p in parameters if p.kind is not Parameter.POSITIONAL_OR_KEYWORD]
    lost = [w for w in wanted if w not in {p.name for p in parameters}]
    if odd or lost:
        what = f"never receives {', '.join(lost)}" if lost else f"cannot be called with {', '.join(odd)}"
        yield f"{operation} {what}; it must be {operation}{_signature(spec)}"


def _capability_faults(
    cls: type[Driver], contract: type[Driver], operations: dict[str, Callable[..., Any]]
) -> Generator[str, None, None]:
    declared = cls.capabilities
    if not isinstance(declared, frozenset) or not all(isinstance(c, Capability) for c in declared):
        yield f"capabilities must be a frozenset of {contract.__module__}'s Capability enum"
        return
    for operation, spec in operations.items():
        needs = cast("Any", spec).__transom_operation__.needs
        if needs in declared and getattr(cls, operation) is getattr(contract, operation):
            yield f"it declares {needs} but does not implement {operation}{_signature(spec)}"


def _pluggy_faults(cls: type[Driver], contract: type[Driver]) -> Generator[str, None, None]:
    """Let pluggy compare the parameter names: it finds those that the contract does not have."""
    import pluggy

    try:
        _manager(contract, cls).register(cls, name=cls.__name__)
    except pluggy.PluginValidationError as error:
        yield " ".join(str(error).splitlines()[1:]).replace("hookimpl definition: ", "")


def _manager(contract: type[Driver], driver: object) -> Any:
    """Make a plugin manager whose hooks are the contract's operations and whose one plain plugin is `driver`."""
    import pluggy

    names = operations_of(contract)

    class Manager(pluggy.PluginManager):
        def parse_hookspec_opts(self, module_or_class: object, name: str) -> Any:
            return _SPEC if module_or_class is contract and name in names else None

        def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
            options = _PLAIN if plugin is driver else _WRAPPER
            return options if name in names else None

    manager = Manager("transom")
    manager.add_hookspecs(contract)
    return manager


def bind(driver: D, contract: type[Driver], wrappers: Iterable[Wrapper] = ()) -> D:
    """Return `driver` with wrappers around its operations, the first outermost; everything else passes through."""
    wrappers = list(wrappers)
    if not wrappers:
        return driver
    manager = _manager(contract, driver)
    manager.register(driver, name=driver.name)
    operations = operations_of(contract)
    for wrapper in reversed(wrappers):  # pluggy calls the last registered first
        manager.register(_hooks(wrapper, operations))
    return cast("D", _Bound(driver, {name: getattr(manager.hook, name) for name in operations}))


class _Bound:
    """A driver whose operations go through pluggy; all other attributes are the driver's own."""

    def __init__(self, driver: Driver, hooks: Mapping[str, Callable[..., Any]]) -> None:
        self._driver = driver
        self.__dict__.update({name: partial(self._call, name, hook) for name, hook in hooks.items()})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def _call(self, operation: str, hook: Callable[..., Any], /, **arguments: Any) -> Any:
        """Call the hook with the call itself at hand for the wrappers, which take no arguments of the operation."""
        token = _current.set(Call(self._driver.kind, self._driver.name, operation, arguments))
        try:
            return hook(**arguments)
        finally:
            _current.reset(token)


def _hooks(wrapper: Wrapper, operations: Iterable[str]) -> object:
    """Make a pluggy plugin that stands around every operation and tells `wrapper` about the call."""

    class Hooks:
        pass

    for name in operations:

        def hook(self: object) -> Generator[None, Any, Any]:
            return (yield from wrapper.around(_current.get()))

        hook.__qualname__ = f"Hooks.{name}"  # pluggy tells a method by its dotted name
        setattr(Hooks, name, hook)
    return Hooks()


def _open_wrapper(name: str) -> Wrapper:
    from importlib.metadata import entry_points

    points = entry_points(group="transom.wrappers")
    for point in points:
        if point.name == name:
            try:
                wrapper = point.load()()
            except Exception as error:
                raise ContractError(
                    f"wrapper {name!r} cannot be loaded from {point.value}: {type(error).__name__}: {error}"
                ) from error
            if not isinstance(wrapper, Wrapper):
                raise ContractError(f"wrapper {name!r} ({point.value}) must derive from transom.drivers.Wrapper")
            return wrapper
    names = sorted({point.name for point in points})
    raise NotFound(f"no wrapper {name!r}{nearest(name, names)}; installed: {choices(names)}")


__all__ = ["Call", "Drivers", "Installed", "Wrapper", "bind", "check", "contract_of", "installed", "operations_of"]
