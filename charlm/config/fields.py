"""Every option of charlm: one dataclass per section, composed into Config.

The docstring under a field is its help text; a bad value is refused when the dataclass is built.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from charlm.errors import CharlmError

BUILDERS = ("text", "json", "csv", "parquet")  # the builders of `datasets` that read files
WITHOUT_EFFECT = (  # fields that change neither the prepared corpus nor what a step of training computes
    "run_dir",
    "data.dir",
    "data.streaming",
    "data.workers",
    "model.size",  # the fields that it sets are compared
    "train.max_hours",
    "train.accumulate",
    "train.threads",
    "train.cuda_graph",
)


def _check(ok: bool, key: str, value: Any, mend: str) -> None:
    if not ok:
        raise CharlmError(f"{key}={value!r}: {mend}")


def _choices(section: str, config: Any) -> None:
    """Refuse values outside a Literal, also when the dataclass is built from Python."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        for literal in (hint, *get_args(hint)):
            if get_origin(literal) is Literal and not (value is None and literal is not hint):
                choices = get_args(literal)
                near = difflib.get_close_matches(str(value), choices, 1, 0.5)
                mend = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(choices)}"
                _check(value in choices, f"{section}.{name}", value, mend)


def _at_least(section: str, config: Any, **minima: float) -> None:
    for name, least in minima.items():
        value = getattr(config, name)
        if value is not None:
            _check(value >= least, f"{section}.{name}", value, f"must be {least} or more")


def _between(section: str, config: Any, low: float, high: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None:
            _check(
                low <= value < high, f"{section}.{name}", value, f"must be at least {low} and below {high}"
            )


@dataclass
class DataConfig:
    """The text: where it comes from and how it is split."""

    source: str = "stdlib"
    """A dataset id on the Hugging Face Hub, or a builder (text, json, csv, parquet) for data_files, or
    stdlib (the source code of this Python's standard library), or literal (the text in data.text)."""
    name: str = ""
    """Configuration of the hub dataset, such as 20231101.en."""
    revision: str = ""
    """Revision of the hub dataset: a commit, tag or branch."""
    split: str = "train"
    """Split of the dataset that is trained on."""
    data_files: str | list[str] | dict[str, str | list[str]] | None = None
    """Paths, globs or URLs of the files to read; a mapping from split names to them where the splits are
    in different files. Archives are opened: https://host/a.zip, or one member: zip://name::https://host/a.zip."""
    text: str = ""
    """The text itself, for source: literal."""
    text_column: str = "text"
    """Column that holds the text."""
    document: Literal["file", "line"] = "file"
    """What one document of source: text is: a whole file, kept to the byte, or each of its lines."""
    separator: str = "\n"
    """Text put between two documents, when the vocabulary has no end-of-document symbol."""
    split_by: Literal["document", "character"] = "document"
    """Hold out a fraction of the documents, drawn with data.seed; or cut the whole text in three
    contiguous parts (train, validation, test) by characters: by bytes in a bytes-only vocabulary."""
    validation: float | str = 0.05
    """Fraction held out for validation, 0 for none; or the name of the dataset's own split."""
    test: float | str = 0.05
    """Fraction held out for the final test, 0 for none; or the name of the dataset's own split."""
    seed: int = 0
    """Seed of the draw of held-out documents."""
    max_documents: int | None = None
    """Read only this many documents of each split of the dataset: for trials."""
    max_characters: int | None = None
    """Read only this many characters of each split of the dataset (bytes in a bytes-only vocabulary)."""
    streaming: bool = False
    """Read parquet files of the Hub, or behind URLs, over the network, once per pass, instead of downloading
    them first. The result is the same."""
    workers: int | None = None
    """Threads that prepare the text; null: one per core. The result is the same."""
    dir: str = "data"
    """Folder of the prepared corpora."""

    def __post_init__(self):
        _choices("data", self)
        for name in ("validation", "test"):
            value = getattr(self, name)
            if not isinstance(value, str):
                _check(0 <= value < 1, f"data.{name}", value, "a fraction must be at least 0 and below 1")
        held_out = sum(x for x in (self.validation, self.test) if not isinstance(x, str))
        _check(held_out < 1, "data.validation + data.test", held_out, "nothing is left to train on")
        _check(
            not self.text or self.source == "literal", "data.text", self.text, "is for data.source=literal"
        )
        _at_least("data", self, max_documents=1, max_characters=1, workers=1)
        if self.source in BUILDERS:
            _check(
                bool(self.data_files), "data.data_files", self.data_files, f"source {self.source} needs files"
            )
        elif self.source in ("literal", "stdlib"):
            files = f"source {self.source} reads no files; set data.source to one of {', '.join(BUILDERS)}"
            _check(not self.data_files, "data.data_files", self.data_files, files)
            if self.source == "literal":
                _check(bool(self.text), "data.text", self.text, "source literal needs a text")
        else:
            near = difflib.get_close_matches(self.source, [*BUILDERS, "stdlib", "literal"], 1, 0.75)
            hint = f"; did you mean {near[0]}?" if near and self.source != "stdlib" else ""
            _check(
                self.source == "stdlib" or not hint,
                "data.source",
                self.source,
                f"is neither a builder nor a hub id{hint}",
            )
            _check(
                bool(self.source), "data.source", self.source, "name a hub id, a builder, stdlib or literal"
            )


@dataclass
class VocabConfig:
    """The symbols."""

    characters: str = ""
    """The characters themselves, in this order. Empty: counted in all the text that is read, the held-out
    parts too, as is usual for text8 and nanoGPT."""
    bytes_only: bool = False
    """No characters at all: the 256 bytes are the symbols, for any file (the enwik8 convention)."""
    max_size: int | None = None
    """Most symbols the vocabulary may have, byte and end-of-document symbols included. The most frequent
    characters are kept, ties broken by code point; the others are spelled as their UTF-8 bytes."""
    coverage: float = 1.0
    """Keep only as many of the most frequent characters as cover this share of the text."""
    unknown: Literal["bytes", "error"] = "bytes"
    """What becomes of a character outside the vocabulary: spelled in UTF-8 bytes, or refused."""
    end_of_document: bool = False
    """End every document with a symbol of its own."""

    def __post_init__(self):
        _choices("vocab", self)
        _at_least("vocab", self, max_size=1)
        _check(0 < self.coverage <= 1, "vocab.coverage", self.coverage, "must be above 0 and at most 1")
        twice = sorted({c for c in self.characters if self.characters.count(c) > 1})
        _check(not twice, "vocab.characters", "".join(twice), "every character may stand there only once")
        if self.bytes_only:
            _check(not self.characters, "vocab.characters", self.characters, "vocab.bytes_only has none")
            _check(
                self.unknown == "bytes", "vocab.unknown", self.unknown, "vocab.bytes_only knows every byte"
            )


@dataclass
class ModelConfig:
    """The network: input, recurrent layers, logits."""

    size: Literal["tiny", "small", "base", "large", "xl"] | None = None
    """One word for hidden size, layers, lanes, learning rate and regularisation together, from a trial to
    several GPUs; null leaves them as they are. In a YAML it yields to the YAML's other fields; on the command
    line it goes over them, and yields to words of the command line. --print_config shows what it became."""
    cell: str = "lstm"
    """Recurrent cell: lstm, gru or rnn; charlm/model/cells.py lists them"""
    nonlinearity: Literal["tanh", "relu"] = "tanh"
    """Nonlinearity of the rnn cell."""
    embedding_size: int = 64
    """Width of the learned embedding; 0 feeds one-hot symbols."""
    hidden_size: int = 256
    """Units per recurrent layer."""
    num_layers: int = 1
    """Recurrent layers."""
    dropout: float = 0.0
    """Dropout between recurrent layers and, unless set below, on the input and the output."""
    input_dropout: float | None = None
    """Dropout on the embedding; null means as model.dropout."""
    output_dropout: float | None = None
    """Dropout before the logits; null means as model.dropout."""
    locked_dropout: bool = False
    """Drop the same units at all times of a window, drawn anew for every lane and window (variational
    dropout, Gal & Ghahramani 2016), instead of others at every character."""
    weight_drop: float = 0.0
    """Share of the recurrent weights that are taken out for a window (DropConnect, Merity et al. 2018)."""
    activation_reg: float = 0.0
    """Times the mean square of the last layer's outputs, dropout included, added to what is minimised (AR,
    Merity et al. 2017), such as 2. The loss that is logged is without it."""
    temporal_reg: float = 0.0
    """Times the mean square of what those outputs change by from one character to the next (TAR), such as 1;
    not in the logged loss either."""
    norm: Literal["none", "layer", "rms"] = "none"
    """Normalise what every layer but the first reads: layer (Ba et al. 2016), rms (Zhang & Sennrich 2019)."""
    residual: bool = False
    """Add to what a layer gives what reached it, where both are of one width: between recurrent layers, and
    around the first when embedding_size equals hidden_size."""
    tie_weights: bool = False
    """Use the embedding matrix for the logits too; needs embedding_size equal to hidden_size."""
    forget_bias: float = 1.0
    """Bias that the forget gates of an lstm start with; torch's own start would be near 0."""

    @property
    def in_one_call(self) -> bool:
        """Layers with nothing between them can be one call: cuDNN works on several at a time then."""
        between = self.norm != "none" or self.residual or self.dropout or self.weight_drop
        return self.num_layers > 1 and not between

    def __post_init__(self):
        _choices("model", self)
        _at_least("model", self, embedding_size=0, hidden_size=1, num_layers=1)
        _between("model", self, 0, 1, "dropout", "input_dropout", "output_dropout", "weight_drop")
        _at_least("model", self, activation_reg=0, temporal_reg=0)
        if self.tie_weights and self.embedding_size != self.hidden_size:
            raise CharlmError(
                f"model.tie_weights=True: needs model.embedding_size equal to model.hidden_size "
                f"(they are {self.embedding_size} and {self.hidden_size})"
            )


@dataclass
class OptimConfig:
    """The optimizer and its learning rate."""

    name: Literal["adamw", "adam"] = "adamw"
    """Optimizer; adam never decays weights."""
    learning_rate: float = 2e-3
    """Highest learning rate. At 16 lanes about 2 / hidden_size was best (8e-3 for 256 units, 6e-3 for 384 and
    512); more lanes bear more, at most by the square root of their number; more layers want less."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of the two moment estimates."""
    eps: float = 1e-8
    """Added to the denominator of the update."""
    weight_decay: float = 0.0
    """Decoupled weight decay on the matrices that multiply: not on biases, norms and the embedding. 0.1 helps
    where a text is read several times, 0.5 hurts."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0: 3 in 100 of a short
    run, 500 to 2,000 of a long one; more where the first steps make the loss jump."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up, towards final_ratio at train.steps."""
    final_ratio: float = 0.02
    """Last learning rate as a share of the highest. Falling to almost 0 by the last step is worth more than
    any other schedule: a run cut short has not had that, so set train.steps to what there is time for."""
    clip: float | None = 1.0
    """Largest norm of the gradient; null for no clipping."""
    average: float = 0.0
    """Decay of a moving average of the weights, such as 0.998, which then is what is evaluated, sampled, kept
    in model/ and tested; 0 for none. It spans about 1 / (1 - decay) steps: less than a tenth of the run."""

    def __post_init__(self):
        _choices("optim", self)
        _check(
            0 < self.learning_rate < math.inf,
            "optim.learning_rate",
            self.learning_rate,
            "must be above 0 and finite",
        )
        _check(self.eps > 0, "optim.eps", self.eps, "must be above 0")
        _at_least("optim", self, weight_decay=0, warmup_steps=0)
        _between("optim", self, 0, 1, "average")
        _check(0 <= self.final_ratio <= 1, "optim.final_ratio", self.final_ratio, "must be between 0 and 1")
        _check(
            all(0 <= b < 1 for b in self.betas), "optim.betas", self.betas, "must be at least 0 and below 1"
        )
        _check(self.clip is None or self.clip > 0, "optim.clip", self.clip, "must be above 0, or null")
        _check(
            self.name == "adamw" or self.weight_decay == 0,
            "optim.weight_decay",
            self.weight_decay,
            "is for adamw; adam has none: set it to 0, or optim.name to adamw",
        )


@dataclass
class TrainConfig:
    """The training run."""

    steps: int = 1000
    """Optimizer steps in all."""
    batch_size: int = 64
    """Lanes over all processes: contiguous streams of text that are read side by side. On a CPU and a small
    text 16 learn more from the same characters than 32 or 64; a GPU is kept busy by hundreds."""
    bptt: int = 64
    """Characters each lane moves on per step; gradients reach back no further."""
    accumulate: int = 1
    """Work off the lanes of a process in this many slices per step, when they do not fit at once. A run that
    goes on with fewer processes takes as many slices as its lanes need, unless this was changed."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Arithmetic on a GPU; a CPU always computes in fp32, and says so."""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """In which several GPUs average their gradients: bf16 sends half as much over a slow network between
    nodes, at 8 bits of precision. Processes on CPUs average in fp32, and say so."""
    cuda_graph: bool | None = None
    """Record a step once and replay it: for one process without a launcher, on a GPU, and not for fp16. A
    small model's kernels run shorter than it takes to launch them one by one. null: where it can be done."""
    threads: int | None = None
    """Threads of a process on a CPU; null: as many as the lanes and units of a step keep busy, at most all
    that torch would use (one per core, or OMP_NUM_THREADS)."""
    seed: int = 0
    """Seed of weights, dropout and the order of epochs."""
    max_hours: float | None = None
    """Stop, with a checkpoint, after this many hours of this process."""
    init_from: str = ""
    """Start from the weights of a run directory, a model folder or a hub id, symbols matched by character;
    empty for fresh weights."""

    def __post_init__(self):
        _choices("train", self)
        _at_least("train", self, steps=1, batch_size=1, bptt=1, accumulate=1, threads=1)
        _check(
            self.max_hours is None or self.max_hours > 0, "train.max_hours", self.max_hours, "must be above 0"
        )
        _check(
            self.batch_size % self.accumulate == 0,
            "train.accumulate",
            self.accumulate,
            f"must divide train.batch_size={self.batch_size}",
        )


@dataclass
class EvaluateConfig:
    """Evaluation: one stateful pass over a split."""

    every: int = 500
    """Steps between evaluations on validation; 0 evaluates at the end only."""
    lanes: int = 32
    """Parts of the split that are read side by side; 1 is the exact single pass."""
    context: int = 256
    """Characters that warm up the carry of a lane before its first counted one."""
    bptt: int = 128
    """Characters per forward call; has no influence on the figures."""
    max_characters: int | None = None
    """During training, evaluate only the start of validation: this many symbols of it."""

    def __post_init__(self):
        _at_least("evaluate", self, every=0, lanes=1, context=0, bptt=1, max_characters=2)


@dataclass
class SampleConfig:
    """Text drawn from the model."""

    every: int = 500
    """Steps between samples during training; 0 draws none before the end."""
    prompt: str = "\n"
    """Text that warms up the carry; the sample goes on from it."""
    length: int = 300
    """Symbols to draw."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the likeliest symbol always."""
    top_k: int | None = None
    """Draw from the k likeliest symbols only."""
    top_p: float | None = None
    """Draw from the fewest symbols whose probabilities reach this sum."""
    seed: int = 0
    """Seed of the draw."""

    def __post_init__(self):
        _at_least("sample", self, every=0, length=1, temperature=0, top_k=1)
        if self.top_p is not None:
            _check(0 < self.top_p <= 1, "sample.top_p", self.top_p, "must be above 0 and at most 1")


@dataclass
class CheckpointConfig:
    """Checkpoints."""

    every: int = 500
    """Steps between checkpoints; 0 writes one only at the end or when stopped."""
    keep: int = 2
    """Newest checkpoints kept; the best weights are kept apart, in model/."""

    def __post_init__(self):
        _at_least("checkpoint", self, every=0, keep=1)


@dataclass
class LogConfig:
    """Logging."""

    every: int = 20
    """Steps between lines of figures."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Weights & Biases. auto: online with an account that can be reached, offline with one that cannot,
    disabled without one; WANDB_MODE decides when it is set."""
    project: str = "charlm"
    """Project name at Weights & Biases."""

    def __post_init__(self):
        _choices("log", self)
        _at_least("log", self, every=1)


@dataclass
class Config:
    """One run: the same YAML serves prepare, train, evaluate and sample."""

    run_dir: str = "runs/default"
    """Folder of the run: config, metrics, checkpoints, model, samples."""
    data: DataConfig = field(default_factory=DataConfig)
    vocab: VocabConfig = field(default_factory=VocabConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self):
        _check(bool(self.run_dir), "run_dir", self.run_dir, "name a folder")
