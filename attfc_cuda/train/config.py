"""Every setting of a training run: typed, documented once, read from the command line or from a JSON file.

The text under a field is its `--help`. `TrainConfig` splits into groups only for reading: flags carry no group name
(`--backbone`, not `--model.backbone`), so field names are unique across groups. `to_dict` and `from_dict` take a config
through JSON and back; a run folder keeps its own as `config.json`.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from attfc_cuda._deprecated import renamed_field, warn_renamed
from attfc_cuda._error import close_match, error
from attfc_cuda._files import write_text
from attfc_cuda.presets import DEFAULT, MARGIN_OF_HEAD, named

RENAMED: dict[tuple[str, Any], str] = {("optim", "passes"): "epochs"}
"""Old names of fields, by group, which files of older runs hold."""
HOW_A_RUN_STARTS = ("resume", "carry_classes", "overwrite", "config")
"""Fields of `RunConfig` that no file holds."""
_VERIFY_0_1 = {"verify_pairs", "verify_root", "verify_data", "verify_num_pairs", "verify_every"}
# A file with all of these and no `hold_out` is of a release that trained on every identity.
_MOST_BITS = 63  # of a whole number: it has to fit a float and a tensor


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have.

    Args:
        low: The smallest, or with `open_low` the largest that is too small.
        high: The largest, or with `open_high` the smallest that is too large; None: no limit but finiteness.
    """

    low: float
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def check(self, name: str, value: float) -> None:
        """Raise ValueError naming the setting where the value is outside, NaN or infinite."""
        if not math.isfinite(value):
            raise error("train", name, "be a finite number", value)
        above = value > self.low if self.open_low else value >= self.low
        below = self.high is None or (value < self.high if self.open_high else value <= self.high)
        if not (above and below):
            raise error("train", name, str(self), value)

    def __str__(self) -> str:
        if self.high is None:
            return f"be above {self.low:g}" if self.open_low else f"be at least {self.low:g}"
        ends = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"lie in {ends[0]}{self.low:g}, {self.high:g}{ends[1]}"


_POSITIVE, _SHARE, _BELOW_ONE = Range(0, open_low=True), Range(0, 1), Range(0, 1, open_high=True)
_SEEDS = Range(0, 2**63 - 1)

RANGES = {
    "image_size": Range(16), "batch_size": Range(1), "gallery_size": Range(1, 63), "min_images": Range(1),
    "probes_per_identity": Range(1, 64), "gallery_steps": Range(1, 64),
    "negatives_per_batch": Range(0), "max_unreadable": _SHARE, "workers": Range(0),
    "embedding_dim": Range(1),
    "sample_rate": Range(0, 1, open_low=True), "m": Range(0), "scale": _POSITIVE, "capacity": Range(1),
    "capacity_share": Range(0, 100, open_low=True), "temperature": _POSITIVE, "center_memory": _BELOW_ONE,
    "class_code": Range(0), "grad_tolerance": _BELOW_ONE, "encoder_momentum": _BELOW_ONE, "encoder_warmup": _SHARE,
    "epochs": _POSITIVE, "steps": Range(1), "lr": _POSITIVE, "accumulate": Range(1),
    "backbone_lr_factor": _POSITIVE, "layer_lr_decay": Range(0, 1, open_low=True), "final_lr": _SHARE,
    "power": _POSITIVE,
    "warmup": _BELOW_ONE, "sgd_momentum": _BELOW_ONE, "weight_decay": Range(0), "clip_norm": _POSITIVE,
    "hold_out": _BELOW_ONE, "verify_num_pairs": Range(4), "verify_every": Range(0),
    "seed": _SEEDS, "threads": Range(1), "group_timeout": _POSITIVE, "log_every": Range(1),
    "checkpoint_every": Range(0), "keep": Range(1),
}  # fmt: skip
"""Of every number among the settings, by its name; a word or None in its place is not looked at."""


@dataclass
class DatasetConfig:
    """The faces to train on, and how a batch is drawn from them."""

    data: str = "procedural"
    """Folders `<root>/<identity>/<image>`, .rec files or a folder with a train.rec, lists (.txt, .lst, .csv), .tar,
    .tar.gz or .parquet shards (a folder of them, `name-*.tar`, `name-{0000..0099}.tar`) or LMDB databases, separated by
    commas; or drawn faces: `procedural[:IDENTITIESxIMAGES][:hard][:label-noise=SHARE]`."""
    identities: str | None = None
    """Identity lists (text files, one name a line) separated by commas, one per folder; an empty entry takes all."""
    image_size: int = 112
    """Side in pixels of the square images given to the backbone."""
    batch_size: int = 128
    """Probe images a step (images that get gradients); of all processes together, where there are several."""
    gallery_size: int = 2
    """Gallery images a probe (other images of the same identity, through the momentum encoder, no gradient)."""
    min_images: int = 2
    """Identities with fewer images are negatives only, never probes: their gallery would be the probe itself."""
    probes_per_identity: int = 1
    """Probes of an identity that are drawn together and share its gallery images, each of which goes through the
    momentum encoder once a batch; smaller groups where it has fewer images. 1: each probe has a gallery of its own.
    More is faster and learns less from as many images (docs/learning.md)."""
    gallery_steps: int = 1
    """Steps in a row that share gallery images: the probes that share them come in that many batches, and the images go
    through the momentum encoder in the first, so that class centres are a few steps old and batches of many identities.
    """
    negatives_per_batch: int | Literal["auto"] = "auto"
    """Images a step of identities that are negatives only; `auto`: each is seen about once an epoch; 0: none."""
    augment: str = "flip"
    """`none`, or of flip, crop, photometric, gray and lowres those that are wanted, separated by commas; `crop:0.5`
    gives the share of the images (0.2 without it). All but flip need torchvision."""
    on_bad_image: Literal["skip", "raise"] = "skip"
    """An image that cannot be read: skip it and count it in the start-up report, or stop and name it."""
    max_unreadable: float = 0.05
    """Share of the rows that may be unreadable, counted from the 20th on, before the run stops with a checkpoint: data
    that have gone teach nothing."""
    cache: Literal["auto", "on", "off"] = "auto"
    """Keep decoded images in memory; `auto`: when they take under 2 GiB. Drawn faces are kept the same way."""
    workers: int = 0
    """Processes that prepare batches; 0: the training process does it itself (best when images are cached)."""


@dataclass
class ModelConfig:
    """The embedding network."""

    backbone: str = "small"
    """small, mobilefacenet, iresnet18, iresnet34, iresnet50, iresnet100, iresnet200, or timm:NAME."""
    backbone_options: str = ""
    """Further arguments of the backbone, e.g. `norm=group` for small."""
    embedding_dim: int = 512
    """Length of an embedding."""
    sync_batch_norm: bool = False
    """With several GPUs: normalise by the batch of all of them instead of each by its own part."""
    init: Path | None = None
    """Start from these weights: a run folder, or a .pt or .safetensors file with the tensors of such a backbone."""
    new_embedding: bool = False
    """With `init` and another `embedding_dim` than the weights have: start the layers whose size depends on it anew."""
    freeze: str = ""
    """Parameters of the backbone that are not trained, by patterns of their names separated by commas:
    `conv1.*,layer[12].*`. BatchNorm in there keeps its running statistics."""


@dataclass
class HeadConfig:
    """The head: the loss and what it keeps between steps.

    A preset that is given here, or set later, sets the values that it stands for; what is given beside it, or set after
    it, counts more. (`dataclasses.replace` gives every value, so that a preset there changes no other: set it instead.)
    """

    preset: Literal["default", "published"] = "default"
    """Where m, scale, policy, enqueue and class_code start from, which their own flags override; published: the numbers
    of the papers (scale 64, m 0.35 to 0.5, fifo, after, 0), which stay near chance for most of a short run."""
    head: Literal["attfc", "partial_fc", "fc"] = "attfc"
    """attfc: centres from gallery images in a dynamic class container; fc: a trained centre for each identity that has
    probes; partial_fc: the same, but each step meets only a sample of them. Settings of the container and of the
    gallery encoder have no effect on the last two, nor have identities with too few images for a probe."""
    sample_rate: float = 0.1
    """Share of the identities that take part in a step of partial_fc."""
    fuse_optimizer: bool = True
    """fc, partial_fc: update the centres inside the backward pass, so that no gradient of all of them is ever kept.
    They are then outside of `clip_norm`, as the report at the start says; without it all are clipped together."""
    margin: str | None = None
    """Margin loss: adasin, arcface, cosface, sphereface, combined, mvsoftmax, curricularface, adaface, magface or
    normface; None: adasin for attfc, arcface for fc and partial_fc, as each learned best (docs/learning.md). The
    config.json of a run names its margin, whatever other head is asked for beside it."""
    margin_options: str = ""
    """Further arguments of the margin, e.g. `h=1.5`; one of `m` or `scale` here counts more than theirs."""
    m: float | None = DEFAULT.m
    """Margin of adasin, arcface and curricularface in radians, of cosface and mvsoftmax as a cosine; gentler than
    published (0.35 to 0.5), for runs of minutes to hours. None: as published."""
    scale: float = DEFAULT.scale
    """Factor from a cosine to a logit (published: 64). The larger, the more a young network chases its hardest
    negatives alone."""
    capacity: int | None = None
    """Centres in the container; None: 4 batches, or as `capacity_share` says."""
    capacity_share: float | None = None
    """Container size as a share of the identities, at least 4 batches; None: 4 batches. More centres are older ones,
    and learn worse where identities are many (docs/learning.md)."""
    policy: Literal["fifo", "refresh"] = DEFAULT.policy  # type: ignore[assignment]
    """fifo: newest centres, stale copies kept; refresh: one slot a class, the least recently refreshed leaves."""
    enqueue: Literal["before", "after"] = DEFAULT.enqueue  # type: ignore[assignment]
    """The batch's own fresh centres enter the container before the loss (as negatives of each other) or after it."""
    temperature: float = 1.0
    """Softmax temperature of the attention over a sample's gallery images; a low one, such as 0.1, makes the centre
    mostly of the image nearest to the sample, which helps where labels are wrong (with `--gallery-size 4`)."""
    center_memory: float = 0.0
    """Share of the container's own centre of a class in its new one (`--policy refresh`), so that a centre averages
    over more images than a step shows; 0: the step's gallery alone."""
    class_code: float = DEFAULT.class_code
    """Length of the fixed random direction of its class that is added to each unit class centre: it keeps identities
    from sharing a few directions, as the random start of a full FC layer does. 0: none, as published."""
    container_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the centres; `auto`: that of `precision`."""
    grad_tolerance: float | None = None
    """Share of the softmax whose gradient may be left out; None: 0 for float32, 2^-12 for 16-bit centres."""
    backend: str = "auto"
    """Kernel: auto, eager, cpu, triton or cuda (`attfc info` lists what can run here)."""
    encoder_momentum: float | None = None
    """Momentum of the gallery encoder, which lags by about 1 / (1 - momentum) steps; None: 0.9."""
    encoder_warmup: float = 0.1
    """Share of the run over which a momentum above 0.9 rises to its value: early weights are not worth remembering."""
    encoder_buffers: Literal["own", "copy"] = "own"
    """BatchNorm statistics of the gallery encoder: its own, or copied from the backbone each step."""
    encoder_mode: Literal["train", "eval"] = "train"
    """train: the gallery encoder normalises by its batch, as the backbone does; eval: by running averages."""
    split_gallery: bool = False
    """Pass gallery and negative images through the gallery encoder one after the other: less memory, and BatchNorm
    normalises each by itself."""

    def __new__(cls, *given: Any, **named_values: Any) -> HeadConfig:
        made = super().__new__(cls)
        if given or named_values:  # which `__post_init__` cannot see
            in_order = [field_.name for field_ in dataclasses.fields(cls)]
            made.__dict__["_given"] = {*in_order[: len(given)], *named_values}
        return made

    def __post_init__(self) -> None:
        given = self.__dict__.pop("_given", ())
        for name, value in dataclasses.asdict(named(self.preset, "train")).items():
            if name not in given:
                setattr(self, name, value)

    @property
    def margin_name(self) -> str:
        """The name of the margin; of the one that the head starts with where none is given."""
        if self.head not in MARGIN_OF_HEAD:
            raise error("train", "head", f"be one of {', '.join(MARGIN_OF_HEAD)}", repr(self.head))
        return MARGIN_OF_HEAD[self.head] if self.margin is None else self.margin

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "preset":
            self.__dict__.update(dataclasses.asdict(named(value, "train")))
        super().__setattr__(name, value)


@renamed_field("passes", "epochs")
@dataclass
class OptimizerConfig:
    """How long and how fast to learn."""

    epochs: float = 20.0
    """Length of the run in epochs: each shows every probe image once."""
    steps: int | None = None
    """Length of the run in steps; overrides `epochs`."""
    accumulate: int = 1
    """Parts in which a batch goes through the networks, with the activations of one part at a time: for batches that do
    not fit. `batch_size` is the whole batch, the one that loss, class centres and optimizer meet, so that the step is
    that of a single part, but for BatchNorm, which normalises each part by itself. The forward pass of all parts but
    one runs twice."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd (Nesterov off) or adamw. Weight decay is never applied to norms, biases and PReLU slopes."""
    lr: float | None = None
    """Peak learning rate; None: 0.05 x batch_size / 128 for sgd, 0.001 for adamw."""
    backbone_lr_factor: float = 1.0
    """Learning rate of the backbone as a multiple of `lr`; for fine-tuning 0.1, say. The head's centres keep `lr`."""
    layer_lr_decay: float = 1.0
    """Factor of the learning rate from each layer of the backbone (a block, or a module beside the blocks) to the one
    before it; for fine-tuning 0.9, say."""
    final_lr: float = 0.0
    """Learning rate at the end, as a share of the peak."""
    schedule: Literal["cosine", "polynomial"] = "cosine"
    """Decay from the peak to the end, after the warm-up."""
    power: float = 2.0
    """Exponent of the polynomial decay."""
    warmup: float = 0.05
    """Share of the run in which the learning rate rises linearly to its peak."""
    sgd_momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 5e-4
    """L2 penalty (sgd) or decoupled decay (adamw) of weight matrices and convolutions."""
    clip_norm: float | None = 5.0
    """Largest norm of all gradients together; larger gradients are scaled down. None: no clipping."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast format of the networks (fp16 with loss scaling); the loss itself is computed in float32."""
    non_finite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is NaN or infinite: stop with a checkpoint of the state before it, or skip the batch."""


@dataclass
class VerifyConfig:
    """Verification during the run: are two faces the same person?"""

    verify_pairs: str | None = None
    """Pair lists (path_a, path_b, same and perhaps fold; or LFW's pairs.txt) and InsightFace's .bin files, separated by
    commas."""
    verify_root: Path | None = None
    """Folder the paths in `verify_pairs` start from; None: the folder of the first `--data` root."""
    verify_data: str | None = None
    """Other faces, of which every pair is judged, written like `--data`; None: for drawn faces other identities."""
    hold_out: float = 0.05
    """Share of the identities that are kept from training and verified on, where neither `verify_pairs` nor
    `verify_data` is given: at least 4, with at most 10 000 images, the same ones in every run; 0, or under 20
    identities with two images: none."""
    verify_num_pairs: int | None = None
    """Draw this many pairs from `verify_data`, half of them of the same identity; None: all pairs."""
    verify_every: int | None = None
    """Steps between verifications; None: about ten times a run, and once an epoch at most; 0: only at the end."""
    best_by: Literal["accuracy", "auc", "tar"] = "accuracy"
    """What the network in best.pt is the best of the verifications by, on the mean of the sets; tar: at FAR 1e-3."""


@dataclass
class RunConfig:
    """Where and how the run lives."""

    run: Path = Path("runs/train")
    """Folder of the run: config.json, log.jsonl, checkpoints/, best.pt, card.md, training.png, TensorBoard events."""
    resume: bool = False
    """Go on from the newest checkpoint of `run` that loads, with the settings of its config.json (or of `--config`)."""
    carry_classes: bool = False
    """With `resume`, where identities were added, removed or renamed: keep what was learned of those that have kept
    their names. Without it such a run is refused."""
    overwrite: bool = False
    """Delete the files of an earlier run in `run`, which its manifest names, and start anew."""
    config: Path | None = None
    """JSON file with settings (such as a run's config.json); flags on the command line override it."""
    seed: int = 0
    """Seed of initialisation, order, and augmentation."""
    device: str = "auto"
    """auto (a GPU when there is one), cpu, cuda, cuda:1, ..."""
    threads: int | None = None
    """CPU threads; None: PyTorch's own choice."""
    group_timeout: float = 1800.0
    """With several processes: seconds that one waits for the others (they verify, or write) before it gives up."""
    log_every: int = 10
    """Steps between log records."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; None: once an epoch; 0: only at the end or when stopped."""
    keep: int = 3
    """Newest checkpoints kept."""
    tensorboard: bool = True
    """Write TensorBoard events when tensorboard is installed."""
    loggers: str = ""
    """Where the numbers go besides: wandb, mlflow, separated by commas. Project, server and key are those of their own
    environment variables."""
    pictures: bool = True
    """Draw training.png and cosines/*.png, and write card.md, at each verification and at the end."""
    progress: bool = True
    """Show a progress bar (on a terminal) or a line per log record (elsewhere)."""


@dataclass
class TrainConfig:
    """Train a face-recognition backbone with an AttFC, Partial FC or full FC head."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    optim: OptimizerConfig = field(default_factory=OptimizerConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def check(self) -> None:
        """Raise ValueError for a setting that can be judged without looking at the data."""
        for group in dataclasses.fields(self):
            for field_ in dataclasses.fields(getattr(self, group.name)):
                value = getattr(getattr(self, group.name), field_.name)
                if field_.name in RANGES and value is not None and not isinstance(value, str):
                    RANGES[field_.name].check(field_.name, value)
        d = self.dataset
        _require(not self.run.carry_classes or self.run.resume, "carry_classes", "be used with resume", True)
        parse_options(self.head.margin_options, "margin_options")
        parse_options(self.model.backbone_options, "backbone_options")
        from attfc_cuda.data.augment import Augmentation  # brings torch, which `attfc train --help` does not wait for

        Augmentation(d.augment, d.image_size)
        if self.run.loggers:
            from attfc_cuda.train.loggers import check_names

            check_names(self.run.loggers)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, strings and numbers; without those of `HOW_A_RUN_STARTS`, and with the margin's name, so that a
        run keeps its margin whatever a later release starts with."""
        plain = dataclasses.asdict(self, dict_factory=lambda items: {k: _plain(v) for k, v in items})
        plain["head"]["margin"] = self.head.margin_name
        for how in HOW_A_RUN_STARTS:
            del plain["run"][how]
        return plain

    @staticmethod
    def from_dict(plain: dict[str, Any]) -> TrainConfig:
        """The config of such a dict. Fields left out take their defaults, those of the head where it names a preset.

        Raises:
            ValueError: naming a field that is not known or has another type, or a preset that is none.
        """
        groups = {g.name: g.default_factory for g in dataclasses.fields(TrainConfig)}
        _check_keys(plain, groups, "group")
        plain = {group: _with_new_names(fields, group) for group, fields in plain.items()}
        if isinstance(head := plain.get("head"), dict) and isinstance(head.get("preset"), str):
            named(head["preset"], "train")  # its error says more than that of a setting's type
        if isinstance(verify := plain.get("verify"), dict) and "hold_out" not in verify and set(verify) >= _VERIFY_0_1:
            plain["verify"] = {**verify, "hold_out": 0.0}
        return TrainConfig(**{name: _group(make, plain.get(name, {}), name) for name, make in groups.items()})

    def save(self, path: Path) -> None:
        """Write as JSON, all of it or nothing."""
        write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")

    @staticmethod
    def load(path: Path) -> TrainConfig:
        """Read a config from a JSON file.

        Raises:
            ValueError: naming the file when it is missing or not such JSON.
        """
        try:
            plain = json.loads(Path(path).read_text())
        except (OSError, ValueError, RecursionError) as cause:
            raise error("train", "config", "be a readable JSON file", f"{path} ({cause})") from cause
        return TrainConfig.from_dict(plain)


def parse_options(text: str, argument: str) -> dict[str, Any]:
    """`a=1,b=word` -> {"a": 1, "b": "word"}; values are Python literals, anything else stays text."""
    options: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not (name and equals and value):
            raise error("train", argument, "be name=value pairs separated by commas", repr(text))
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            options[name] = value
    return options


def _require(holds: bool, argument: str, rule: str, got: Any) -> None:
    if not holds:
        raise error("train", argument, rule, got)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _with_new_names(fields: Any, group: str) -> Any:
    if not isinstance(fields, dict):
        return fields
    renamed = {}
    for name, value in fields.items():
        new = RENAMED.get((group, name), name)
        if new != name:
            warn_renamed(f"config {group}.{name}", new, stacklevel=4)
        renamed[new] = value
    return renamed


def _check_keys(plain: Any, known: typing.Iterable[str], what: str) -> None:
    if not isinstance(plain, dict):
        raise error("train", "config", f"hold a JSON object for each {what}", repr(plain))
    for key in plain:
        if key not in known:
            rule = f"name known settings ({what}: {', '.join(known)})"
            raise error("train", "config", rule, repr(key), close_match(key, known))


def _group(make: Any, plain: dict[str, Any], name: str) -> Any:
    hints = typing.get_type_hints(make)
    _check_keys(plain, hints, f"setting of {name}")
    for how in HOW_A_RUN_STARTS if name == "run" else ():
        if how in plain:
            # A file that somebody else wrote is not to delete a run.
            raise error("train", f"config run.{how}", "be given on the command line, not in a file", repr(plain[how]))
    return make(**{key: _convert(value, hints[key], f"{name}.{key}") for key, value in plain.items()})


def _convert(value: Any, hint: Any, name: str) -> Any:
    """A JSON value as the field's type: an int is fine for a float, a string for a path; nothing else is guessed."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise error("train", f"config {name}", f"have at most {_MOST_BITS} bits", f"{value.bit_length()} bits")
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        if typing.get_origin(option) is Literal:
            if value in typing.get_args(option):
                return value
        elif option is Path and isinstance(value, str):
            return Path(value)
        elif option is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        elif isinstance(option, type) and isinstance(value, option) and (option is bool) == isinstance(value, bool):
            return value
    raise error("train", f"config {name}", f"be {' or '.join(map(_in_words, options))}", repr(value))


def _in_words(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(option)))}"
    return getattr(option, "__name__", str(option)) if typing.get_origin(option) is None else str(option)
