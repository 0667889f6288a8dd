"""Freed memory that stays, counted in pages that the system clears, which noise does not move; precision."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import environment

from charlm.model.device import set_precision

COUNT = """
import resource, sys, torch
from pathlib import Path
from charlm.model.device import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(16 << 20)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():  # MB
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

for device in ("cuda", "cpu"):
    with keep_freed_memory(torch.device(device)):
        with keep_freed_memory(torch.device(device)):
            pages()
        for _ in range(4):  # the heap finds its size
            pages()
        result = pages()
        torch.ones(128 << 20)  # 512 MB
        within = resident()
    print(result, within - resident())
"""


@pytest.fixture(scope="module")
def counted():
    """Of both devices: pages cleared for five blocks of 64 MB, when all is kept; MB given back after."""
    if not sys.platform.startswith("linux"):
        pytest.skip("glibc's malloc")
    line = [sys.executable, "-c", COUNT]
    ran = subprocess.run(line, capture_output=True, encoding="utf-8", env=environment(), timeout=600)
    assert ran.returncode == 0, ran.stderr
    return [tuple(map(int, line.split())) for line in ran.stdout.splitlines()]


def test_memory_is_asked_for_once_while_it_is_kept_and_given_back_after(counted):
    pages, given_back = counted[1]
    assert pages < 50 and given_back > 400


def test_beside_a_gpu_all_is_as_before(counted):
    assert counted[0][0] >= 5 * 30  # 32 in a block, if pages are large


@pytest.mark.parametrize(
    ("precision", "dtype", "kind"),
    [
        ("fp32", torch.float32, "ieee"),
        ("tf32", torch.float32, "tf32"),
        ("bf16", torch.bfloat16, "ieee"),
        ("fp16", torch.float16, "ieee"),
    ],
)
def test_what_a_gpu_is_told_to_compute_in(precision, dtype, kind):
    """Nothing is computed here: tests/test_gpu.py does, where there is one."""
    model, flags = SimpleNamespace(device=torch.device("cuda")), torch.backends
    before = flags.cudnn.rnn.fp32_precision, flags.cuda.matmul.fp32_precision
    try:
        set_precision(model, precision, "train.precision", pytest.fail)
        assert model.compute_dtype == dtype
        assert flags.cudnn.rnn.fp32_precision == flags.cuda.matmul.fp32_precision == kind
    finally:
        flags.cudnn.rnn.fp32_precision, flags.cuda.matmul.fp32_precision = before
