"""What ends a run from outside: signals (SIGTERM, slurm's SIGUSR1, Ctrl-C), the limit of hours, and other
processes of the run that do not respond."""

import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from charlm.errors import CharlmError
from charlm.terminal import say, stopped

# Windows has no SIGUSR1 and no SIGHUP, and blocks none.
SIGNALS = [getattr(signal, f"SIG{n}") for n in ("INT", "TERM", "USR1", "HUP") if hasattr(signal, f"SIG{n}")]


class Left(KeyboardInterrupt):
    """A signal other than Ctrl-C, where there is nothing to save."""


class Stop:
    """Within it a signal only sets `reason`, so that the loop finishes its step.

    Ctrl-C exits immediately when it comes a second time, and outside the loop (`in_loop` False), where there
    is nothing to save; the other signals raise Left where that lasts (`at_once` True). Signals that were
    blocked while the process started (slurm/train.sh blocks them) are delivered when it is entered, and nohup
    keeps SIGHUP ignored. exits: before the loop, Ctrl-C ends the process in whatever it is doing.
    """

    def __init__(self, exits: bool = False):
        self.started = time.monotonic()
        self.max_hours: float | None = None  # counted from the creation of this object
        self.in_loop = self.at_once = False
        self._reason, self._before = None, {}
        self._exits = exits and hasattr(signal, "pthread_sigmask")

    @property
    def reason(self) -> str | None:
        """Why to stop, or None to continue."""
        hours = (time.monotonic() - self.started) / 3600
        if self._reason is None and self.max_hours is not None and hours >= self.max_hours:
            self._reason = "train.max_hours is over"
        return self._reason

    def begin_loop(self, max_hours: float | None) -> None:
        """From now on the loop finishes its step, also when so many hours are over."""
        self.max_hours, self.at_once, self.in_loop = max_hours, False, True
        if self._exits:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def leave(self) -> None:
        """From now on raise Left for a signal, also for one that came before."""
        self.at_once = True
        if self._reason is not None:
            raise Left

    def _handle(self, number: int, frame) -> None:
        if number == signal.SIGINT and (self._reason is not None or not self.in_loop):
            raise KeyboardInterrupt
        self._reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if self.at_once:
            raise Left

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            nohup = {n for n in SIGNALS[3:] if signal.getsignal(n) == signal.SIG_IGN}
            handled = [n for n in SIGNALS if n not in nohup]
            self._before = {number: signal.signal(number, self._handle) for number in handled}
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            if self._exits:  # a thread waits for Ctrl-C, because compiled code may keep this one
                signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS[:1])
                threading.Thread(target=self._exit, daemon=True).start()
        return self

    def _exit(self) -> None:
        signal.sigwait(SIGNALS[:1])
        print(stopped(), file=sys.stderr, flush=True)
        os._exit(130)

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._exits:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def from_launcher(name: str, default: int) -> int:
    """A number that a launcher puts into the environment. Raises CharlmError if it is none."""
    value = os.environ.get(name, default)
    try:
        return int(value)
    except ValueError:
        advice = "must be a whole number; the launcher of the processes sets it"
        raise CharlmError(f"{name}={value}: {advice}") from None


_runs = itertools.count()  # of this process, one after the other


class Watchdog:
    """Ends this process when another one of its run does not respond, or none makes a step.

    A process that ends closes its connections, which the others notice. One that is stopped, or whose machine
    hangs, leaves them waiting for ever. So a thread of every process renews a sign of life in a store, and
    reads those of the others there.
    """

    def __init__(self, minutes: float, lost: Callable[[str], str], stop: Stop):
        """Meet the other processes, which the environment of a launcher describes. Raises CharlmError, naming
        those that are missing after so many minutes or at a SIGTERM that stop heeds. lost(problem) → message
        is called before an end."""
        from torch.distributed import PrefixStore, TCPStore  # slow to import

        self.lost, self._renewing, self._storeless = lost, None, False
        self.seconds, self.host, self._end = 60 * minutes, socket.gethostname(), threading.Event()
        self.rank, self.world = from_launcher("RANK", 0), from_launcher("WORLD_SIZE", 1)
        self.alone = self.world == 1
        if self.alone:
            return
        address, port = os.environ.get("MASTER_ADDR"), from_launcher("MASTER_PORT", 0)
        if not (address and port):
            needed = "MASTER_ADDR and MASTER_PORT must name the host of process 0 and a free port there"
            raise CharlmError(f"WORLD_SIZE={self.world}: {needed}, in all processes (a launcher sets them)")
        # Under torchrun the launcher holds the store, else the first process.
        first = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        options = {"is_master": first, "wait_for_workers": False, "multi_tenant": True}
        missing, until = "", time.monotonic() + self.seconds
        in_use = f"MASTER_PORT={port}: is in use on {self.host}, perhaps by another run; name another one"

        def wait() -> None:
            if time.monotonic() > until or stop.reason == "SIGTERM":
                raise TimeoutError
            time.sleep(0.05)

        try:
            while not first:  # TCPStore would wait, too, but deaf to signals
                with suppress(OSError), socket.create_connection((address, port), timeout=5.0):
                    break
                missing = f"missing: process 0, for {address}:{port} does not answer"
                wait()
            missing = ""
            store = TCPStore(address, port, timeout=timedelta(seconds=self.seconds), **options)
            start = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}.{next(_runs)}"
            self.store = PrefixStore(f"charlm {start}", store)
            if self.store.add(f"process {self.rank}", 1) > 1:
                raise CharlmError(f"process {self.rank} is here already: {in_use} for each run")
            self.store.set(f"host {self.rank}", self.host)
            while absent := [r for r in range(self.world) if not self.store.check([f"host {r}"])]:
                missing = f"missing: process {', '.join(map(str, absent))}"
                wait()
            self.hosts = [self.store.get(f"host {r}").decode() for r in range(self.world)]
        except (RuntimeError, TimeoutError) as error:
            if "EADDRINUSE" in str(error):
                raise CharlmError(f"{in_use} for all processes") from error
            here = f"process {self.rank} on {self.host}"
            if stop.reason == "SIGTERM":
                raise CharlmError(f"{here}: SIGTERM while it waited; {missing}") from error
            problem = f"not all {self.world} processes started in {minutes:g} minutes (train.stall_minutes)"
            raise CharlmError(lost(f"{here}: {problem}; {missing or str(error).splitlines()[0]}")) from error

    def watch(self, progress: Callable[[], tuple[int, bool]]) -> None:
        """Start to watch. progress() → (step, True while this process does something else than steps)."""
        if not self.alone:
            self._signs = [(b"", time.monotonic())] * self.world  # the last of every process, and since when
            self._renewing = threading.Thread(target=self._renew, args=(progress,), daemon=True)
            self._renewing.start()
            threading.Thread(target=self._watch, args=(progress,), daemon=True).start()

    def stop(self, done: bool = True) -> None:
        """Watch no longer. done: nor be watched; otherwise the others notice that this process is lost."""
        self._done = done
        self._end.set()
        if self._renewing is not None:
            self._renewing.join(2.0)

    def _renew(self, progress: Callable) -> None:
        """Write the sign of this process and read all. Hangs with the process that holds the store."""
        beat = 0
        try:
            while not self._end.is_set():
                beat += 1
                self.store.set(f"sign {self.rank}", f"{beat} {progress()[1]:d}")
                for rank in range(self.world):
                    if self.store.check([f"sign {rank}"]):
                        sign = self.store.get(f"sign {rank}")
                        if sign != self._signs[rank][0]:
                            self._signs[rank] = (sign, time.monotonic())
                self._end.wait(min(self.seconds / 10, 5.0))
            if self._done:
                self.store.set(f"sign {self.rank}", "end")
        except RuntimeError:  # that process has ended; if the whole run has, this one does soon
            self._storeless = not self._end.wait(10.0)

    def _watch(self, progress: Callable) -> None:
        every, now = min(self.seconds / 10, 5.0), time.monotonic()
        step, stepped, longest = -1, now, 0.0
        while not self._end.wait(every):
            before, now = now, time.monotonic()
            if now - before > every + self.seconds / 2:  # this process itself was stopped
                self._signs, stepped = [(sign, now) for sign, _ in self._signs], now
            others = {r: s for r, s in enumerate(self._signs) if r != self.rank and s[0] != b"end"}
            silent = [r for r, (_, since) in others.items() if now - since > self.seconds]
            current, busy = progress()
            if current != step or busy or any(not sign.endswith(b" 0") for sign, _ in others.values()):
                longest, step, stepped = max(longest, now - stepped), current, now
            if self._storeless:
                problem = "process 0, or the launcher, has ended"
            elif silent:
                holder = now - self._signs[self.rank][1] > self.seconds  # of the store: nothing comes through
                names = ", ".join(f"process {r} on {self.hosts[r]}" for r in silent[: 1 if holder else None])
                problem = f"{names} has not responded for {now - others[silent[0]][1]:.0f} s"
            elif now - stepped > max(self.seconds, 20 * longest):
                problem = f"no step for {now - stepped:.0f} s, though all processes respond"
            else:
                continue
            message = self.lost(f"process {self.rank} on {self.host}: {problem} (train.stall_minutes)")
            say(f"charlm: error: {message}", file=sys.stderr, flush=True)
            os._exit(1)
