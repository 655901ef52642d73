"""The supervisor of one container: a process of its own, forked from the command that starts the container.

It is the first process of a pid namespace, and has a mount namespace of its own. So whatever ends it, SIGKILL
included, the kernel ends the container with it (pid_namespaces(7)) and drops the mounts (mount_namespaces(7)):
a crash leaves no process and no mount behind. The container's own pid namespace is nested in that one.

It holds the layer's claim, the network namespace, the log drivers and the control socket, and stays until the
container has ended and everything of the run is cleared away; with a restart policy it starts the next run.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import msgspec

from transom.contract.limits import LimitEvent, LimitsCapability, Watch
from transom.contract.logging import Stream
from transom.errors import DriverError, TransomError
from transom.services.files import Lock, write_atomic
from transom.services.mounts import (
    CLONE_NEWNS,
    MS_MOVE,
    MS_REC,
    MS_SLAVE,
    become_subreaper,
    mount,
    mount_all,
    unmount,
    unshare,
)
from transom_engine import wire
from transom_engine.engine import Engine
from transom_engine.launching import Launch
from transom_engine.model import ZERO_TIME, Container, learned, now
from transom_engine.processes import Client, Process, host_pid
from transom_engine.recording import Recording
from transom_engine.restart import Backoff, should_restart
from transom_engine.streams import pipe, read

if TYPE_CHECKING:
    from transom.contract.network import Attachment
    from transom_engine.resolver import Resolver
    from transom_engine.watching import Watchers

_CLONE_NEWPID = 0x20000000
_CLIENT_LIMIT = 1 << 20
"""How many bytes may wait for a command that reads slowly before the container has to."""

_inherited: list[object] = []


def launch(engine: Engine, id: str, *, own_pids: bool = True, attach: wire.Request | None = None) -> wire.Connection:
    """Fork the supervisor of the container and wait until the container runs.

    Args:
        own_pids: in a pid namespace of its own. Not so for a container that shares the host's or another
            container's: setns(2) only leads down. The next command then clears away what a killed one leaves.
        attach: attach the returned connection from the first byte of output on.

    Raises:
        TransomError: it could not be started; everything of the attempt is cleared away.
    """
    engine.close_databases()
    # Held from here on, by whichever of the two lives: killed right after the fork, the command leaves no moment in
    # which the supervisor that is about to start seems dead.
    alive = engine.containers.alive_lock(id)
    alive.acquire()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pid = os.fork()
    if pid == 0:
        _become_supervisor(engine, id, theirs, alive, own_pids, attach)
    theirs.close()
    alive.release()
    os.waitpid(pid, 0)
    connection = wire.Connection(ours)
    try:
        reply = connection.ask(wire.Request(do="start"))
    except BaseException:
        connection.close()
        raise
    if reply.error:
        connection.close()
        error = TransomError(reply.error)
        error.exit_code = reply.code or 125
        raise error
    return connection


def _become_supervisor(
    engine: Engine, id: str, client: socket.socket, alive: Lock, own_pids: bool, attach: wire.Request | None
) -> NoReturn:
    """In the forked child: leave the command's session and descriptors, and fork into the new pid namespace."""
    try:
        # The parent's drivers must not be finalised here: their descriptors are closed below.
        _inherited.extend((engine, alive))
        os.setsid()
        if own_pids:
            unshare(_CLONE_NEWPID)
        if os.fork() != 0:
            os._exit(0)
        run = engine.container_run(id)
        os.makedirs(run, mode=0o700, exist_ok=True)
        _detach_descriptors({client.fileno(), alive.fd}, str(run / "supervisor.log"))
        os.chdir(run)
        Supervisor(Engine(engine.config), id, client, attach).main()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def _detach_descriptors(keep: set[int], log: str) -> None:
    first = 3
    for fd in (*sorted(keep), os.sysconf("SC_OPEN_MAX")):
        os.closerange(first, fd)
        first = fd + 1
    null = os.open(os.devnull, os.O_RDWR)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    for fd in (null, out):
        os.close(fd)


class Supervisor:
    """See the module's text."""

    def __init__(self, engine: Engine, id: str, client: socket.socket, attach: wire.Request | None) -> None:
        self.engine, self.id = engine, id
        self.run = engine.container_run(id)
        self.first = Client(client)
        self.attach = attach
        self.clients: list[Client] = [self.first]
        self.waiting: list[Client] = []
        self.main_process = Process(tty=False)
        self.executed: dict[int, Process] = {}
        self.reaped: dict[int, int] = {}
        self.recording = Recording(engine, id, nudge=self._nudge)
        self.refusal = ""
        self.undo: list[Callable[[], object]] = []
        self.join: Sequence[str] = ()
        self.watch: Watch | None = None
        self.oom_kills = 0
        self.resolver: Resolver | None = None
        self.watchers: Watchers | None = None
        self.heard: deque[tuple[str, Attachment]] = deque()
        self.netns = -1
        self.learned: tuple[list[str], list[str]] = [], []
        self.resolv_conf = ""
        self.kill_at = 0.0
        self.restart_at = 0.0
        self.backoff = Backoff()
        self.host_pid = int(os.readlink("/proc/self"))  # /proc is still the host's
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)

    # Life

    def main(self) -> None:
        """Start the container, serve until it has ended for good, clear away, and tell who waits."""
        become_subreaper()
        with self.engine.state.changing(self.id) as container:
            container.manually_stopped = False
        try:
            self._own_namespaces()
            self._listen()
            self.start(container)
        except TransomError as error:
            self._fail(container, str(error), error.exit_code)
            return
        except Exception as error:
            self._fail(container, f"starting container {container.name} failed: {type(error).__name__}: {error}", 125)
            return
        self.first.send(wire.REPLY, wire.Reply(pid=self._host_pid(self.main_process.pid)))
        while True:
            self._serve()
            container = self._ended()
            if not self._restarts(container):
                break
        self._finish(container)

    def _own_namespaces(self) -> None:
        self.host_proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        unshare(CLONE_NEWNS)
        mount("", "/", flags=MS_REC | MS_SLAVE)
        mount("proc", "/proc", "proc")
        with open("/proc/self/comm", "w") as comm:
            comm.write("transom-super")
        self._hide()

    def _hide(self) -> None:
        """Move out of the runtime's sight what it cannot bear; a limits driver finds it where it is then."""
        for number, path in enumerate(self.engine.runtime.hide):
            place = self.engine.run_dir / f"hidden-{number}"
            place.mkdir(exist_ok=True)
            mount(path, str(place), flags=MS_MOVE)

    def _listen(self) -> None:
        for name in ("control", "console"):
            try:
                os.unlink(name)
            except FileNotFoundError:
                pass
        self.listener.bind("control")
        self.listener.listen(64)
        self.listener.setblocking(False)
        self.wake, self.wake_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self.wake_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM):
            signal.signal(ignored, signal.SIG_IGN)

    def start(self, container: Container) -> None:
        """Bring the container up; what was done is undone when a later step fails.

        Raises:
            TransomError: with the exit code that docker would use.
        """
        from transom_engine.bundle import write_bundle

        self.main_process = self.main_process.successor(tty=container.config.tty)
        try:
            self._limit(container)
            launch, adopt = self._prepare(container)
            rootfs = self._mount_root(container)
            netns = self._join_networks(container)
            cgroup = self.engine.limits(container.limits_driver).runtime_path(id=self.id)
            write_bundle(
                self.engine, container, directory=str(self.run), rootfs=rootfs, netns=netns, cgroup=cgroup,
                proc=f"/proc/{os.getpid()}/fd/{self.host_proc}",
                terminal=(self.attach.rows, self.attach.columns) if self.attach else (0, 0),
            )  # fmt: skip
            self.resolv_conf = _slurp(str(self.engine.container_dir(self.id) / "resolv.conf"))
            self.undo.append(self.recording.close)
            self.recording.open(container)
            self._go(container, launch)
            adopt()
        except BaseException:
            self.clear()
            raise
        if self.attach is not None:
            self._attach(self.first, self.main_process, self.attach)
        with self.engine.state.changing(self.id) as record:
            state = record.state
            state.status, state.running, state.paused, state.restarting = "running", True, False, False
            state.pid, state.exit_code, state.error = self._host_pid(self.main_process.pid), 0, ""
            state.oom_killed, state.started_at = False, now()
            record.shim_pid, record.log_path = self.host_pid, container.log_path
            record.log_status = []
            self.engine.endpoints.note(container, record)
            self._event("start", record)
        if self.resolver is not None:
            self.resolver.start()
        self.backoff.started()

    def _mount_root(self, container: Container) -> str:
        snapshots = self.engine.snapshots(container.driver)
        claim = snapshots.claim(self.id)
        self.undo.append(claim.release)
        rootfs = str(self.run / "rootfs")
        os.makedirs(rootfs, exist_ok=True)
        mounts = snapshots.mounts(self.id)
        try:
            mount_all(mounts, rootfs)
        except OSError as error:
            raise DriverError("mount", driver=f"storage {container.driver}", subject=rootfs, cause=error) from error
        for item in mounts:
            self.undo.append(lambda place=os.path.join(rootfs, item.target): unmount(place))  # type: ignore[misc]
        layer = snapshots.stat(self.id).id
        self.undo.append(lambda: snapshots.driver.unmounting(id=layer, place=rootfs))
        return rootfs

    def _limit(self, container: Container) -> None:
        from transom_engine.resources import resources_of

        limits = self.engine.limits(container.limits_driver)
        self.undo.append(lambda: (limits.kill(id=self.id), limits.remove(id=self.id)))
        self.join = limits.create(id=self.id, resources=resources_of(container.host_config))
        if LimitsCapability.OOM_EVENTS in limits.capabilities:
            self.watch, self.oom_kills = limits.watch(id=self.id), 0
            self.undo.append(self.watch.close)

    def _join_networks(self, container: Container) -> str | None:
        """Give the container its network namespace; return its path, None for the host's."""
        endpoints = self.engine.endpoints
        place = endpoints.namespace(container, proc=self.host_proc)
        if place.fd < 0:
            return None
        self.undo.append(lambda: os.close(place.fd))
        if place.own:
            self.undo.append(self._leave_networks)
            endpoints.join(container, place.fd)
            self.netns, self.learned = place.fd, learned(container.network_settings.networks)
            self._watch_networks(container)
            self._listen_for_names(container)
        return f"/proc/{os.getpid()}/fd/{place.fd}"

    def _leave_networks(self) -> None:
        """Leave the networks that are on record: commands have joined and left some since the start."""
        self.engine.endpoints.leave(self.engine.state.container(self.id))

    def _watch_networks(self, container: Container, *, without: str = "") -> None:
        wanted = self.engine.endpoints.watches(container, self.netns, self._hear)
        wanted.pop(without, None)
        if wanted and self.watchers is None:
            from transom_engine.watching import Watchers

            self.watchers = Watchers()
            self.undo.append(self.watchers.close)
        if self.watchers is not None:
            self.watchers.follow(wanted)

    def _listen_for_names(self, container: Container) -> None:
        """Make the resolver where names are resolved; it answers once the container is on record as running."""
        from transom_engine.networks.names import resolves

        if self.resolver is None and resolves(self.engine, container):
            from transom_engine.resolver import Resolver

            self.resolver = Resolver(self.engine, self.id, self.netns)
            self.undo.append(self.resolver.close)

    def _reload(self, client: Client, *, without: str) -> None:
        """Watch the networks that the container is on now, and bring the resolver with the first that has names.

        It stays when the container leaves that network: it answers for the name servers too. The client, who waits for
        names, and for what it takes the container off not to be watched any more, does not wait for new threads.
        """
        if self.netns < 0:
            self._answer(client, "")
            return
        container = self.engine.state.container(self.id)
        if without:
            self._watch_networks(container, without=without)
        self._bring_names(container)
        self._answer(client, "")
        if not without:
            self._watch_networks(container)

    def _bring_names(self, container: Container) -> None:
        fresh = self.resolver is None
        self._listen_for_names(container)
        if fresh and self.resolver is not None:
            self.resolver.start()
        self._learn(container, fresh=fresh)

    def _learn(self, container: Container, *, fresh: bool = False) -> None:
        """Have the resolver's file say what came with the addresses that the container has now."""
        if self.resolver is None:
            return
        before, self.learned = self.learned, learned(container.network_settings.networks)
        if fresh or self.learned != before:
            from transom_engine.networks.files import rewrite_resolv_conf

            try:
                self.resolv_conf = rewrite_resolv_conf(self.engine, container, written=self.resolv_conf)
            except OSError as error:
                raise DriverError("writing", driver="resolver", subject="resolv.conf", cause=error) from error

    def _hear(self, endpoint: str, attachment: Attachment) -> None:
        """Take a driver's word for what an endpoint is now, in whichever thread it comes, to the main loop."""
        self.heard.append((endpoint, attachment))
        self._nudge()

    def _take_news(self) -> None:
        """Record and route by what drivers have said of the networks."""
        while self.heard:
            try:
                self._learn(self.engine.endpoints.take_over(self.id, *self.heard.popleft(), self.netns))
            except (TransomError, OSError) as error:  # the container goes on with what it has
                print(f"taking over an address: {error}", file=sys.stderr, flush=True)

    def _nudge(self) -> None:
        """Have the main loop look around; other threads call it."""
        try:
            os.write(self.wake_end, b"\0")
        except BlockingIOError:
            pass  # it has been nudged enough

    # The runtime

    def _prepare(self, container: Container) -> tuple[Launch, Callable[[], None]]:
        """Fork the runtime's process, and return what to do once it has run."""
        process = self.main_process
        console = self._console() if process.tty else None
        stdio, theirs = self._stdio(process, open_stdin=container.config.open_stdin)
        argv = self.engine.runtime.run(
            id=self.id, root="runtime", bundle=".", pid_file="init.pid", detach=True, log="runtime.log",
            console_socket="console" if console else "",
        )  # fmt: skip
        launch = Launch(argv, stdio, self.join, log="runtime.log")
        for fd in theirs:
            os.close(fd)
        self.undo.append(launch.abandon)

        def adopt() -> None:
            if console is not None:
                self._adopt_terminal(process, console, container.config.open_stdin)
            self._follow(process, int(_slurp("init.pid")))

        return launch, adopt

    def _go(self, container: Container, launch: Launch) -> None:
        if self._run(launch) != 0:
            self.main_process.close()
            raise self._explain([*(container.config.entrypoint or []), *(container.config.cmd or [])][0])

    def _run(self, launch: Launch) -> int:
        """Let the runtime run, and return its exit code; its output goes to the container."""
        launch.go()
        while launch.pid not in self.reaped:
            self._reap(block=True)
        return self.reaped.pop(launch.pid)

    def _stdio(self, process: Process, *, open_stdin: bool) -> tuple[tuple[int, int, int], list[int]]:
        """Make the descriptors that a process gets as 0, 1 and 2; also those of them to close afterwards."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        if process.tty:  # the terminal comes back through the console socket
            return (null, null, null), [null]
        (out, out_end), (err, err_end) = pipe(), pipe()
        for fd, stream in ((out, Stream.STDOUT), (err, Stream.STDERR)):
            os.set_blocking(fd, False)
            process.outputs[fd] = stream
        close = [null, out_end, err_end]
        stdin = null
        if open_stdin:
            stdin, process.stdin = pipe()
            os.set_blocking(process.stdin, False)
            close.append(stdin)
        return (stdin, out_end, err_end), close

    def _console(self) -> socket.socket:
        console = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            os.unlink("console")
        except FileNotFoundError:
            pass
        console.bind("console")
        console.listen(1)
        return console

    def _adopt_terminal(self, process: Process, console: socket.socket, open_stdin: bool) -> None:
        """Take the terminal's master end that the runtime sent (runtime-spec, terminal; SCM_RIGHTS)."""
        peer, _ = console.accept()
        _, fds, _, _ = socket.recv_fds(peer, 4096, 1)
        for sock in (peer, console):
            sock.close()
        master = fds[0]
        os.set_blocking(master, False)
        process.outputs[master] = Stream.STDOUT
        if open_stdin:
            process.stdin = os.dup(master)

    def _follow(self, process: Process, pid: int) -> None:
        """Know the process by its pid, though it may have ended already."""
        process.pid = pid
        self.executed[pid] = process
        if pid in self.reaped:
            process.ended(self.reaped.pop(pid))

    def _explain(self, command: str) -> TransomError:
        """Put the runtime's complaint into docker's words and exit codes."""
        from transom_engine.oci.runtime import start_error

        log = _slurp("runtime.log")
        kills = self._counted_oom_kills() - self.oom_kills
        self._note_oom(kills)
        with suppress(FileNotFoundError):
            os.unlink("runtime.log")
        if kills > 0 and not log:
            return TransomError(f'out of memory before "{command}" ran: the memory limit is too low, raise --memory')
        return start_error(runtime=self.engine.runtime, log=log.encode(), command=command)

    def _host_pid(self, pid: int) -> int:
        """Return the host's pid of a process of this namespace (proc(5): NSpid)."""
        return host_pid(self.host_proc, self.host_pid, pid)

    def _reap(self, *, block: bool = False) -> None:
        flags = 0 if block else os.WNOHANG
        while True:
            try:
                pid, status = os.waitpid(-1, flags)
            except ChildProcessError:
                return
            except InterruptedError:
                continue
            if pid == 0:
                return
            flags = os.WNOHANG
            code = os.waitstatus_to_exitcode(status)
            code = 128 - code if code < 0 else code
            process = self.executed.get(pid)
            if process is None:
                self.reaped[pid] = code  # the runtime itself, or an orphan of it
            else:
                process.ended(code)

    # Serving

    def _serve(self) -> None:
        """Move data and answer commands until the container's first process is done."""
        while not self.main_process.done:
            self._poll()
            for pid, process in list(self.executed.items()):
                if process is not self.main_process and process.done:
                    self._end_exec(pid, process)

    def _poll(self) -> None:
        poll = select.poll()
        handlers: dict[int, Callable[[int], None]] = {}

        def on(fd: int, events: int, handler: Callable[[int], None]) -> None:
            poll.register(fd, events)
            handlers[fd] = handler

        on(self.wake, select.POLLIN, self._on_wake)
        on(self.listener.fileno(), select.POLLIN, self._on_connect)
        if self.watch is not None:
            on(self.watch.fileno(), select.POLLIN, self._on_limit_event)
        for process in self._processes():
            self._register(process, on)
        for client in self.clients:
            events = (0 if self._stuffed(client) else select.POLLIN) | (select.POLLOUT if client.out else 0)
            on(client.socket.fileno(), events, lambda e, c=client: self._on_client(c, e))  # type: ignore[misc]
        for fd, events in poll.poll(self._timeout()):
            if fd in handlers:
                handlers[fd](events)
        self._on_time()

    def _processes(self) -> list[Process]:
        return list({id(p): p for p in (self.main_process, *self.executed.values())}.values())

    def _register(self, process: Process, on: Callable[[int, int, Callable[[int], None]], None]) -> None:
        full = any(len(c.out) > _CLIENT_LIMIT for c in process.clients)
        full = full or (process is self.main_process and self.recording.full)
        for fd in () if full else tuple(process.outputs):
            on(fd, select.POLLIN, lambda _e, p=process, f=fd: self._on_output(p, f))  # type: ignore[misc]
        if process.stdin >= 0 and process.stdin_waiting:
            on(process.stdin, select.POLLOUT, lambda _e, p=process: self._write_stdin(p))  # type: ignore[misc]

    @staticmethod
    def _stuffed(client: Client) -> bool:
        return client.process is not None and len(client.process.stdin_waiting) > _CLIENT_LIMIT

    def _timeout(self) -> int:
        """Return milliseconds until something is due."""
        times = [t for t in (self.kill_at, self.restart_at) if t]
        times += [p.drain_until for p in self._processes() if p.code is not None]
        times += self.recording.due()
        return max(0, int((min(times) - time.monotonic()) * 1000) + 1) if times else -1

    def _on_time(self) -> None:
        if self.kill_at and time.monotonic() >= self.kill_at:
            self.kill_at = 0.0
            self._signal(signal.SIGKILL)
        refusal = self.recording.news()
        if refusal and not self.refusal:
            self._stop_for(refusal)

    def _on_wake(self, _events: int) -> None:
        try:
            os.read(self.wake, 4096)
        except BlockingIOError:
            pass
        self._take_news()
        self._reap()

    def _stop_for(self, refusal: str) -> None:
        """Stop the container for good, as a user would: a log option asks for that where output cannot be kept."""
        from transom_engine.signals import number

        self.refusal = refusal
        with self.engine.state.changing(self.id) as container:
            container.manually_stopped = True
        grace = container.config.stop_timeout
        sent = number(container.config.stop_signal or "SIGTERM")
        self._stop(wire.Request(do="stop", signal=sent, timeout=10 if grace is None else grace))

    def _on_connect(self, _events: int) -> None:
        try:
            sock, _ = self.listener.accept()
        except BlockingIOError:
            return
        self.clients.append(Client(sock))

    def _on_limit_event(self, _events: int) -> None:
        assert self.watch is not None
        self._note_oom(sum(event is LimitEvent.OOM for event in self.watch.read()))

    def _note_oom(self, kills: int) -> None:
        """Tell of processes that were killed for want of memory, as they are and not only when the container ends."""
        if kills <= 0:
            return
        self.oom_kills += kills
        with self.engine.state.changing(self.id) as container:
            container.state.oom_killed = True
            for _ in range(kills):
                self._event("oom", container)

    def _on_output(self, process: Process, fd: int) -> None:
        data = read(fd)
        stream = process.outputs[fd]
        if data is None:
            del process.outputs[fd]
            os.close(fd)
            return
        if not data:
            return
        if process.clients:
            payload = wire.frame(wire.STDOUT if stream is Stream.STDOUT else wire.STDERR, data)
            for client in list(process.clients):
                client.out += payload
                self._flush(client)
        if process is self.main_process:
            self.recording.put(stream, data)

    def _on_client(self, client: Client, events: int) -> None:
        if events & select.POLLOUT:
            self._flush(client)
        if events & (select.POLLIN | select.POLLHUP | select.POLLERR) and client in self.clients:
            try:
                data = client.socket.recv(1 << 18)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._hang_up(client)
                return
            try:
                for kind, payload in client.frames.feed(data):
                    self._on_frame(client, kind, payload)
            except (ValueError, msgspec.MsgspecError):
                self._hang_up(client)

    def _flush(self, client: Client) -> None:
        try:
            while client.out:
                del client.out[: client.socket.send(client.out)]
        except BlockingIOError:
            pass
        except OSError:
            self._hang_up(client)

    def _hang_up(self, client: Client) -> None:
        if client not in self.clients:
            return
        self.clients.remove(client)
        if client in self.waiting:
            self.waiting.remove(client)
        if client.process is not None:
            if client in client.process.clients:
                client.process.clients.remove(client)
            if client.stdin and self._closes_stdin(client.process):
                self._end_stdin(client.process)
        client.socket.close()

    def _closes_stdin(self, process: Process) -> bool:
        if process is not self.main_process:
            return True
        return self.engine.state.container(self.id).config.stdin_once

    def _on_frame(self, client: Client, kind: int, payload: bytes) -> None:
        if kind == wire.REQUEST:
            request = msgspec.json.decode(payload, type=wire.Request)
            try:
                self._on_request(client, request)
            except TransomError as error:
                client.send(wire.REPLY, wire.Reply(error=str(error), code=error.exit_code))
        elif client.process is not None:
            if kind == wire.STDIN and client.stdin:
                client.process.stdin_waiting += payload
                self._write_stdin(client.process)
            elif kind == wire.STDIN_END and client.stdin:
                self._end_stdin(client.process)
            elif kind == wire.RESIZE:
                size = msgspec.json.decode(payload, type=wire.Request)
                client.process.resize(size.rows, size.columns)

    def _on_request(self, client: Client, request: wire.Request) -> None:
        match request.do:
            case "start":
                return  # answered when the container runs
            case "attach":
                self._attach(client, self.main_process, request)
            case "exec":
                self._exec(client, request)
                return
            case "signal":
                self._signal(request.signal)
            case "stop":
                self.waiting.append(client)
                self._stop(request)
            case "reload":
                self._reload(client, without=request.id)
                return
            case "wait":
                self.waiting.append(client)
            case "logs":
                client.send(wire.REPLY, wire.Reply(logs=self.recording.status()))
                return
            case "rotate" | "flush" | "reopen":
                self.recording.order(request, partial(self._answer, client))
                return
            case _:
                raise TransomError(f"the supervisor does not know how to {request.do}")
        client.send(wire.REPLY, wire.Reply())

    def _answer(self, client: Client, error: str) -> None:
        client.send(wire.REPLY, wire.Reply(error=error, code=1 if error else 0))
        self._flush(client)

    def _attach(self, client: Client, process: Process, request: wire.Request) -> None:
        client.process, client.stdin = process, request.stdin
        if request.output:
            process.clients.append(client)
        if request.rows:
            process.resize(request.rows, request.columns)
        if process is self.main_process and client not in self.waiting:
            self.waiting.append(client)

    def _write_stdin(self, process: Process) -> None:
        try:
            while process.stdin >= 0 and process.stdin_waiting:
                del process.stdin_waiting[: os.write(process.stdin, process.stdin_waiting)]
        except BlockingIOError:
            return
        except OSError:  # the reader is gone
            process.stdin_waiting.clear()
        if process.stdin_ended and not process.stdin_waiting:
            self._end_stdin(process)

    def _end_stdin(self, process: Process) -> None:
        process.stdin_ended = True
        if process.stdin >= 0 and not process.stdin_waiting:
            if process.tty:
                return  # a terminal has no end; the user types one
            os.close(process.stdin)
            process.stdin = -1

    def _signal(self, number: int) -> None:
        if self.main_process.code is None and self.main_process.pid:
            os.kill(self.main_process.pid, number)
            if number == signal.SIGKILL:
                self._thaw()
        elif number == signal.SIGKILL:
            self.restart_at = 0.0

    def _thaw(self) -> None:
        """Let a paused container go on, so that the signal that ends it can act."""
        limits = self.engine.limits(self.engine.state.container(self.id).limits_driver)
        if LimitsCapability.FREEZE in limits.capabilities:
            limits.thaw(id=self.id)

    def _stop(self, request: wire.Request) -> None:
        self.restart_at = 0.0
        if self.main_process.code is not None:
            return
        if self.engine.state.container(self.id).state.paused:
            self._thaw()
        self._signal(request.signal)
        if request.timeout >= 0:
            self.kill_at = time.monotonic() + request.timeout

    # Executing more in the container

    def _exec(self, client: Client, request: wire.Request) -> None:
        assert request.process is not None
        process = Process(tty=request.tty)
        console = self._console() if request.tty else None
        stdio, theirs = self._stdio(process, open_stdin=request.stdin)
        name = f"exec-{request.id[:16]}"
        write_atomic(f"{name}.json", msgspec.json.encode(request.process), mode=0o600, durable=False)
        argv = self.engine.runtime.exec(
            id=self.id, root="runtime", process=f"{name}.json", pid_file=f"{name}.pid", detach=True,
            log="runtime.log", console_socket="console" if console else "",
        )  # fmt: skip
        try:
            code = self._run(Launch(argv, stdio, self.join, log="runtime.log"))
            if code != 0:
                process.close()
                raise self._explain(request.process["args"][0])
            if console is not None:
                self._adopt_terminal(process, console, request.stdin)
            self._follow(process, int(_slurp(f"{name}.pid")))
        finally:
            for fd in theirs:
                os.close(fd)
            for suffix in ("json", "pid"):
                try:
                    os.unlink(f"{name}.{suffix}")
                except FileNotFoundError:
                    pass
        client.send(wire.REPLY, wire.Reply(pid=process.pid))
        process.exec_id = request.id
        container = self.engine.state.container(self.id)
        for action in ("exec_create", "exec_start"):
            self._event(f"{action}: {' '.join(request.process['args'])}", container, execID=request.id)
        if not request.detach:
            self._attach(client, process, request)

    def _end_exec(self, pid: int, process: Process) -> None:
        code = str(process.code or 0)
        self._event("exec_die", self.engine.state.container(self.id), execID=process.exec_id, exitCode=code)
        del self.executed[pid]
        process.close()
        for client in list(process.clients):
            client.send(wire.EXIT, wire.Exit(code=process.code or 0))
            client.process = None
            self._flush(client)

    # The end

    def _ended(self) -> Container:
        """Clear the run away and record how it ended."""
        process = self.main_process
        self.executed.pop(process.pid, None)
        for pid, other in list(self.executed.items()):  # the kernel has ended them with the namespace
            other.code = other.code if other.code is not None else 137
            self._end_exec(pid, other)
        self.recording.finish()
        self._note_oom(self._counted_oom_kills() - self.oom_kills)
        oom_killed, self.oom_kills = self.oom_kills > 0, 0
        self.clear()
        process.close()
        self.kill_at = 0.0
        with self.engine.state.changing(self.id) as container:
            restarts = should_restart(container, process.code or 0)
            container.log_status = self.recording.last
            state = container.state
            state.error, self.refusal = self.refusal, ""
            state.running, state.paused, state.pid, state.oom_killed = False, False, 0, oom_killed
            state.exit_code, state.finished_at = process.code or 0, now()
            state.status, state.restarting = ("restarting", True) if restarts else ("exited", False)
            if not restarts:
                container.shim_pid = 0
                self.engine.endpoints.forget(container)
            self._event("die", container, exitCode=str(state.exit_code))
        return container

    def _counted_oom_kills(self) -> int:
        """Return the kernel's own count: the end can be noticed before the event, which some kernels never send."""
        try:
            limits = self.engine.limits(self.engine.state.container(self.id).limits_driver)
            return limits.stats(id=self.id).oom_kills or 0
        except TransomError:
            return 0

    def clear(self) -> None:
        """Undo the run, the last step first; what fails is said and does not keep the rest from being undone."""
        while self.undo:
            step = self.undo.pop()
            try:
                step()
            except Exception as error:
                print(f"clearing {self.id[:12]} away: {error}", file=sys.stderr, flush=True)
        self.watch, self.resolver, self.watchers, self.netns = None, None, None, -1
        remove_runtime_state(str(self.run))

    def _restarts(self, container: Container) -> bool:
        """Wait out the pause before a restart and start again; False when the container stays down."""
        while container.state.restarting:
            self.restart_at = time.monotonic() + self.backoff.next_pause()
            while self.restart_at and time.monotonic() < self.restart_at:
                self._poll()
            due, self.restart_at = bool(self.restart_at), 0.0
            with self.engine.state.changing(self.id) as container:
                if not due or not should_restart(container, container.state.exit_code):
                    container.state.status, container.state.restarting, container.shim_pid = "exited", False, 0
                    return False
                container.restart_count += 1
            try:
                self.start(container)
            except Exception as error:
                with self.engine.state.changing(self.id) as container:
                    container.state.error, container.state.exit_code = str(error), getattr(error, "exit_code", 125)
                continue
            self._event("restart", container)
            return True
        return False

    def _finish(self, container: Container) -> None:
        if container.host_config.auto_remove:
            self.engine.containers.discard(container)
        else:
            self.engine.containers.clear_run(self.id)
        for client in list(self.waiting):
            client.send(wire.EXIT, wire.Exit(code=container.state.exit_code, error=container.state.error))
        self._flush_all()

    def _fail(self, container: Container, text: str, code: int) -> None:
        with self.engine.state.changing(self.id) as container:
            state = container.state
            state.status = "created" if state.started_at == ZERO_TIME else "exited"
            state.exit_code, state.error = code, text
            container.shim_pid = 0
            self.engine.endpoints.forget(container)
        self.engine.containers.clear_run(self.id)
        self.first.send(wire.REPLY, wire.Reply(error=text, code=code))
        self._flush_all()

    def _flush_all(self) -> None:
        """Send what waits, for as long as it is being read, at most a few seconds."""
        end = time.monotonic() + 10
        while any(client.out for client in self.clients) and time.monotonic() < end:
            poll = select.poll()
            for client in self.clients:
                if client.out:
                    poll.register(client.socket.fileno(), select.POLLOUT)
            poll.poll(100)
            for client in list(self.clients):
                self._flush(client)

    def _event(self, action: str, container: Container, **attributes: str) -> None:
        self.engine.containers.event(action, container, **attributes)


def remove_runtime_state(run: str) -> None:
    """Remove what the OCI runtime keeps of a run; it has ended, so its records are all there is."""
    from shutil import rmtree

    rmtree(os.path.join(run, "runtime"), ignore_errors=True)
    for name in ("config.json", "init.pid", "console", "runtime.log"):
        try:
            os.unlink(os.path.join(run, name))
        except FileNotFoundError:
            pass


def _slurp(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""
