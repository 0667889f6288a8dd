"""Freed memory that stays: counted in pages that the system clears, which noise does not move."""

import subprocess
import sys

import pytest
from helpers import environment

COUNT = """
import ctypes, resource, torch
from charlm.memory import kept

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(16 << 20)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

cpu = torch.device("cpu")
pages()
told = [pages()]
with kept(cpu):
    with kept(cpu):
        for _ in range(4):  # the heap finds its size
            pages()
    told.append(pages())
told.append(pages())
with kept(torch.device("cuda")):
    told.append(pages())
print(*told)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_memory_is_asked_for_once_while_it_is_kept_and_given_back_after():
    ran = subprocess.run(
        [sys.executable, "-c", COUNT], capture_output=True, encoding="utf-8", env=environment(), timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    before, within, after, on_gpu = map(int, ran.stdout.split())
    assert within < 50 < 5 * 30 <= min(before, after, on_gpu)  # five blocks, of 32 pages if pages are large
