"""MolereClassifier: learned example weights behind scikit-learn's interface.

clf = MolereClassifier(method="lrw-hard").fit(X, y)
clf.predict(X), clf.weights_, clf.hard_examples_
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast, no_type_check

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils import check_random_state as random_state_of  # pyright: ignore[reportUnknownVariableType]
from sklearn.utils.multiclass import check_classification_targets  # pyright: ignore[reportUnknownVariableType]
from sklearn.utils.validation import check_is_fitted  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from molere import inputs, settings
from molere.estimatordata import Given, in_own_words, prepared, recipe_of
from molere.estimatorresults import Known
from molere.inputs import Inputs, InvalidInput, Matrix, shown
from molere.method import Method
from molere.models import Classifier
from molere.recipe import Recipe
from molere.result import Result
from molere.run import fit
from molere.steps import chunks

PREDICTED_AT_ONCE = 1024

Labels = npt.NDArray[Any]  # Any: whatever the user's labels are
Model = str | nn.Module | Callable[[], nn.Module]


class MolereClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier whose training examples are weighted by any method of this library.

    Args:
        method: a name such as `lrw-hard`, `mwn[q=5]` or `lrwopt@paper`, or a Method.
        model: a name, a module (copied), or a factory of modules: the module's class, or a function without
            arguments. None: `cnn` for images, `mlp` for tables and all else, such as floats [N, H, W].
        logits: where the logits are in what the module returns, if it returns more: `lambda out: out[0]`.
        epochs: passes over the data. None: as many as make 1,000 updates, at least 10 and at most 100.
        batch_size: examples in a batch; all of them, if there are fewer.
        optimizer, lr, weight_decay: of the model; a name of torch.optim, or a callable.
        recipe: further settings of training, by name, as `{"grad_clip": 1.0}` (see Recipe).
        scale: shift and scale each column of a table to mean 0 and deviation 1 (sparse: scale only), and likewise each
            place of numbers [N, H, W] that are no uint8, unless the module is your own. Other inputs, and all with
            scale=False, go to the model as they are: floats as float32, integers as integers, and uint8 images
            [N, C, H, W] or [N, H, W] over 255.
        device: auto, cpu, cuda or cuda:N.
        random_state: a number makes `fit` repeatable.
        out: folder of the run (checkpoints, metrics, samples); None: nothing is kept. Each fit needs one of its own, so
            that a search goes with None.
        verbose: 1 shows progress on standard error: a bar on a terminal, else a line every ten seconds.

    Attributes:
        classes_: the labels, in the order of the columns of `predict_proba`.
        weights_: weight of each example of X when it was last trained on [N]; NaN if it never was.
        margins_: probability of its label minus the largest other one under the fitted model [N], in [-1, 1].
        hard_examples_: the tenth of the examples of least margin, hardest first, as positions in X.
        suspects_: examples whose label the margins contradict (below 0), most contradicted first: under models that
            did not see the example where the method trained such (`holdout_margin`), else under the fitted model.
        history_: a mapping of metrics for each epoch.
        result_: the whole Result.
        module_: the fitted module.
    """

    method: str | Method[Any]
    model: Model | None
    logits: Callable[[Any], Tensor] | None
    epochs: int | None
    batch_size: int
    optimizer: str | Callable[..., Any]
    lr: float
    weight_decay: float
    recipe: Mapping[str, object] | None
    scale: bool
    device: str
    random_state: Any
    out: str | Path | None
    verbose: int

    classes_: Labels
    n_features_in_: int
    feature_names_in_: Labels
    weights_: npt.NDArray[np.float64]
    margins_: npt.NDArray[np.float64]
    hard_examples_: npt.NDArray[np.int64]
    suspects_: npt.NDArray[np.int64]
    history_: list[dict[str, float]]
    result_: Result
    module_: nn.Module

    @no_type_check  # scikit-learn: whatever is passed is kept, and looked at in `fit`
    def __init__(
        self,
        method: str | Method[Any] = "molere",  # Any: of whatever state
        *,
        model: Model | None = None,
        logits: Callable[[Any], Tensor] | None = None,  # Any: whatever the module returns
        epochs: int | None = None,
        batch_size: int = 64,
        optimizer: str | Callable[..., Any] = "sgd",  # Any: as in Recipe
        lr: float = 0.1,
        weight_decay: float = 5e-4,
        recipe: Mapping[str, object] | None = None,
        scale: bool = True,
        device: str = "auto",
        random_state: Any = None,  # Any: a number, a RandomState or none, as scikit-learn has it
        out: str | Path | None = None,
        verbose: int = 0,
    ) -> None:
        self.method = method
        self.model = model
        self.logits = logits
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.recipe = recipe
        self.scale = scale
        self.device = device
        self.random_state = random_state
        self.out = out
        self.verbose = verbose

    def __sklearn_tags__(self) -> Tags:
        tags = cast(Tags, cast(Any, super()).__sklearn_tags__())
        tags.input_tags.sparse = True
        return tags

    def fit(
        self,
        X: Any,  # Any: arrays, data frames, sparse matrices; here and below
        y: Any,
        sample_weight: Any = None,
        groups: Any = None,
        X_val: Any = None,
        y_val: Any = None,
    ) -> "MolereClassifier":
        """Train on X [N, ...] and labels y [N] of any kind.

        Args:
            X: a table (array, data frame, sparse matrix), or an array of images or of whatever the model takes.
            y: labels: numbers or strings.
            sample_weight: a factor of each example's loss [N], used beside the weights that the method finds; examples
                of weight 0 are left out.
            groups: the group of each example [N], of any kind; for methods that compare groups, and for metrics.
            X_val: examples that the method validates its weights on, in place of a part of X, if it takes a
                validation part (lrw-*, l2r, mwn, ...). They do not train. Metrics on them are in `history_` for every
                method.
            y_val: their labels.

        Raises:
            ValueError: for inputs that cannot be trained on. ConfigError: for settings.
        """
        x = inputs.validated(self, X, y)
        labels = cast(Labels, x.y)
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        own = self.model is not None and not isinstance(self.model, str)
        self._inputs = Inputs.fitted(x.matrix, scale=self.scale, own_module=own)
        kept = inputs.positive(sample_weight, x.matrix)
        if len(trained := self.classes_[np.unique(codes[kept[0]])]) < 2:
            raise InvalidInput(
                f"the examples are of one class only ({shown(trained[0])}); a classifier needs at least two"
            )
        given = Given(x.matrix, codes, *kept, self._validation(X_val, y_val), groups, len(self.classes_))
        method, data = prepared(settings.method_of(self.method), given, self._inputs)
        seed = int(random_state_of(self.random_state).randint(2**31 - 1))
        with in_own_words():
            self.result_ = fit(
                method,
                data=data,
                model=self.model,
                logits=self.logits,
                recipe=self._recipe(len(data.train)),
                seed=seed,
                out=self.out,
                progress=bool(self.verbose),
                label=self.method if isinstance(self.method, str) else None,
            )
        self.module_ = self.result_.classifier
        self._learn_of_examples(self.result_, inputs.count(x.matrix))
        return self

    def _recipe(self, size: int) -> Recipe:
        said: dict[str, object] = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr}
        said |= {"device": self.device, "optimizer": self.optimizer, "weight_decay": self.weight_decay}
        return recipe_of(said, self.recipe or {}, size)

    def _validation(self, x: Any, y: Any) -> tuple[Matrix, npt.NDArray[np.int64]] | None:
        """X_val, of X's kind, and the classes of y_val, if there are any."""
        if (x is None) != (y is None):
            raise InvalidInput("X_val and y_val belong together: pass both, or neither")
        if x is None:
            return None
        found = inputs.validated(self, x, y, reset=False, name="y_val")
        return self._inputs.like(found.matrix), inputs.coded(cast(Labels, found.y), self.classes_)

    def _learn_of_examples(self, result: Result, n: int) -> None:
        """The attributes about single examples."""
        known = Known.of(result, n)
        self.history_ = result.history
        self.weights_, self.margins_ = known.weights, known.margins
        self.hard_examples_, self.suspects_ = known.hard(), known.suspects()

    def decision_logits(self, X: Any) -> npt.NDArray[np.float64]:
        """Logits [n, classes] of the fitted module in evaluation mode.

        On a CPU models of this library take tables in float64, so that an example's logits do not depend on the batch
        that it comes in; a module of your own works as it was trained.
        """
        check_is_fitted(self, "module_")
        self._inputs.check_shape(X)
        x = inputs.validated(self, X, reset=False)
        pool = self._inputs.pool(x.matrix, np.arange(inputs.count(x.matrix)) % 2, classes=2)
        model = self.module_
        device = next(model.parameters()).device
        double = device.type == "cpu" and isinstance(model, Classifier) and not self._inputs.are_images
        wide = inputs.twin(model, torch.float64) if double else model
        wide.eval()
        with torch.no_grad():
            parts = [
                wide(inputs.cast_like(pool.batch(i).x.to(device), wide))
                for i in chunks(torch.arange(len(pool)), PREDICTED_AT_ONCE)
            ]
        return torch.cat(parts).double().cpu().numpy()[:, : len(self.classes_)]

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Probabilities [n, classes], softmax of the logits; columns as in `classes_`."""
        return torch.from_numpy(self.decision_logits(X)).softmax(1).numpy()

    def predict(self, X: Any) -> Labels:
        """The most probable label of each example [n]."""
        places = self.decision_logits(X).argmax(1)
        return self.classes_[places]

    def save(self, folder: str | Path) -> None:
        """Write the fitted classifier to a folder: safetensors and JSON, no pickle.

        The folder is new, empty, or of a classifier that was saved before, which is replaced once all is written;
        StorageError for another.
        """
        from molere import estimatorfiles

        estimatorfiles.save(self, Path(folder))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        model: Model | None = None,
        logits: Callable[[Any], Tensor] | None = None,
        method: Literal["stored"] | Method[Any] = "stored",
        **settings: Any,
    ) -> "MolereClassifier":
        """A fitted classifier from its folder; StorageError for a damaged one.

        What is not stored is asked for in one line, a ConfigError: code of yours, and objects that are neither numbers,
        texts, lists nor mappings of such.

        Args:
            folder: what `save` wrote.
            model: the module's class or another factory, if it was your own: code is not stored.
            logits: the function that reads its output, if there was one.
            method: the Method, if it was an object that no spec such as `lrw-hard[q=2]` stands for.
            settings: other settings that are asked for: an optimizer or a recipe with functions, a RandomState.
        """
        from molere import estimatorfiles

        stored = None if isinstance(method, str) else method
        given: dict[str, Any] = {"model": model, "logits": logits, "method": stored}
        given = {name: value for name, value in given.items() if value is not None}
        return estimatorfiles.load(cls, Path(folder), {**given, **settings})
