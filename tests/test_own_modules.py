"""Modules as people write them: shared parameters, tuples, dicts, frozen parts, float64, dropout and BatchNorm.

Each works at all three levels of use, or one line says what to change.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from molere import MolereClassifier, Recipe, Reweighter, compare, fit
from molere.errors import ConfigError
from molere.testing import rare_region

DATA = rare_region()
X, Y = DATA.train.x[:32], DATA.train.y[:32]


class Shared(nn.Module):
    """One layer used twice, and two names for one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first
        self.scale = nn.Linear(4, 4, bias=False)
        self.scale.weight = self.first.weight
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.scale(self.second(self.first(x).relu()).relu()))


class GivesTuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).relu()
        return self.out(features), features


class GivesDict(GivesTuple):
    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        logits, features = super().forward(x)
        return {"features": features, "logits": logits}


class Frozen(nn.Module):
    """A backbone that does not train under a head that does."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()).requires_grad_(False)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()


def noisy() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2))


def first(out: tuple[Tensor, Tensor]) -> Tensor:
    return out[0]


def of_dict(out: dict[str, Tensor]) -> Tensor:
    return out["logits"]


Reader = Callable[[Any], Tensor] | None
KINDS: dict[str, tuple[Callable[[], nn.Module], Reader]] = {
    "shared parameters": (Shared, None),
    "a tuple": (GivesTuple, first),
    "a dict": (GivesDict, of_dict),
    "a frozen backbone": (Frozen, None),
    "float64": (wide, None),
    "dropout and BatchNorm": (noisy, None),
}
METHODS = ["lrw-random[q=2]", "gdw"]
each = pytest.mark.parametrize(("make", "logits"), KINDS.values(), ids=KINDS)


@each
@pytest.mark.parametrize("method", METHODS)
def test_fit_takes_it(make: Callable[[], nn.Module], logits: Reader, method: str) -> None:
    recipe = Recipe(epochs=2, batch_size=16, device="cpu")
    result = fit(method, data=DATA, model=make, logits=logits, recipe=recipe)
    before = dict(make().state_dict())
    after = {k.removeprefix("module."): v for k, v in result.classifier.state_dict().items()}
    assert set(before) == set(after)
    assert all(v.dtype == before[k].dtype for k, v in after.items())


@each
def test_the_estimator_takes_it(make: Callable[[], nn.Module], logits: Reader) -> None:
    clf = MolereClassifier("lrw-random", model=make, logits=logits, epochs=2, batch_size=16, random_state=0)
    proba = clf.fit(X.numpy(), np.array(["no", "yes"])[Y.numpy()]).predict_proba(X.numpy())
    np.testing.assert_allclose(proba.sum(1), 1)


@each
@pytest.mark.parametrize("method", METHODS[:1])
def test_a_loop_takes_it(make: Callable[[], nn.Module], logits: Reader, method: str) -> None:
    model = make()
    x = X.to(next(model.parameters()).dtype)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    weigh = Reweighter(method, model, optimizer, val=(x, Y), logits=logits)
    read = logits or (lambda out: out)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(3):
        w = weigh(x, Y)
        loss = (w * F.cross_entropy(read(model(x)), Y, reduction="none")).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert w.isfinite().all()
    frozen = [k for k, p in model.named_parameters() if not p.requires_grad]
    assert all(torch.equal(model.state_dict()[k], before[k]) for k in frozen)
    assert len(model.state_dict()) == len(before)


def test_a_module_itself_is_copied_and_not_touched() -> None:
    model = GivesTuple()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = fit("erm", data=DATA, model=model, logits=first, recipe={"epochs": 1, "batch_size": 16})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert result.settings["model"] == "GivesTuple"


def test_a_comparison_reads_what_a_module_gives() -> None:
    recipe = {"epochs": 1, "batch_size": 16}
    found = compare(["erm", "cvar"], data=DATA, model=GivesDict, logits=of_dict, recipe=recipe, seeds=1)
    assert not found.failures


def frozen_whole() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).requires_grad_(False)


class Tied(nn.Module):
    """Its last layer's weight is another module's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


class Convolutional(nn.Module):
    """A 1x1 convolution and a mean over positions: no layer to take as a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Conv1d(1, 6, 3, padding=1), nn.Conv1d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x.unsqueeze(1)).relu()).mean(2)


READ_NO_FEATURES = [
    "erm", "mwn", "l2r", "gdw", "bilaw", "maple", "mbr", "rho-loss", "jtt", "cvar", "upweight",
    "lrw-random[weights.network=signals]", "molere",
]  # fmt: skip
READ_FEATURES = [
    "lrw-easy", "lrw-random", "lrw-hard@paper", "lrwopt", "stablenet", "fsr", "molere[mode=learned]",
    "l2r[last_layer_only=true]", "mwn[holdout=learned]",
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "method"), [*((Convolutional, m) for m in READ_NO_FEATURES), *((Tied, m) for m in ("mwn", "l2r", "bilaw"))]
)
def test_without_a_head_methods_that_read_no_features_train(make: Callable[[], nn.Module], method: str) -> None:
    result = fit(method, data=DATA, model=make, recipe={"epochs": 2, "batch_size": 16})
    assert result.updates > 0
    assert all(p.isfinite().all() for p in result.classifier.parameters())


def test_without_a_head_the_estimator_and_its_file_work(tmp_path: Path) -> None:
    clf = MolereClassifier("mwn", model=Convolutional, epochs=2, batch_size=16, random_state=0).fit(
        X.numpy(), Y.numpy()
    )
    weights = tmp_path / "weights.pt"
    torch.save(Convolutional().state_dict(), weights)
    recipe = {"epochs": 1, "batch_size": 16, "weights": str(weights)}
    assert fit("erm", data=DATA, model=Convolutional, recipe=recipe).updates > 0
    np.testing.assert_allclose(clf.predict_proba(X.numpy()).sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("method", READ_FEATURES)
def test_without_a_head_methods_that_read_features_say_so_before_they_train(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("something was trained first")

    monkeypatch.setattr("molere.learner.Learner.step", forbidden)
    with pytest.raises(ConfigError, match="head|linear layer") as told:
        fit(method, data=DATA, model=Convolutional, recipe={"epochs": 2, "batch_size": 16})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("method", "make", "settings", "sentence"),
    [
        (
            "erm",
            GivesTuple,
            {},
            r"^GivesTuple returns a tuple, expected logits \[n, classes\]; say .*: logits=lambda out: out\[0\]$",
        ),
        ("erm", GivesDict, {}, r'^GivesDict returns a dict.*: logits=lambda out: out\["logits"\]$'),
        ("lrw-random", Tied, {}, r"^Tied shares the weight of its last nn.Linear, 'last': give it `features`"),
        ("erm", frozen_whole, {}, r"^Sequential has no parameter that is trained; unfreeze"),
        ("erm", "mlp", {"logits": first}, r"^logits= is for a module of yours; the model 'mlp' gives logits already"),
    ],
)
def test_what_does_not_work_says_what_to_change(method: str, make: Any, settings: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        fit(method, data=DATA, model=make, recipe={"epochs": 1, "batch_size": 16}, **settings)
