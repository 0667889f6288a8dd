"""`charlm …`, or other code, in processes that are forked from one that has imported all it needs.

To import torch, accelerate and datasets takes a new interpreter far longer than most commands of the tests.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile

SERVER = """
import atexit, json, os, sys, tempfile, threading, traceback
import jinja2, wandb
import torch._dynamo, torch.distributed.fsdp  # what several processes import, which takes two seconds
import charlm.commands.cli as cli, charlm.commands.train, charlm.training.loop
from charlm.config.fields import ModelConfig
from charlm.config.parse import from_dict, parse
from charlm.corpus.prepared import prepare
from charlm.corpus.vocabulary import Vocab
from charlm.model.char_lm import CharLM
from charlm.sampling.generate import generate
from tqdm import tqdm

tqdm.monitor_interval = 0  # no thread
tqdm.set_lock(threading.RLock())  # the default is shared by forks: a kill would block the others
text = {"source": "literal", "text": "hello" * 9, "split_by": "character", "validation": 0.2, "test": 0}
with tempfile.TemporaryDirectory() as folder:
    prepare(from_dict({"data": {**text, "dir": folder}}))  # loads compiled code, as does a sample
vocab = Vocab("helo")
generate(CharLM(ModelConfig(hidden_size=4), len(vocab)), vocab, prompt="h", length=3)
parse([])  # builds the parser
for line in iter(sys.stdin.readline, ""):
    request = json.loads(line)
    if "wait" in request:
        print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
    elif pid := os.fork():
        print(pid, flush=True)
    else:
        os.environ.clear()
        os.environ.update(request["environment"])
        for stream, path in enumerate([os.devnull, *request["output"]]):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), stream)
        code = 1
        try:
            sys.argv = ["charlm", *request["words"]]
            exec(request["before"], {})
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else print(end.code, file=sys.stderr) or 1
        except BaseException:
            traceback.print_exc()
        finally:  # as Python ends, but for taking all these modules apart, which takes seconds
            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            os._exit(code)
os._exit(0)
"""


class Server:
    """The process that is forked; it ends with this one."""

    def __init__(self, env: dict[str, str]):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", SERVER], env=env, **pipes)
        atexit.register(self.process.communicate)

    def request(self, **content):
        self.process.stdin.write(json.dumps(content) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class Fork:
    """`charlm` with these words. Used as a subprocess.Popen; errors are in stdout if they are not apart.

    before: code that is run first, and may end the process.
    """

    running: Server | None = None

    def __init__(self, words: list[str], env: dict[str, str], apart: bool = False, before: str = ""):
        if Fork.running is None or Fork.running.process.poll() is not None:
            Fork.running = Server(env)
        self.server, self.args, self.returncode = Fork.running, words, None
        files = [tempfile.NamedTemporaryFile("r", encoding="utf-8") for _ in range(1 + apart)]  # noqa: SIM115
        self.stdout, self.stderr = files[0], files[1] if apart else None
        output = [files[0].name, files[-1].name]
        self.pid = self.server.request(words=words, environment=env, output=output, before=before)
        self.handle = os.pidfd_open(self.pid)  # readable when it has ended

    def poll(self, seconds: float = 0) -> int | None:
        if self.returncode is None and select.select([self.handle], [], [], seconds)[0]:
            self.returncode = self.server.request(wait=self.pid)
            os.close(self.handle)
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        if self.poll(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float = 600) -> tuple[str, str | None]:
        self.wait(timeout)
        return self.stdout.read(), self.stderr and self.stderr.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> bool:
        """kill -9. False if it had ended before."""
        self.send_signal(signal.SIGKILL)
        return self.wait() == -signal.SIGKILL
