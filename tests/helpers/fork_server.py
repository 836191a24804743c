"""Python processes that start with PyTorch already imported: forked from a server that imported it once.

Importing torch, torch._dynamo and matplotlib takes 3 s of CPU, more than most tested commands need for their own work.
ForkedPopen is subprocess.Popen, for `python script.py`, `python -m module` and `python -c code`: the process is a child
of the one that asked for it, with its own files, environment, directory, session, signals and exit status. Unlike in a
fresh interpreter, the modules of PRELOADED are imported, the hash seed is the server's, and the end does not clear each
module. Under torchrun and sweep.py their processes are forked too, by a server of their own.

Where others start these (Slurm does), `python fork_server.py -m torch.distributed.run ...` is a torchrun that forks.
"""

import atexit
import ctypes
import gc
import importlib
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any, NamedTuple

# No module of ours, and none that reads its settings from the environment when it is imported (huggingface_hub, wandb).
PRELOADED = ("torch._dynamo", "torch.distributed.launcher.api", "matplotlib.pyplot", "jsonargparse", "tiktoken")
READ_AT_START = ("PYTHONHASHSEED", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONWARNINGS", "LANG", "LC_ALL")
STARTERS = ("torch.distributed.run", "train/sweep.py")  # commands that start others by Popen
PR_SET_CHILD_SUBREAPER = 36  # of <linux/prctl.h>
SUPPORTED = sys.platform == "linux"

_start_fresh = subprocess.Popen._execute_child
_parameters = inspect.signature(_start_fresh)
_server: socket.socket | None = None  # this process's end of the connection to its server
_lock = threading.Lock()


class Job(NamedTuple):
    """What a process is to run, and where."""

    words: list[str]  # of the command, after the interpreter
    cwd: str
    environment: dict[str, str]
    new_session: bool
    ignored: list[int]  # signals


class ForkedPopen(subprocess.Popen):
    """subprocess.Popen whose Python processes are forked; any other command is started as usual."""

    def _execute_child(self, *arguments: Any) -> None:
        _execute_child(self, *arguments)


def _execute_child(process: subprocess.Popen, *arguments: Any) -> None:
    """Popen's way to start a process, whose files are open already: here by asking the server."""
    asked = _parameters.bind(process, *arguments).arguments
    words = [os.fspath(word) for word in asked["args"]] if isinstance(asked["args"], list | tuple) else []
    environment = dict(os.environ if asked["env"] is None else asked["env"])
    if (
        words[:1] != [sys.executable]
        or any(asked[name] for name in ("preexec_fn", "shell", "pass_fds", "executable"))
        or any(environment.get(name) != os.environ.get(name) for name in READ_AT_START)
    ):
        _start_fresh(process, *arguments)
        return
    cwd = os.fspath(asked["cwd"] or Path.cwd())
    job = Job(words[1:], cwd, environment, asked["start_new_session"], _ignored_signals())
    names = ("p2cread", "c2pwrite", "errwrite")
    files = [asked[name] if asked[name] != -1 else number for number, name in enumerate(names)]
    process.pid = _fork(job, files)
    process._child_created = True
    pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
    process._close_pipe_fds(*(asked[name] for name in pipes))


def _ignored_signals() -> list[int]:
    return [number for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN]


def _fork(job: Job, files: list[int]) -> int:
    """Ask the server for a process, and return its id; it is then a child of this process."""
    payload = json.dumps(job).encode()
    with _lock:
        server = _running_server()
        _adopt_orphans(True)
        try:
            socket.send_fds(server, [len(payload).to_bytes(8, "big")], files)
            server.sendall(payload)
            pid = int.from_bytes(_read(server, 8), "big")
            _read(server, 1)  # the process between is gone, and its child ours
        finally:
            _adopt_orphans(False)
    return pid


def _running_server() -> socket.socket:
    global _server
    if _server is None:
        _server, theirs = socket.socketpair()
        # no threads of NumPy's BLAS before a fork, and room for what /proc/PID/environ is to show
        environment = os.environ | {"OMP_NUM_THREADS": "1", "SPACE": " " * 16384}
        words = [sys.executable, __file__, str(theirs.fileno())]
        subprocess.Popen(words, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
    return _server


def _adopt_orphans(adopt: bool) -> None:
    """Whether a process whose parent ends becomes a child of this process, and not of init."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError("the fork server is gone")
        data += part
    return data


def serve(connection: socket.socket) -> Job:
    """Fork a process for each job, until the other end is closed; return in each of them, with its job."""
    while True:
        size, files, _, _ = socket.recv_fds(connection, 8, 3)
        if not size:
            os._exit(0)
        job = Job(*json.loads(_read(connection, int.from_bytes(size, "big"))))
        between = os.fork()  # its child has no parent when it ends, and becomes one of the process that asked
        if between == 0:
            between = os.getpid()
            pid = os.fork()
            if pid:
                connection.sendall(pid.to_bytes(8, "big"))
                os._exit(0)
            while os.getppid() == between:
                time.sleep(0.0005)
            connection.close()
            _become(job, files)
            return job
        os.waitpid(between, 0)
        connection.sendall(b"1")
        for file in files:
            os.close(file)


def _become(job: Job, files: list[int]) -> None:
    """Give this process what Popen and the interpreter's start would have given it."""
    import torch

    for number, file in enumerate(files):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    if job.new_session:
        os.setsid()
    os.chdir(job.cwd)
    os.environ.clear()
    os.environ.update(job.environment)
    _show_environment(job.environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in job.ignored:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(int(job.environment.get("OMP_NUM_THREADS", os.cpu_count())))
    unbuffered = job.words[0] == "-u" or bool(job.environment.get("PYTHONUNBUFFERED"))
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        old = getattr(sys, name)
        lines = not unbuffered and (name == "stderr" or os.isatty(old.fileno()))
        file = os.fdopen(old.fileno(), mode, 1 if lines else -1, old.encoding, old.errors, closefd=False)
        if mode == "w":
            file.reconfigure(write_through=unbuffered)
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)
    if any(word.endswith(STARTERS) for word in job.words):
        _serve_own_children()


def _show_environment(environment: dict[str, str]) -> None:
    """Overwrite what /proc/PID/environ shows, which is the memory that the server's environment came in."""
    start, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[47:49])
    block = "".join(f"{name}={value}\0" for name, value in environment.items()).encode(errors="surrogateescape")
    ctypes.memmove(start, block[: end - start].ljust(end - start, b"\0"), end - start)


def _serve_own_children() -> None:
    """Fork a server for this process, which starts others by Popen: torchrun, a sweep."""
    global _server
    _server, theirs = socket.socketpair()
    if os.fork() == 0:
        _server.close()
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        run(serve(theirs))
    theirs.close()
    subprocess.Popen._execute_child = _execute_child


def run(job: Job) -> None:
    """Run a job as the interpreter runs its command line; end without clearing modules, which takes 0.3 s."""
    try:
        _run_words(job)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        status = end.code or 0
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    else:
        status = 0
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run_words(job: Job) -> None:
    first, *others = job.words[1:] if job.words[0] == "-u" else job.words
    paths = [path for path in job.environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    if first == "-m":
        sys.argv, sys.path[:0] = others, [job.cwd, *paths]
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path[:0] = ["-c", *others[1:]], ["", *paths]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(others[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv, sys.path[:0] = [first, *others], [str(Path(first).resolve().parent), *paths]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [path for path in sys.path[1:] if path not in inherited]
    for module in PRELOADED:
        importlib.import_module(module)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a server with threads cannot fork"
    gc.collect()
    gc.freeze()  # the collector writes into no page that the processes share
    os.environ.pop("SPACE", None)
    if not sys.argv[1].isdecimal():
        _serve_own_children()
        run(Job(sys.argv[1:], str(Path.cwd()), dict(os.environ), False, []))
    run(serve(socket.socket(fileno=int(sys.argv[1]))))
