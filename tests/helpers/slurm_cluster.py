"""A real Slurm on this machine: one controller and two nodes, n1 and n2, in a temporary folder with ports of their own.

Debian's slurm-wlm is enough; nothing of an installed cluster is touched or needed. Root only, as slurmd insists.
"""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

SYSTEM_PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
FINISHED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE"}

CONFIGURATION = """
ClusterName=two_nodes
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its old credential has expired: 120 seconds by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd_%n.log
# No cgroups, no accounting, no MPI: what a container or a virtual machine allows.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=100000
ReturnToService=2
KillWait=30
# The machine may have fewer cores than its two nodes say.
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_1} CPUs=4 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_2} CPUs=4 State=UNKNOWN
PartitionName=test Nodes=n1,n2 Default=YES OverSubscribe=FORCE:4 State=UP
"""


def why_not() -> str | None:
    """Why a cluster cannot start here, or None when it can."""
    absent = [program for program in PROGRAMS if not shutil.which(program, path=SYSTEM_PATH)]
    if absent:
        return f"not installed: {' '.join(absent)} (apt-get install slurm-wlm munge)"
    return "the daemons start only as root" if os.geteuid() != 0 else None


class SlurmCluster:
    """A running two-node cluster; a context manager. `folder` must be new, empty and of a short path (sockets)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[subprocess.Popen] = []
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))},
            "PATH": SYSTEM_PATH,
            "SLURM_CONF": str(folder / "slurm.conf"),
        }

    def __enter__(self) -> "SlurmCluster":
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _start(self) -> None:
        self.folder.chmod(0o755)  # munged refuses a socket that others cannot reach
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        controller, first, second = _free_ports(3)
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                folder=self.folder,
                host=socket.gethostname().split(".")[0],
                controller_port=controller,
                port_1=first,
                port_2=second,
            )
        )
        # Version 1 is not looked at unless it is used; looking for the right one fails where /sys has no cgroups.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        self._daemon(
            *("munged", "--foreground", "--force", "--num-threads=2"),
            *(f"--key-file={key}", f"--socket={self.folder}/munge.socket", f"--seed-file={self.folder}/munge.seed"),
            *(f"--pid-file={self.folder}/munge.pid", f"--log-file={self.folder}/munge.log"),
        )
        self._until(lambda: (self.folder / "munge.socket").exists(), "munged has no socket")
        self._daemon("slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            self._daemon("slurmd", "-D", "-c", "-N", node)
        self._until(self._idle, "the nodes do not become idle")

    def _daemon(self, *command: str) -> None:
        with (self.folder / f"{command[0]}_{len(self.daemons)}.out").open("wb") as output:
            self.daemons.append(
                subprocess.Popen(
                    command, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
                )
            )

    def _idle(self) -> bool:
        listing = self.run("sinfo", "--noheader", "--Node", "--format=%T", check=False).stdout.split()
        return listing == ["idle", "idle"]

    def _until(self, happened: Callable[[], bool], complaint: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in self.daemons):
                raise RuntimeError(f"{complaint}\n{self.logs()}")
            time.sleep(0.2)

    def run(
        self, *command: object, check: bool = True, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess:
        """Run one of Slurm's commands against this cluster, with text output captured."""
        result = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        if check and result.returncode:
            raise RuntimeError(f"{command}: exit {result.returncode}\n{result.stdout}{result.stderr}\n{self.logs()}")
        return result

    def sbatch(self, *arguments: object, cwd: Path, **environment: str) -> str:
        """Submit a script from the folder `cwd`; the job's id."""
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd, **environment).stdout.split(";")[0].strip()

    def state(self, job: str) -> dict[str, str]:
        """The state of the job or of each task of its array, by job id."""
        shown = self.run("scontrol", "show", "job", job).stdout
        return dict(re.findall(r"^JobId=(\d+).*?JobState=(\S+)", shown, flags=re.MULTILINE | re.DOTALL))

    def restarts(self, job: str) -> int:
        """How often the job was requeued."""
        return int(re.search(r"Restarts=(\d+)", self.run("scontrol", "show", "job", job).stdout)[1])

    def wait(self, job: str, seconds: float = 300) -> set[str]:
        """Wait for the job, or for all tasks of its array; the final states. TimeoutError, with the logs, when late."""
        deadline = time.monotonic() + seconds
        while not set(self.state(job).values()) <= FINISHED:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job} after {seconds:.0f} s: {self.state(job)}\n{self.logs()}")
            time.sleep(0.5)
        return set(self.state(job).values())

    def logs(self) -> str:
        """The last lines of every daemon's log: what a failing test should show."""
        names = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"--- {path.name}\n" + "\n".join(path.read_text().splitlines()[-15:]) for path in names)

    def stop(self) -> None:
        """End the jobs, then the daemons, that this cluster started."""
        if len(self.daemons) > 1 and self.run("scancel", "--user=root", check=False).returncode == 0:
            deadline = time.monotonic() + 40  # longer than KillWait: a job may be slow to end
            while self.run("squeue", "--noheader", check=False).stdout and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
