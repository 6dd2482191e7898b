"""Recipe: how a classifier is trained, the same for every method of a comparison. Needs no torch to read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from molere.fields import check_fields

Factory = Callable[..., object]

_YOUNGER = ("weights", "loss_clip")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Optimiser, schedule, batches and precision of one training.

    The budget is counted in classifier updates: `epochs` passes over the whole pool at `batch_size`, whatever part of
    the pool a method trains on.
    """

    epochs: Annotated[int, Ge(1)] = 30
    """Passes over the whole pool; epochs * floor(N / batch_size) classifier updates."""
    batch_size: Annotated[int, Ge(1)] = 64
    """Training examples in a batch (n)."""
    val_batch_size: Annotated[int, Ge(1)] | None = None
    """Validation examples in a meta step's batch (m); none: the same as batch_size."""
    optimizer: str | Factory = "sgd"
    """Name of a class of torch.optim (any case), or a callable (parameters, lr=..., **optimizer_args) that returns an
    optimiser and sets momentum and weight decay itself."""
    lr: Annotated[float, Gt(0)] = 0.1
    """Initial learning rate of the classifier."""
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    """Momentum, for optimisers that take one."""
    nesterov: bool = False
    """Nesterov momentum, for SGD."""
    weight_decay: Annotated[float, Ge(0)] = 5e-4
    """Weight decay, as the optimiser understands it."""
    optimizer_args: Mapping[str, object] = field(default_factory=dict[str, object])
    """Further arguments of the optimiser."""
    scheduler: str | Factory | None = "cosine"
    """cosine, step or constant (per update), a class of torch.optim.lr_scheduler (per epoch), or a callable."""
    scheduler_args: Mapping[str, object] = field(default_factory=dict[str, object])
    """Arguments of the scheduler; for `step`: milestones as fractions of the run, gamma."""
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Dropout before the head of a named model."""
    weights: str | None = None
    """What the classifier starts from: a name of torchvision or timm (IMAGENET1K_V2, default), or a file; none: new."""
    loss_clip: Annotated[float, Interval(gt=0, lt=1)] | None = None
    """Share of a training batch, its largest losses, that no method's update counts; none: all count."""
    precision: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """Parameters' type (float32, float64) or autocast type (bfloat16, float16)."""
    accumulate: Annotated[int, Ge(1)] = 1
    """Parts that a batch goes through in, for less memory at one more forward pass; batch statistics are of a part."""
    channels_last: bool = False
    """Images and convolutions in channels-last memory order; faster for most convolutional networks."""
    compile: str | None = None
    """Backend of torch.compile for the classifier, such as inductor; none: not compiled. The first updates then take
    minutes; meant for GPUs."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    q: Annotated[int, Ge(1)] | None = None
    """Classifier updates for each meta update (Q), for every method that has one; none: each method's own."""
    warmup: Annotated[float, Interval(ge=0, lt=1)] | None = None
    """Share of the run before a method starts, for every method that has one; none: each method's own."""
    augment: bool = True
    """Random crops and flips, where the data set has them."""
    meta_bn: Literal["batch", "eval"] = "batch"
    """BatchNorm in virtual passes: statistics of the batch, or the running ones (dropout is as in training)."""
    meta_share: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Share of the classifier's blocks, the last ones, that meta-gradients run through; below 1 not exact."""
    estimator: Literal["auto", "one-sided", "central", "exact", "ghost"] = "auto"
    """How inner products with per-example gradients are taken; auto: chosen by a probe of the module."""
    grad_clip: Annotated[float, Gt(0)] | None = None
    """Largest norm of the classifier's gradient."""
    eval_every: Annotated[int, Ge(1)] = 1
    """Epochs between evaluations on the selection data."""
    crossfit: Annotated[int, Ge(2)] | None = None
    """Folds of a cross-fit at the end, of models that have not seen what they predict, for `molere samples`; each costs
    half a run of ERM on the rest of the pool. None: only where the method makes one."""
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """When a loss, weight or gradient is NaN or infinite: end the run (the last good checkpoint stays), skip the update
    (at most ten in a row), or go back to the last good epoch at half the learning rate (at most three times)."""
    save_every: Annotated[int, Ge(1)] | None = None
    """Classifier updates between checkpoints; none: at the ends of epochs, at most every five seconds, and every ten
    minutes in longer ones."""

    def __post_init__(self) -> None:
        check_fields(self)

    def stated(self) -> dict[str, object]:
        """All settings, but those that are younger than folders of runs where they are unset: these stay the same."""
        return {k: v for k, v in vars(self).items() if v is not None or k not in _YOUNGER}
