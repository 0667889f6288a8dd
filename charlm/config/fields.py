"""Every option of charlm: one dataclass per section; the docstring under a field is its help text."""

from dataclasses import dataclass, field, replace
from typing import Literal

from charlm.config import checks
from charlm.config.model_fields import ModelConfig

BUILDERS = checks.BUILDERS
WITHOUT_EFFECT = (  # on the corpus and on what a step computes; the fields set by model.size have one
    *("run_dir", "data.dir", "data.scratch", "data.streaming", "data.workers", "data.verify", "model.size"),
    *("train.max_hours", "train.accumulate", "train.threads", "train.cuda_graph", "train.stall_minutes"),
    *("train.patience", "train.allow_change"),
)


@dataclass
class DataConfig(checks.Section):
    """The text: where it comes from and how it is split."""

    source: str = "stdlib"
    """A dataset id on the Hugging Face Hub; a file or folder; the format of data_files (text, json, csv,
    parquet, arrow), or files: their suffixes show it, the default where there are data_files; stdlib (the
    source code of this Python's standard library); or literal (the text in data.text)."""
    name: str = ""
    """Configuration of the Hub dataset, such as 20231101.en."""
    revision: str = ""
    """Revision of the Hub dataset: a commit, tag or branch."""
    split: str = "train"
    """Split of the dataset to train on."""
    data_files: str | list[str] | dict[str, str | list[str]] | None = None
    """Paths, globs, folders or URLs of the files to read, - for stdin, or a mapping from split names to them
    if the splits are in different files; in a folder, train, valid and test in names are splits. Archives are
    opened: https://host/a.zip, or one member: zip://name::https://host/a.zip."""
    text: str = ""
    """The text, for source: literal."""
    text_column: str | int | list[str | int] = "text"
    """Column that holds the text: a name, doc.text for text within doc, a number from 1 in CSV without a
    header; several are joined by line breaks."""
    field_delimiter: str = ""
    """Character between the fields of CSV; empty: a comma, or a tab in files named .tsv."""
    quotes: bool = True
    """Whether a field of CSV may be in quotes, "…"; false: a quote is text, and rows end where lines do."""
    header: bool = True
    """Whether the first row of CSV names the columns."""
    encoding: checks.Encoding = "utf-8"
    """Encoding of text, JSON and CSV files, such as latin-1, cp1252 or utf-16."""
    on_bad_line: Literal["error", "skip"] = "error"
    """A row of JSON lines or CSV without text that can be read: an error with its place, or left out and
    counted. If rows are left out, half a character (a lone surrogate) becomes U+FFFD."""
    normalize: checks.Normalize | None = None
    """Changes to the text, in this order: nfc, nfkc (Unicode), lower, crlf (\\r\\n to \\n), strip_bom (no
    U+FEFF), text8 (a to z and single spaces, digits in words). Prompts and evaluated text change alike."""
    document: Literal["file", "line"] = "file"
    """What counts as one document of source: text: a whole file, kept byte for byte, or each of its lines."""
    delimiter: str = ""
    """What is between the documents of a text file, such as <|endoftext|>, line breaks around it included;
    "\\n\\n": blank lines."""
    separator: str = "\n"
    """Text between two documents if the vocabulary has no end-of-document symbol; it counts in figures."""
    split_by: Literal["document", "character"] = "document"
    """document: hold out documents drawn at random with data.seed. character: cut the text into three
    contiguous parts (train, validation, test), measured in bytes for a bytes-only vocabulary."""
    validation: checks.HeldOut = 0.05
    """Fraction held out for validation, 0 for none; or a path; or the name of a split of the dataset. A
    split for it, in data_files or on the Hub, takes the place of the default."""
    test: checks.HeldOut = 0.05
    """The same for the final test."""
    seed: int = 0
    """Seed for choosing the held-out documents."""
    max_documents: checks.Positive | None = None
    """Read only this many documents of each split of the dataset: for trials."""
    max_characters: checks.Positive | None = None
    """Read only this many characters of each split of the dataset (bytes in a bytes-only vocabulary)."""
    shuffle: bool | int = False
    """Permute the documents of the training split, so that neighbours are not of one author or year: a seed,
    or true for seed 1. Validation and test keep their order. Not with split_by: character."""
    deduplicate: bool = False
    """Read documents that are equal to the byte only once. Of two given splits, the held-out one keeps it."""
    streaming: bool = False
    """Stream parquet files of the Hub or of URLs in every pass instead of downloading them; same result."""
    workers: checks.Positive | None = None
    """Threads that prepare the text; null: one per core. The result is the same."""
    verify: Literal["start", "never"] = "start"
    """Compare the prepared ids with their checksums when training starts, beside the first steps."""
    dir: str = "data"
    """Folder of the prepared corpora."""
    scratch: str | None = None
    """Folder on a disk of each node, such as $TMPDIR: ids are copied there once, and read there."""

    @property
    def columns(self) -> list[str]:
        """The names of text_column."""
        return [*map(str, self.text_column if isinstance(self.text_column, list) else [self.text_column])]


@dataclass
class VocabConfig(checks.Section):
    """The vocabulary: the symbols that the model reads and predicts."""

    characters: str = ""
    """The characters, in this order; empty: those of the whole text, held-out parts included, as is usual."""
    bytes_only: bool = False
    """Use the 256 bytes as symbols and no characters; works for any file (the enwik8 convention)."""
    max_size: checks.Positive | None = None
    """Largest number of symbols, bytes included. The most frequent characters are kept."""
    coverage: checks.Share = 1.0
    """Keep only as many of the most frequent characters as are needed to cover this share of the text."""
    unknown: Literal["bytes", "error"] = "bytes"
    """A character outside the vocabulary is spelled as its UTF-8 bytes, or raises an error."""
    end_of_document: bool = False
    """End every document with a special symbol."""


@dataclass
class OptimConfig(checks.Section):
    """The optimizer and its learning rate."""

    name: Literal["adamw", "adam"] = "adamw"
    """Optimizer; adam has no weight decay."""
    learning_rate: checks.Finite = 2e-3
    """Highest learning rate. About 2 / hidden_size was best at batch size 16 (8e-3 for 256 units, 6e-3 for
    384 and 512). A batch n times as large allows up to sqrt(n) times that; more layers need less."""
    betas: checks.Decays = (0.9, 0.99)
    """Decay rates of the two moment estimates."""
    eps: checks.AboveZero = 1e-8
    """Added to the denominator of the update."""
    weight_decay: checks.NonNegative = 0.0
    """Decoupled weight decay of the weight matrices. 0.1 helps if the text is read several times."""
    warmup_steps: checks.Natural = 0
    """Steps in which the learning rate rises from 0: 3 in 100 of a short run, 500 to 2,000 of a long one."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up, towards final_ratio at the last step."""
    final_ratio: checks.UpToOne = 0.02
    """Last learning rate as a share of the highest. A run cut short misses it: see train.minutes."""
    clip: checks.AboveZero | None = 1.0
    """Maximum norm of the gradient; null for no clipping."""
    average: checks.BelowOne = 0.0
    """Decay of a moving average of the weights, such as 0.998; 0 for none. The average is then evaluated,
    sampled and saved in model/. It spans about 1 / (1 - decay) steps: at most a tenth of the run."""

    def __post_init__(self):
        super().__post_init__()
        self.betas = tuple(self.betas)  # a list in YAML
        advice = "is for adamw; adam has none: set it to 0, or optim.name to adamw"
        self.require(self.name == "adamw" or self.weight_decay == 0, "weight_decay", advice)


@dataclass
class TrainConfig(checks.Section):
    """The training run."""

    steps: checks.Positive = checks.LENGTH["steps"]
    """Total number of optimizer steps. Give at most one of train.steps, train.minutes and train.epochs; one
    on the command line overrides those of YAML files."""
    minutes: checks.Finite | None = None
    """Train for this many minutes on this machine: the first 100 steps are timed, then the number of steps
    is fixed. Evaluations, samples and checkpoints count; preparing the text and the final test do not. A
    resumed run keeps the number, in proportion if train.minutes was changed."""
    epochs: checks.Finite | None = None
    """Read the training text this many times, such as 2 or 0.5: the number of steps follows from its size."""
    batch_size: checks.Positive = 64
    """Lanes over all processes. A lane is one contiguous stream of text: a row of the batch. On a CPU, 16
    learn more from the same characters than 32 or 64; a GPU needs hundreds."""
    bptt: checks.Positive = 64
    """Characters that each lane advances per step: the window of truncated backpropagation through time.
    Gradients reach back no further, but the carry (the recurrent state) is passed on to the next window."""
    carry_windows: checks.Positive | None = 256
    """Windows after which the carry of a lane starts again from zeros, one lane after the other: so a model
    learns to begin a text, as for a prompt. null: only where an epoch starts."""
    accumulate: checks.Positive = 1
    """Slices per step that the lanes of a process are split into, if they do not fit in memory at once."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Arithmetic on a GPU. A CPU always computes in fp32, and logs it if another value is set."""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """Precision in which several processes average their gradients: bf16 sends half as much."""
    cuda_graph: bool | None = None
    """Record a step once and replay it, which saves launches: on a GPU, not in fp16. null: where possible."""
    stall_minutes: checks.Stall = 10.0
    """Of several processes, end all when one has not started or not responded for so long, or none makes a
    step (for 20 times the longest step, if that is longer). In evaluations, samples and checkpoints only a
    process that does not respond counts."""
    threads: checks.Positive | None = None
    """CPU threads of a process; null: as many as a step keeps busy, at most what torch would use."""
    seed: checks.Seed = 0
    """Seed of the initial weights, dropout and the order of epochs."""
    max_hours: checks.AboveZero | None = None
    """Stop, with a checkpoint, after this many hours of this process."""
    patience: checks.Positive | None = None
    """Stop early when so many evaluations in a row are no better than the best one on validation."""
    allow_change: checks.Changes = field(default_factory=list)
    """Fields of the optimizer and the regularisation that may differ from the checkpoint that the run resumes
    from, such as optim.learning_rate,optim.schedule. The change is recorded in metrics.jsonl."""
    init_from: str = ""
    """Initial weights: a run directory, model folder or Hub id; empty: random."""


@dataclass
class EvaluateConfig(checks.Section):
    """Evaluation: one pass over a split; the carry is passed on from window to window."""

    every: checks.Natural = 500
    """Steps between evaluations on the validation split; 0: only at the end."""
    lanes: checks.Positive = 32
    """Contiguous parts of the split that are read in parallel; 1 is the exact single pass."""
    context: checks.Natural = 256
    """Characters that warm up the carry of a lane before the first one that counts."""
    bptt: checks.Positive = 128
    """Characters per forward call; does not affect the figures."""
    max_characters: checks.TwoOrMore | None = None
    """During training, evaluate only this many symbols of the validation split, from its start."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Arithmetic of charlm evaluate, sample and load on a GPU; training evaluates in train.precision."""


@dataclass
class SampleConfig(checks.Section):
    """Text sampled from the model."""

    every: checks.Natural = 500
    """Steps between samples during training; 0: none, nor at the end."""
    prompt: str = "\n"
    """Text that the sample continues."""
    length: checks.Positive = 300
    """Symbols to sample."""
    temperature: checks.NonNegative = 0.8
    """Divides the logits; 0 always takes the most likely symbol."""
    top_k: checks.Positive | None = None
    """Sample only from the k most likely symbols."""
    top_p: checks.Share | None = None
    """Sample only from the smallest set of symbols whose probabilities add up to this."""
    seed: checks.Seed = 0
    """Seed of the sample."""
    stop: checks.Stops | None = None
    """End the sample before this text, such as "\\n\\n", or before the first of several."""


@dataclass
class CheckpointConfig(checks.Section):
    """Checkpoints."""

    every: checks.Natural = 500
    """Steps between checkpoints; 0: only at the end or when stopped."""
    keep: checks.Positive = 2
    """Number of newest checkpoints to keep; the best weights are kept separately, in model/."""


@dataclass
class LogConfig(checks.Section):
    """Logging."""

    every: checks.Positive = 20
    """Steps between log lines."""
    trackers: checks.Trackers = field(default_factory=lambda: ["wandb"])
    """Where the figures go, besides the files of the run: some of wandb (unless log.wandb is disabled),
    tensorboard (in run_dir), trackio, mlflow, comet_ml, aim, clearml, dvclive, swanlab; [] for none. After
    tensorboard, they show a run that is resumed as another one."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Weights & Biases. auto: online with an account and a connection, offline without a connection, disabled
    without an account or with WANDB_DISABLED; WANDB_MODE takes precedence if set."""
    project: str = "charlm"
    """Project name at the trackers; WANDB_PROJECT takes the place of the default at Weights & Biases."""


@dataclass
class Config:
    """One run: the same YAML serves prepare, train, evaluate and sample."""

    run_dir: str = "runs/default"
    """Folder of the run: config, metrics, checkpoints, model, samples. {run_id} in it
    stands for the trial of `wandb agent` (WANDB_RUN_ID), elsewhere for default."""
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
        for name, values in checks.preset(self.model.size).items():
            if name != "model":
                section = getattr(self, name)
                setattr(self, name, replace(section, **section.not_given(values)))
        self.data.shuffle = int(self.data.shuffle)  # true is seed 1
        vars(self.data).update(checks.local_text(self.data))
        checks.check_together(self)
        self.run_dir = str(self.run_dir)
