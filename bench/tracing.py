"""Where the time of one command goes: functions of the product wrapped from outside, in both its processes.

As a program it runs `transom` with the wrappers in place; each process writes its spans when it ends. The clock is
the kernel's monotonic one, which all processes share.
"""

import json
import os
import statistics
import subprocess
import sys
import time

SPANS = {
    "transom_engine.cli": {"Commands.get_command": "command module"},
    "transom.config": {"load": "config"},
    "transom_engine.engine": {
        "Engine.__init__": "engine", "Engine.close": "close", "Engine.close_databases": "close databases",
        "Engine.log_container": "describe for the log driver",
    },
    "transom.drivers": {"Drivers.open": "open a driver"},
    "transom_engine.cli.run": {"_read": "flags to records", "_have_image": "look the image up"},
    "transom_engine.cli.streaming": {"pump": "(wait for the end)"},
    "transom_engine.create": {"prepare": "create: check and fill in"},
    "transom_engine.containers": {
        "Containers.create": "create", "Containers._reserve": "create: record", "Containers._build": "create: layer",
        "Containers.start": "start", "Containers.discard": "discard the container",
    },
    "transom_engine.state": {"State.__init__": "open state.db", "State.save_container": "save the record"},
    "transom.services.snapshots": {"Snapshots.prepare": "create: snapshot"},
    "transom_engine.wire": {"Connection.ask": "(wait for the start)"},
    "transom_engine.supervisor": {
        "_detach_descriptors": "fork: descriptors", "Supervisor._own_namespaces": "own namespaces",
        "Supervisor._listen": "control socket", "Supervisor._mount_root": "mount the root",
        "Supervisor._limit": "limits: create", "Supervisor._join_networks": "networks: join",
        "Supervisor._prepare": "runtime: prepare",
        "Supervisor._go": "runtime: start", "Supervisor._run": "runtime: run", "Supervisor.start": "start: the rest",
        "Supervisor._serve": "serve while it runs", "Supervisor._counted_oom_kills": "end: limits.stats",
        "Supervisor.clear": "end: clear the run", "Supervisor._ended": "end: record",
        "Supervisor._finish": "end: answer", "Supervisor.__init__": "supervisor made",
    },
    "transom_engine.recording": {"Recording.open": "logs: open", "Recording.close": "end: logs"},
    "transom_engine.bundle": {"write_bundle": "write the bundle"},
    "transom_engine.networks.records": {"Networks.__init__": "networks: open"},
}  # fmt: skip
"""By module: the function, and what its time is called; time inside a span that has a name of its own is not its."""

BEFORE, REST, WAITING = "interpreter starts", "fork, exit, everything else", "(wait"

_spans = []
"""Begin, end, name, role, CPU time spent, the process's CPU time at the end."""
_role = "command"


def traced(side, words):
    """Run the command under this program; return its spans, the moment it was started and the one it ended at."""
    file = f"{side.environment['TRANSOM_EXEC_ROOT']}/spans"
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, __file__, file, *words], env=side.environment, check=True, stdout=subprocess.DEVNULL
    )
    end = time.perf_counter()
    time.sleep(0.05)
    with open(file) as lines:
        spans = [json.loads(line) for line in lines]
    os.unlink(file)
    return start, end, spans


def phases(traces):
    """Return each phase with the medians of its own milliseconds, of time and of CPU, in the order of beginning."""
    firsts, totals = {}, {}
    for start, end, spans in traces:
        own = {}
        for role in ("command", "supervisor"):
            _own_times(sorted(s for s in spans if s[3] == role), own)
        first = min(spans)
        own[BEFORE] = (first[0] - start, first[5] - first[4])
        own[REST] = (end - start - sum(spent for name, (spent, _) in own.items() if WAITING not in name), 0.0)
        own["in all"] = (end - start, sum(cpu for _, cpu in own.values()))
        for span in spans:
            firsts.setdefault(f"{span[3]}: {span[2]}", span[0] - start)
        for name, spent in own.items():
            totals.setdefault(name, []).append(spent)
    order = [BEFORE, *sorted(firsts, key=firsts.get), REST, "in all"]
    return [(name, *(statistics.median(s[i] for s in totals[name]) * 1000 for i in (0, 1))) for name in order]


def _own_times(spans, own):
    """Add to `own` each span's time and CPU time without those of the spans inside it."""
    open_ = []

    def add(label, time, cpu):
        before = own.get(label, (0.0, 0.0))
        own[label] = (before[0] + time, before[1] + cpu)

    for begin, end, name, role, cpu, _ in spans:
        while open_ and open_[-1][0] <= begin:
            open_.pop()
        if open_:
            add(open_[-1][1], begin - end, -cpu)
        label = f"{role}: {name}"
        add(label, end - begin, cpu)
        open_.append((end, label))


class Span:
    """Notes a span when it is left."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        self.begin, self.cpu = time.perf_counter(), time.process_time()

    def __exit__(self, *_):
        now = time.process_time()
        _spans.append((self.begin, time.perf_counter(), self.name, _role, now - self.cpu, now))


def _wrap(owner, attribute, name):
    function = getattr(owner, attribute, None)
    if function is None:
        print(f"bench/tracing.py: {owner.__name__}.{attribute} is no longer there", file=sys.stderr)
        return

    def timed(*args, **kwargs):
        with Span(name):
            return function(*args, **kwargs)

    setattr(owner, attribute, staticmethod(timed) if isinstance(owner.__dict__.get(attribute), staticmethod) else timed)


class _Imports:
    """Notes how long each outermost import takes, and wraps a module's functions once it is there."""

    depth = 0

    def find_spec(self, name, path=None, target=None):
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)):
                if hasattr(spec.loader, "exec_module"):
                    self._time(spec, name)
                return spec
        return None

    def _time(self, spec, name):
        execute = spec.loader.exec_module

        def timed(module):
            self.depth += 1
            try:
                if self.depth > 1:
                    execute(module)
                else:
                    with Span("imports"):
                        execute(module)
            finally:
                self.depth -= 1
            for path, label in SPANS.get(name, {}).items():
                owner, _, attribute = path.rpartition(".")
                _wrap(getattr(module, owner) if owner else module, attribute, label)
            if name == "transom_engine.supervisor":
                _note_fork(module)

        spec.loader.exec_module = timed


def _note_fork(module):
    become = module._become_supervisor

    def noted(*args):
        global _role
        _role = "supervisor"
        _spans.clear()
        return become(*args)

    module._become_supervisor = noted


def _run(file, words):
    leave = os._exit

    def written(code):
        if _spans:
            with open(file, "a") as out:
                out.writelines(json.dumps(span) + "\n" for span in _spans)
        leave(code)

    os._exit = written
    with Span("imports"):
        sys.meta_path.insert(0, _Imports())
    sys.argv = ["transom", *words]
    from transom_engine.cli import entry

    entry()


if __name__ == "__main__":
    _run(sys.argv[1], sys.argv[2:])
