"""A throw-away slurm on this machine: munged, slurmctld and a slurmd per node, on the loopback interface.

Real daemons and real sbatch, with made-up hardware: more CPUs than there are, GPUs that are /dev/null. Needs
root and Debian's package slurm-wlm. A node is a slurmd in a mount namespace and a host name of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")
NODES, CPUS, GPUS = ("n1", "n2"), 8, 4
FREEZER = Path("/sys/fs/cgroup/freezer")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE")

CONF = """\
ClusterName=charlm
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType={proctrack}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_continue
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
MinJobAge=3600
FirstJobId={first}
KillWait=120
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes={nodes} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=300
PartitionName=urgent Nodes={nodes} MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF
"""
NODE = (
    "NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Boards=1 "
    "SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=64000 Gres=gpu:{gpus} "
    "State=UNKNOWN\n"
)


def missing() -> str | None:
    """Why there can be no cluster here, or None."""
    lacking = [name for name in NEEDED if shutil.which(name, path=_path()) is None]
    if lacking:
        return f"slurm is not installed ({', '.join(lacking)} missing; Debian: apt-get install slurm-wlm)"
    if os.geteuid() != 0:
        return "only root can start slurm's daemons"
    return None


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


class Cluster:
    """Started by start(), ended by stop(). Everything lives in one folder."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # socket names must be short
        self.env = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _path()}
        for name in [n for n in self.env if n.startswith(("SLURM_", "SBATCH_")) and n != "SLURM_CONF"]:
            del self.env[name]

    def start(self) -> None:
        folder = self.folder
        folder.chmod(0o755)
        (folder / "state").mkdir()
        self._write_conf()
        key = folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        own = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "pid-file", "log-file")]
        self._do("munged", "--force", f"--key-file={key}", *own, f"--seed-file={folder}/munge.seed")
        self._do("slurmctld", "-f", self.env["SLURM_CONF"])
        for name in NODES:
            inside = f"hostname {name} && mount --bind {folder}/hosts /etc/hosts && exec slurmd -N {name}"
            self._do("unshare", "--uts", "--mount", "bash", "-c", inside)
        self.until(
            lambda: self("sinfo", "-h", "-N", "-p", "main", "-o", "%T").split() == ["idle"] * len(NODES)
        )

    def _write_conf(self) -> None:
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(1 + len(NODES))]
        port, *ports = [s.getsockname()[1] for s in sockets]
        for s in sockets:
            s.close()
        proctrack = "proctrack/linuxproc"
        try:  # as on most clusters: signals reach the processes that slurm started, not their children
            (FREEZER / "charlm_probe").mkdir()
            (FREEZER / "charlm_probe").rmdir()
            proctrack = "proctrack/cgroup"
        except OSError:
            pass
        known = {"host": socket.gethostname().split(".")[0], "port": port, "folder": self.folder}
        # Another cluster on this machine, of another checkout's tests say, must have other jobs: control
        # groups and ports are named after them.
        first = 1 + int.from_bytes(os.urandom(3), "big")
        conf = CONF.format(**known, proctrack=proctrack, nodes=",".join(NODES), first=first)
        gres, hosts = "", f"127.0.0.1 localhost {known['host']}\n"
        for number in range(GPUS):
            os.mknod(self.folder / f"gpu{number}", 0o20666, os.makedev(1, 3))
        for name, its_port in zip(NODES, ports, strict=True):
            conf += NODE.format(name=name, port=its_port, cpus=CPUS, gpus=GPUS)
            gres += f"NodeName={name} Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n"
            hosts += f"127.0.0.1 {name}\n"
        cgroup = "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n"
        cgroup += "".join(f"Constrain{what}=no\n" for what in ("Cores", "Devices", "RAMSpace"))
        files = {"slurm.conf": conf, "gres.conf": gres, "cgroup.conf": cgroup, "hosts": hosts}
        for name, content in files.items():
            (self.folder / name).write_text(content)

    def _do(self, *words: str) -> None:
        ran = subprocess.run(
            words, env=self.env, capture_output=True, encoding="utf-8", stdin=subprocess.DEVNULL
        )
        assert ran.returncode == 0, f"{words[0]}: {ran.stdout}{ran.stderr}"

    def __call__(self, *words: str | Path, **options) -> str:
        """What a command of slurm prints."""
        options = {"env": self.env, "capture_output": True, "encoding": "utf-8", "timeout": 300} | options
        ran = subprocess.run([str(w) for w in words], **options)
        assert ran.returncode == 0, f"{words}: {ran.stdout}{ran.stderr}"
        return ran.stdout

    def until(self, condition, seconds: float = 300, step: float = 0.1) -> None:
        """Look again and again; fail with the logs of the daemons when time is over."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                logs = [f"== {p.name}\n{p.read_text()[-1500:]}" for p in sorted(self.folder.glob("*.log"))]
                raise AssertionError(f"waited {seconds} s in vain\n" + "\n".join(logs))
            time.sleep(step)

    # jobs

    def facts(self, job: str) -> dict[str, str]:
        """What scontrol knows of a job."""
        told = self("scontrol", "show", "job", "-o", job)
        return dict(re.findall(r"(\w+)=(\S*)", told))

    def state(self, job: str) -> str:
        return self.facts(job)["JobState"]

    def wait(self, job: str, *states: str, seconds: float = 900) -> dict[str, str]:
        """Wait until a job has one of the states (any in which a job is over); returns its facts."""
        wanted = states or ENDED
        self.until(lambda: self.state(job) in wanted, seconds, 0.3)
        return self.facts(job)

    def stop(self) -> None:
        """End the jobs and the daemons, by the process ids in this folder only."""
        subprocess.run(["scancel", "-f", "--user=root"], env=self.env, capture_output=True)
        subprocess.run(["scancel", "-s", "KILL", "--user=root"], env=self.env, capture_output=True)
        end = time.monotonic() + 15
        while time.monotonic() < end:
            left = subprocess.run(["squeue", "-h", "-t", "R,CG"], env=self.env, capture_output=True).stdout
            if not left.strip():
                break
            time.sleep(0.2)
        for pattern in ("slurmd-*.pid", "slurmctld.pid", "munge.pid"):
            for path in self.folder.glob(pattern):
                pid = int(path.read_text())
                os.kill(pid, signal.SIGTERM)
                while _alive(pid) and time.monotonic() < end + 15:
                    time.sleep(0.05)
        for name in NODES:
            for path in sorted(FREEZER.glob(f"slurm_{name}/**/"), reverse=True):
                try:
                    path.rmdir()
                except OSError:
                    continue
        shutil.rmtree(self.folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
