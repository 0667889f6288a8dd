"""The options of the network; the docstring under a field is its help text."""

from dataclasses import dataclass
from typing import Literal

from charlm.config import checks


@dataclass
class ModelConfig(checks.Section):
    """The network: input, recurrent layers, logits."""

    size: Literal["tiny", "small", "base", "large", "xl"] | None = None
    """Preset for width, depth, recall, batch size, learning rate, dropout; --print_config shows the values.
    Fields set in the same place (a YAML file, the command line, Python) override it."""
    cell: str = "lstm"
    """Recurrent cell: lstm, gru or rnn; charlm/model/cells.py lists them."""
    nonlinearity: Literal["tanh", "relu"] = "tanh"
    """Nonlinearity of the rnn cell."""
    embedding_size: checks.Natural = 64
    """Width of the learned embedding; 0 for one-hot input."""
    hidden_size: checks.Positive = 256
    """Units per recurrent layer."""
    num_layers: checks.Positive = 1
    """Number of recurrent layers."""
    dropout: checks.BelowOne = 0.0
    """Dropout between recurrent layers and, unless set below, on the input and the output."""
    input_dropout: checks.BelowOne | None = None
    """Dropout on the embedding; null: same as model.dropout."""
    output_dropout: checks.BelowOne | None = None
    """Dropout before the logits; null: same as model.dropout."""
    locked_dropout: bool = False
    """Draw the dropped units once per lane and window (Gal & Ghahramani 2016), not at every character."""
    weight_drop: checks.BelowOne = 0.0
    """Share of the recurrent weights that are set to 0 for a window (DropConnect, Merity et al. 2018)."""
    activation_reg: checks.NonNegative = 0.0
    """Weight of the mean square of the outputs (AR, Merity et al. 2017), such as 2; is not logged."""
    temporal_reg: checks.NonNegative = 0.0
    """The same for the change of these outputs from character to character (TAR, same paper), such as 1."""
    norm: Literal["none", "layer", "rms"] = "none"
    """Normalise the input of layers after the first: layer (Ba et al. 2016), rms (Zhang & Sennrich 2019)."""
    residual: bool = False
    """Add the input of a layer to its output where both have the same width (first layer: embedding_size)."""
    tie_weights: bool = False
    """Use the embedding matrix for the logits as well; needs embedding_size equal to hidden_size."""
    forget_bias: checks.Single = 1.0
    """Initial bias of the forget gates of an lstm; torch's default would be near 0."""
    ngrams: checks.Natural = 0
    """Count what follows contexts of half to all of so many symbols, such as 8, in the training text, and
    correct the network's prediction by it; 0: do not. On a CPU a model is far better for it in minutes."""
    ngram_lines: checks.Positive = 1 << 20
    """Lines of the table of counts, 64 bytes each, in memory and in the model's files. Where a line is full,
    what is rare makes way; 2 million lines served 55 million symbols."""
    recall: checks.Natural = 0
    """Remember what followed the last contexts of 2, 3, 4, 5, 6 and 8 symbols in the text that is read, in so
    many slots for each, such as 8192 (65536 at most), and correct the network's prediction by it: names and
    phrases come again; 0: do not. It is part of the carry: 24 bytes × slots per lane, in checkpoints too."""

    @property
    def in_one_call(self) -> bool:
        """Whether cuDNN can run all layers in one call, several at a time: there is nothing between them."""
        between = self.norm != "none" or self.residual or self.dropout or self.weight_drop
        return self.num_layers > 1 and not between

    def __post_init__(self):
        vars(self).update(self.not_given(checks.preset(self.size).get("model", {})))
        super().__post_init__()
        self.require(self.ngrams != 1, "ngrams", "must be 0, or 2 or more")
        self.require(self.recall <= 1 << 16, "recall", "must be at most 65536, which take 1.6 MB per lane")
        advice = f"model.embedding_size={self.embedding_size} must equal model.hidden_size={self.hidden_size}"
        allowed = not self.tie_weights or self.embedding_size == self.hidden_size
        self.require(allowed, "tie_weights", advice)
