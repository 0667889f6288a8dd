"""What every test runs under: caches of its own, no network, no account at Weights & Biases.

Set here, before anything imports datasets; processes that tests start inherit it.
"""

import atexit
import os
import shutil
import signal
import tempfile

import psutil
import pytest
from hypothesis import HealthCheck, settings

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell's background jobs ignore it, their children too
HOME = tempfile.mkdtemp(prefix="charlm-tests-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
for name in [n for n in os.environ if n.startswith(("HF_", "HUGGINGFACE_", "WANDB_"))]:
    del os.environ[name]
os.environ |= {
    "HF_HOME": f"{HOME}/huggingface",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "WANDB_DIR": HOME,
    "COLUMNS": "100",
    "OMP_NUM_THREADS": "1",  # tiny models: a second thread only waits
}

# HYPOTHESIS_PROFILE=thorough searches ten times as long. No example database: no run depends on another.
quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("quick", max_examples=50, deadline=None, database=None, suppress_health_check=quiet)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


# Files whose tests start many processes come first, so that no worker is left with one of them at the end.
LONGEST = ("test_distributed", "test_faults", "test_logger", "test_build", "test_loop", "test_corpus")
LONGEST += ("test_resume", "test_doctor", "test_bench", "test_warm", "test_cli", "test_step")


def pytest_collection_modifyitems(items):
    """A stable order: the files of LONGEST, then the others."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test may leave a training behind, which would slow all tests after it down: end it.

    The system tells the time of a start to within two seconds.
    """
    report = yield
    if report.failed:
        for child in psutil.Process().children(recursive=True):
            try:
                if child.create_time() > call.start - 2 and "charlm" in " ".join(child.cmdline()):
                    child.kill()
            except psutil.Error:  # it has ended
                continue
    return report
