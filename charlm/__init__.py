"""charlm: character-level LSTM, GRU and RNN language models, from hello to Wikipedia.

The public names load on first use, so that `charlm --help` never waits for torch:

    from charlm import CharLM, Config, Corpus, Lanes, Vocab, load_config, prepare
    from charlm.train import train  # likewise charlm.evaluate.evaluate, charlm.generate.generate
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "CharLM": "model",
    "CharlmError": "config",
    "Config": "config",
    "Corpus": "corpus",
    "Lanes": "lanes",
    "Vocab": "vocab",
    "load_config": "config",
    "prepare": "prepared",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'charlm' has no attribute {name!r}")
    return getattr(import_module(f"charlm.{_HOME[name]}"), name)
