"""CVaR, DORO and trimmed losses: their values, their gradients, and what they cost."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F

from molere.data.pool import Data, TensorPool
from molere.errors import ConfigError
from molere.losses import trimmed_mean
from molere.methods.dro import DORO, ByLoss, CVaR, Trimmed, least_eta
from molere.recipe import Recipe
from molere.run import fit
from molere.settings import make_method
from molere.testing import rare_region

TO_100 = torch.arange(1.0, 101)


def losses_of(least: int) -> st.SearchStrategy[Tensor]:
    return st.lists(st.floats(0, 10), min_size=least, max_size=40).map(lambda v: torch.tensor(v, dtype=torch.float64))


LOSSES = losses_of(2)
ALPHAS = st.floats(0.05, 1)
KINDS = st.sampled_from(["cvar", "doro", "chi2", "trimmed"])


def made(kind: str, alpha: float, share: float) -> ByLoss:
    if kind == "trimmed":
        return Trimmed(share=share)
    return (
        CVaR(alpha=alpha)
        if kind == "cvar"
        else DORO(objective="chi2" if kind == "chi2" else "cvar", alpha=alpha, epsilon=share)
    )


def value(method: ByLoss, losses: Tensor) -> float:
    return float((method.weights(losses) * losses).mean())


# ---- the objectives, again, from their formulas


def falling(losses: Tensor) -> list[float]:
    return sorted(losses.tolist(), reverse=True)


def cvar(losses: Tensor, alpha: float) -> float:
    k = max(1, math.floor(alpha * len(losses) + 1e-9))
    return math.fsum(falling(losses)[:k]) / k


def cvar_doro(losses: Tensor, alpha: float, epsilon: float) -> float:
    n = len(losses)
    n1, n2 = (math.floor(share * n + 1e-9) for share in (epsilon + alpha * (1 - epsilon), epsilon))
    return math.fsum(falling(losses)[n2:n1]) / (alpha * (n - n2))


def chi_square(losses: Tensor, alpha: float) -> float:
    """By search: the objective is convex in eta."""
    values = np.array(losses.tolist())
    c = math.sqrt(1 + (1 / alpha - 1) ** 2)

    def at(eta: float) -> float:
        return c * math.sqrt(np.mean(np.maximum(values - eta, 0) ** 2)) + eta

    spread = float(np.ptp(values)) + 1
    low = float(values.min()) - 2 * spread / max(c * c - 1, 1e-6)
    found = minimize_scalar(at, bounds=(low, float(values.max())), method="bounded", options={"xatol": 1e-12})
    return min(float(found.fun), at(float(values.max())))


# ---- closed forms


@pytest.mark.parametrize(
    ("method", "losses", "expected"),
    [
        (CVaR(alpha=0.2), TO_100, 90.5),
        (DORO(alpha=0.2, epsilon=0.1), TO_100, 81.5),
        (DORO(alpha=0.2, epsilon=0.1), TO_100[:10], 5.0),
        (DORO(objective="chi2", alpha=0.5, epsilon=0.0), torch.tensor([0.0, 1]), 1.0),
        (Trimmed(share=0.1), TO_100, 45.5),
        (CVaR(alpha=0.2), TO_100[:3], 3.0),  # floor(.2 * 3) = 0 examples are one example
        (DORO(alpha=0.2, epsilon=0.05), TO_100[:3], 3.0),
    ],
)
def test_objectives_have_the_values_computed_by_hand(method: ByLoss, losses: Tensor, expected: float) -> None:
    assert value(method, losses) == pytest.approx(expected, rel=1e-6)


def test_doro_counts_the_ranks_11_to_28_of_100() -> None:
    weights = DORO(alpha=0.2, epsilon=0.1).weights(TO_100)
    assert (weights != 0).nonzero().flatten().tolist() == list(range(72, 90))  # .28 * 100 is not 27
    assert weights[72:90].tolist() == pytest.approx([100 / 18] * 18)


def test_of_equal_losses_the_same_number_is_chosen() -> None:
    assert CVaR(alpha=0.5).weights(torch.ones(4)).tolist() == [2, 2, 0, 0]
    assert DORO(objective="chi2", epsilon=0.0).weights(torch.ones(4)).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("n", [10, 64, 128])
@pytest.mark.parametrize(
    "method", [CVaR(), DORO(alpha=0.5), DORO(objective="chi2"), DORO(objective="chi2", epsilon=0.0), Trimmed()]
)
def test_constant_losses_give_that_constant_up_to_the_rounding_of_counts(method: ByLoss, n: int) -> None:
    assert value(method, torch.full((n,), 2.5)) == pytest.approx(2.5, rel=1 / (0.5 * n))


# ---- against the formulas


@given(LOSSES, ALPHAS)
def test_cvar_is_the_mean_of_the_largest(losses: Tensor, alpha: float) -> None:
    assert value(CVaR(alpha=alpha), losses) == pytest.approx(cvar(losses, alpha), abs=1e-9)


@given(losses_of(20), st.floats(0.1, 1), st.floats(0, 0.4))
def test_doro_is_its_formula_where_no_count_is_zero(losses: Tensor, alpha: float, epsilon: float) -> None:
    found = value(DORO(alpha=alpha, epsilon=epsilon), losses)
    assert found == pytest.approx(cvar_doro(losses, alpha, epsilon), abs=1e-9)


@given(LOSSES, st.floats(0.05, 0.99))
def test_chi_square_is_the_least_over_eta(losses: Tensor, alpha: float) -> None:
    found = value(DORO(objective="chi2", alpha=alpha, epsilon=0.0), losses)
    assert found == pytest.approx(chi_square(losses, alpha), abs=1e-5)


@given(LOSSES, st.floats(0.05, 0.99), st.floats(0, 0.5))
def test_chi_square_doro_is_chi_square_of_what_is_left(losses: Tensor, alpha: float, epsilon: float) -> None:
    dropped = min(len(losses) - 1, math.floor(epsilon * len(losses) + 1e-9))
    left = torch.tensor(falling(losses)[dropped:])
    weights = DORO(objective="chi2", alpha=alpha, epsilon=epsilon).weights(losses)
    assert float((weights * losses).mean()) == pytest.approx(chi_square(left, alpha), abs=1e-5)
    assert int((weights == 0).sum()) >= dropped


@given(LOSSES, st.floats(0, 0.9))
def test_trimming_is_the_trimmed_mean(losses: Tensor, share: float) -> None:
    assert value(Trimmed(share=share), losses) == pytest.approx(float(trimmed_mean(losses, share)), abs=1e-9)


@given(LOSSES, st.sampled_from([0.2, 0.25, 0.5, 1.0]))
def test_doro_without_outliers_is_cvar_where_counts_are_whole(losses: Tensor, alpha: float) -> None:
    if (alpha * len(losses)).is_integer():
        assert torch.equal(DORO(alpha=alpha, epsilon=0.0).weights(losses), CVaR(alpha=alpha).weights(losses))


@given(LOSSES, KINDS, ALPHAS, st.floats(0, 0.9))
def test_weights_are_finite_not_negative_and_follow_a_permutation(
    losses: Tensor, kind: str, alpha: float, share: float
) -> None:
    method = made(kind, alpha, share)
    weights = method.weights(losses)
    assert bool((weights.isfinite() & (weights >= 0)).all())
    if len(losses.unique()) == len(losses):
        torch.testing.assert_close(method.weights(losses.flip(0)).flip(0), weights)


@given(LOSSES, st.floats(0.05, 0.99))
def test_eta_is_where_the_slope_vanishes_or_the_largest_loss(losses: Tensor, alpha: float) -> None:
    down = losses.sort(descending=True).values
    eta = least_eta(down, alpha)
    excess = (down - eta).clamp_min(0)
    if float(excess.sum()) > 1e-4:
        slope = 1 - math.sqrt(1 + (1 / alpha - 1) ** 2) * excess.mean() / excess.square().mean().sqrt()
        assert float(slope) == pytest.approx(0, abs=1e-5)
    else:
        assert float(eta) == pytest.approx(float(down[0]), abs=1e-4)


@pytest.mark.parametrize(
    "method", [CVaR(alpha=1.0), DORO(objective="chi2", alpha=1.0, epsilon=0.0), Trimmed(share=0.0)]
)
def test_the_mildest_settings_weigh_all_alike(method: ByLoss) -> None:
    assert torch.equal(method.weights(torch.rand(9)), torch.ones(9))


# ---- gradients, and training


def objective(method: ByLoss, losses: Tensor) -> Tensor:
    """The objective with its graph, eta and the order held constant, as published."""
    n, down = len(losses), losses.sort(descending=True).values
    if isinstance(method, CVaR):
        return down[: math.floor(method.alpha * n + 1e-9)].mean()
    if isinstance(method, Trimmed):
        return down[math.floor(method.share * n + 1e-9) :].mean()
    assert isinstance(method, DORO)
    n2 = math.floor(method.epsilon * n + 1e-9)
    if method.objective == "cvar":
        n1 = math.floor((method.epsilon + method.alpha * (1 - method.epsilon)) * n + 1e-9)
        return down[n2:n1].sum() / (method.alpha * (n - n2))
    left, c = down[n2:], math.sqrt(1 + (1 / method.alpha - 1) ** 2)
    known = left.detach()
    lower, upper = float(known.min()) - 10 * float(known.max()), float(known.max())
    for _ in range(200):  # the slope in eta rises from below zero to above
        eta = (lower + upper) / 2
        excess = (known - eta).clamp_min(0)
        rises = float(excess.square().mean().sqrt()) > c * float(excess.mean())
        lower, upper = (lower, eta) if rises else (eta, upper)
    return c * (left - lower).clamp_min(0).square().mean().sqrt() + lower


ALL = [
    CVaR(alpha=0.25),
    DORO(alpha=0.3, epsilon=0.1),
    DORO(objective="chi2", alpha=0.3, epsilon=0.1),
    DORO(objective="chi2", alpha=0.5, epsilon=0.0),
    Trimmed(share=0.2),
]


def small() -> tuple[Data, nn.Module]:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(60, 4, generator=generator, dtype=torch.float64), torch.arange(60) % 3
    pool = TensorPool(x, y)
    return Data("small", pool, None, {"test": pool}), nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.parametrize("method", ALL, ids=str)
def test_twenty_steps_agree_with_gradient_descent_on_the_objective_itself(method: ByLoss) -> None:
    data, model = small()
    batches: list[Tensor] = []
    seen: list[Tensor] = []

    class Noting(type(method)):  # type: ignore[misc]
        def step(self, run: Any, state: None, batch: Any) -> Any:
            batches.append(batch.index.clone())
            taken = super().step(run, state, batch)
            seen.append(torch.cat([p.detach().flatten() for p in run.classifier.model.parameters()]))
            return taken

    recipe = Recipe(epochs=7, batch_size=20, lr=0.5, momentum=0.0, weight_decay=0.0, scheduler="constant",
                    precision="float64", device="cpu")  # fmt: skip
    fit(Noting(**vars(method)), data=data, model=model, recipe=recipe)
    twin = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    twin.load_state_dict(model.state_dict())
    twin = twin.double()
    x, y = data.train.batch(torch.arange(60)).x.double(), data.train.y
    for index, expected in zip(batches[:20], seen[:20], strict=True):
        losses = F.cross_entropy(twin(x[index]), y[index], reduction="none")
        grads = torch.autograd.grad(objective(method, losses), list(twin.parameters()))
        with torch.no_grad():
            for p, g in zip(twin.parameters(), grads, strict=True):
                p -= 0.5 * g
        found = torch.cat([p.detach().flatten() for p in twin.parameters()])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8 if "chi2" in str(method) else 1e-12)


@pytest.mark.parametrize("name", ["cvar", "doro", "doro[objective=chi2]", "trimmed"])
def test_a_run_costs_as_many_passes_as_erm(name: str) -> None:
    recipe = Recipe(epochs=2, batch_size=16, device="cpu")
    cost, erm = (fit(m, data=rare_region(), model="mlp", recipe=recipe).cost for m in (name, "erm"))
    assert cost.counts() == erm.counts()
    assert (cost.forward, cost.backward) == (16 * cost.updates, 16 * cost.updates)


def test_cvar_of_everything_trains_exactly_like_erm() -> None:
    recipe = Recipe(epochs=2, batch_size=16, device="cpu")
    a, b = (fit(m, data=rare_region(), model="mlp", recipe=recipe) for m in ("cvar[alpha=1.0]", "erm"))
    assert all(torch.equal(p, q) for p, q in zip(a.classifier.parameters(), b.classifier.parameters(), strict=True))


def noisy() -> Data:
    """Two far classes, one label in five flipped."""
    generator = torch.Generator().manual_seed(5)
    clean = torch.arange(400) % 2
    x = torch.randn(400, 4, generator=generator) + 3.0 * clean[:, None]
    flip = torch.rand(400, generator=generator) < 0.2
    train = TensorPool(x, torch.where(flip, 1 - clean, clean), clean_y=clean)
    return Data("noisy", train, None, {"test": TensorPool(x, clean)})


def test_trimming_drops_the_wrong_labels_and_cvar_seeks_them() -> None:
    recipe = Recipe(epochs=10, batch_size=40, lr=0.05, device="cpu")
    trimmed = fit("trimmed[share=0.2]", data=noisy(), model="mlp", recipe=recipe).history[-1]
    cvar = fit("cvar", data=noisy(), model="mlp", recipe=recipe).history[-1]
    assert trimmed["weight_flipped"] < 0.3 < 1.1 < trimmed["weight_clean"]
    assert cvar["weight_flipped"] > 3 * cvar["weight_clean"]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("cvar[alpha=0]", r"cvar.alpha must be a float in \(0, 1\]; got 0."),
        ("doro[epsilon=1]", r"doro.epsilon must be a float in \[0, 1\); got 1."),
        ("doro[objective=kl]", "doro.objective must be one of cvar, chi2; got 'kl'."),
        (
            "trimmed[share=20]",
            r"trimmed.share must be a float in \[0, 1\); got 20. It is a fraction, not a percentage.",
        ),
    ],
)
def test_settings_outside_their_limits_are_refused_in_one_line(spec: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^{sentence}$"):
        make_method(spec)
