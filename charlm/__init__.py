"""charlm: character-level LSTM, GRU and RNN language models, from hello to Wikipedia.

The public names load on first use, so that `charlm --help` never waits for torch:

    import charlm
    charlm.train("stdlib", steps=500, run_dir="runs/short")
    charlm.load("runs/short").generate(prompt="import ")
    from charlm.evaluation.evaluate import evaluate
    from charlm.sampling.generate import generate
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names, for editors and type checkers
    from charlm.config.fields import Config as Config
    from charlm.config.parse import load_config as load_config
    from charlm.corpus.prepared import Corpus as Corpus
    from charlm.corpus.prepared import prepare as prepare
    from charlm.corpus.vocabulary import Vocab as Vocab
    from charlm.errors import CharlmError as CharlmError
    from charlm.evaluation.evaluate import Score as Score
    from charlm.model.char_lm import CharLM as CharLM
    from charlm.training.lanes import Lanes as Lanes
    from charlm.training.loop import train as train
    from charlm.training.trained import Trained as Trained
    from charlm.training.trained import load as load

__version__ = "0.1.0"

# Threads that wait for each other soon sleep. By default they keep their cores busy, and beside other work
# take them from the threads they wait for: training is up to 30 times slower. OpenMP reads it with torch.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_HOME = {
    "CharLM": "model.char_lm",
    "CharlmError": "errors",
    "Config": "config.fields",
    "Corpus": "corpus.prepared",
    "Lanes": "training.lanes",
    "Score": "evaluation.evaluate",
    "Trained": "training.trained",
    "Vocab": "corpus.vocabulary",
    "load": "training.trained",
    "load_config": "config.parse",
    "prepare": "corpus.prepared",
    "train": "training.loop",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'charlm' has no attribute {name!r}")
    return getattr(import_module(f"charlm.{_HOME[name]}"), name)
