"""charlm: character-level LSTM, GRU and RNN language models, from hello to Wikipedia.

The public names load on first use, so that `charlm --help` never waits for torch:

    import charlm
    charlm.load("runs/stdlib").generate(prompt="import ")
    from charlm import CharLM, Config, Corpus, Lanes, Vocab, load_config, prepare
    from charlm.train import train  # likewise charlm.evaluate.evaluate, charlm.generate.generate
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names, for editors and type checkers
    from charlm.config import CharlmError as CharlmError
    from charlm.config import Config as Config
    from charlm.config import load_config as load_config
    from charlm.corpus import Corpus as Corpus
    from charlm.lanes import Lanes as Lanes
    from charlm.model import CharLM as CharLM
    from charlm.prepared import prepare as prepare
    from charlm.scoring import Score as Score
    from charlm.trained import Trained as Trained
    from charlm.trained import load as load
    from charlm.vocab import Vocab as Vocab

__version__ = "0.1.0"

_HOME = {
    "CharLM": "model",
    "CharlmError": "config",
    "Config": "config",
    "Corpus": "corpus",
    "Lanes": "lanes",
    "Score": "scoring",
    "Trained": "trained",
    "Vocab": "vocab",
    "load": "trained",
    "load_config": "config",
    "prepare": "prepared",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'charlm' has no attribute {name!r}")
    return getattr(import_module(f"charlm.{_HOME[name]}"), name)
