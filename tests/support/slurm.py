"""A real Slurm on this machine: munged, slurmctld and a few slurmd, all in one folder, for the time of a test session.

Nothing outside the folder is written, nobody else's processes are touched, and neither root nor cgroups are needed.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from support.waiting import wait_until

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "sinfo", "scancel")
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
START_ATTEMPTS = 3
"""Ports are chosen free, but somebody may take one before a daemon does."""
PATIENCE_AT_THE_END = 5.0
"""Seconds that cancelled jobs have to end by themselves."""

CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also the time that a requeued job waits; the least that is allowed.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
ReturnToService=2
JobRequeue=1
KillWait=60
MinJobAge=3600
SlurmdParameters=config_overrides
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """Programs of Slurm and munge that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCH_PATH) is None]


class Cluster:
    """Nodes named 127.0.0.1, 127.0.0.2, ...: names that resolve, so that jobs can use the first one's as an address."""

    def __init__(self, folder: Path, nodes: int, cpus_per_node: int) -> None:
        self.folder, self.nodes, self._cpus = folder, nodes, cpus_per_node
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN"))}
        self.environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": SEARCH_PATH}

    def start(self) -> None:
        """Raises AssertionError, with the last lines of the logs, if the nodes do not come up."""
        for attempt in range(START_ATTEMPTS):
            try:
                self._start_daemons()
                return
            except AssertionError:
                self.stop()
                if attempt + 1 == START_ATTEMPTS:
                    raise

    def _start_daemons(self) -> None:
        self._write_configuration()
        socket_option = f"--socket={self.folder}/munge.socket"
        self._launch(
            "munged",
            "--foreground",
            "--force",  # the folder may lie in one that others can write to, as /tmp
            socket_option,
            *(f"--{kind}-file={self.folder}/munged.{kind}" for kind in ("pid", "log", "seed")),
            f"--key-file={self.folder}/munge.key",
        )
        self._await(lambda: self._succeeds("munge", socket_option, "-n"), "munged")
        configuration = self.environment["SLURM_CONF"]
        self._launch("slurmctld", "-D", "-f", configuration)
        self._await(lambda: self._succeeds("scontrol", "ping"), "slurmctld")
        for node in self.node_names:
            self._launch("slurmd", "-D", "-f", configuration, "-N", node)
        self._await(lambda: self._idle_nodes() == self.nodes, "idle nodes")

    @property
    def node_names(self) -> list[str]:
        """Names of the nodes."""
        return [f"127.0.0.{i + 1}" for i in range(self.nodes)]

    def _write_configuration(self) -> None:
        (self.folder / "state").mkdir(exist_ok=True)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        port, *node_ports = free_ports(1 + self.nodes)
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        lines = [CONFIGURATION.format(folder=self.folder, port=port, user=user)]
        for node, node_port in zip(self.node_names, node_ports, strict=True):
            (self.folder / f"spool-{node}").mkdir(exist_ok=True)
            lines.append(
                f"NodeName={node} NodeHostname={socket.gethostname().partition('.')[0]} NodeAddr=127.0.0.1"
                f" Port={node_port} CPUs={self._cpus} RealMemory=100000 State=UNKNOWN\n"
            )
        (self.folder / "slurm.conf").write_text("".join(lines))

    def _launch(self, *command: str) -> None:
        with (self.folder / "daemons.log").open("ab") as log:
            self._daemons.append(
                subprocess.Popen(
                    command,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        def met() -> bool:
            dead = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            assert not dead, f"{dead} ended\n{(self.folder / 'daemons.log').read_text()[-3000:]}"
            return condition()

        wait_until(met, what, 60)

    def _succeeds(self, *command: str) -> bool:
        return subprocess.run(command, env=self.environment, capture_output=True, check=False).returncode == 0

    def _idle_nodes(self) -> int:
        return sum(line.endswith(" idle") for line in set(self("sinfo", "-h", "-N", "-o", "%N %T").splitlines()))

    def __call__(self, *command: str, cwd: Path | None = None, **variables: str) -> str:
        """Run a client with these environment variables, too; returns its output."""
        environment = self.environment | variables
        done = subprocess.run(
            command, env=environment, cwd=cwd, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *arguments: str, cwd: Path, **variables: str) -> str:
        """`sbatch` from that folder; returns the job's id."""
        return self("sbatch", "--parsable", *arguments, cwd=cwd, **variables).strip()

    def is_queued(self, job: str) -> bool:
        """Whether the job, or a task of it, runs or waits."""
        return bool(self("squeue", "-h", "-j", job))

    def stop(self) -> None:
        """Cancel all jobs, then end the daemons and whatever of the jobs is left."""
        if self._succeeds("scontrol", "ping"):
            self._succeeds("scancel", "--user", str(os.getuid()))
            deadline = time.monotonic() + PATIENCE_AT_THE_END
            while self("squeue", "-h") and time.monotonic() < deadline:
                time.sleep(0.1)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        for process in self._leftovers():
            os.kill(process, signal.SIGKILL)

    def _leftovers(self) -> list[int]:
        """slurmstepds and processes of jobs outlive a slurmd; their environment tells whose they are."""
        mine = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mine in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
            except OSError:
                continue  # ended meanwhile, or somebody else's
        return found


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
