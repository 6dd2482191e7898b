"""MAPLE: the pieces of its probabilities, the last step by double backward, both forms, and what they cost."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from molere import rng
from molere.data.pool import Data, TensorPool
from molere.errors import DataError
from molere.fullbatch import Trial
from molere.holdouts import Given
from molere.losses import invariance_penalty, risk_variance, worst_mean
from molere.methods import maple
from molere.methods.maple import MAPLE, mask, project, share_kept, temperature
from molere.steps import Risk
from molere.testing import check_method, rare_region
from oracles import Trainer
from stepping import PLAIN, RULE, assert_same_parameters, batch_norm, begun, turn, two_layers
from test_methods import BY_HAND, FIXTURE, Zero, train

RISKS = ["val", "cvar", "irmv1", "rex"]

# ---- the pieces, again, from their formulas


def projected(s: Tensor, size: float) -> Tensor:
    """The nearest point of {0 <= s <= 1, sum s <= size}, its shift by Brent's method."""

    def excess(v: float) -> float:
        return float((s - v).clamp(0, 1).sum()) - size

    v = 0.0 if excess(0.0) <= 0 else brentq(excess, 0.0, float(s.max()), xtol=1e-15, rtol=1e-14)
    return (s - v).clamp(0, 1)


def outer(risk: str, logits: Tensor, y: Tensor, group: Tensor) -> Tensor:
    """The four risks, by differentiating where the library has a formula."""
    losses = F.cross_entropy(logits, y, reduction="none")
    if risk == "val":
        return losses.mean()
    if risk == "cvar":
        return losses.sort(descending=True).values[: max(1, int(0.2 * len(y) + 1e-9))].mean()
    present = [g for g in range(int(group.max()) + 1) if bool((group == g).any())]
    if risk == "rex":
        means = torch.stack([losses[group == g].mean() for g in present])
        return ((means - means.mean()) ** 2).mean()
    penalty = torch.zeros((), dtype=logits.dtype)
    for g in present:
        one = torch.ones((), dtype=logits.dtype, requires_grad=True)
        there = group == g
        loss = F.cross_entropy(one * logits[there], y[there])
        penalty = penalty + torch.autograd.grad(loss, one, create_graph=True)[0] ** 2 / len(present)
    return penalty


def straight_through(s: Tensor, done: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(b as zeros and ones, b with the gradient of q)."""
    tau = 1 / (0.97 * (1 - done) + 0.03)
    u = torch.rand(2, len(s), dtype=torch.float64, generator=generator)
    s = s + (s.clamp(1e-6, 1 - 1e-6) - s).detach()
    q = torch.sigmoid(tau * (torch.log(s / (1 - s)) + torch.log(-torch.log(u[1])) - torch.log(-torch.log(u[0]))))
    b = (q.detach() >= 0.5).double()
    return b, b + q - q.detach()


# ---- projection, masks, schedules


def test_the_projection_shifts_until_the_sum_fits() -> None:
    s = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)
    torch.testing.assert_close(project(s, 1.2), torch.tensor([0.5, 0.4, 0.3], dtype=torch.float64))
    s = torch.tensor([0.2, 0.3], dtype=torch.float64)
    assert torch.equal(project(s, 1.0), s)


@given(st.lists(st.floats(-3, 4), min_size=1, max_size=50), st.floats(0.01, 1))
def test_the_projection_is_the_nearest_point(values: list[float], share: float) -> None:
    s = torch.tensor(values, dtype=torch.float64)
    found = project(s, share * len(s))
    torch.testing.assert_close(found, projected(s, share * len(s)), rtol=0, atol=1e-7)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert float(found.sum()) <= share * len(s) + 1e-7


@pytest.mark.parametrize("tau", [1.0, 20.0])
def test_a_mask_keeps_an_example_as_often_as_its_probability_says(tau: float) -> None:
    s = torch.full((20_000,), 0.3, dtype=torch.float64)
    b, _ = mask(s, tau, torch.Generator().manual_seed(0))
    assert float(b.double().mean()) == pytest.approx(0.3, abs=4 * (0.21 / 20_000) ** 0.5)


def test_the_slope_of_a_mask_is_that_of_its_sigmoid() -> None:
    s = torch.rand(50, dtype=torch.float64).requires_grad_()
    b, slope = mask(s.detach(), temperature(0.4), torch.Generator().manual_seed(3))
    hard, soft = straight_through(s, 0.4, torch.Generator().manual_seed(3))
    assert torch.equal(b.double(), hard)
    torch.testing.assert_close(slope, torch.autograd.grad(soft.sum(), s)[0])


@pytest.mark.parametrize("n", [1, 7])
def test_a_mask_keeps_something_even_where_all_probabilities_are_zero(n: int) -> None:
    b, slope = mask(torch.zeros(n, dtype=torch.float64), 1.0, torch.Generator().manual_seed(0))
    assert int(b.sum()) >= 1
    assert bool(slope.isfinite().all())


def test_the_schedules_begin_and_end_as_published() -> None:
    assert [temperature(0.0), temperature(1.0)] == pytest.approx([1.0, 1 / 0.03])
    found = [share_kept(p, 1.0, 0.3) for p in (0.0, 0.16, 0.38, 0.6, 1.0)]
    assert found == pytest.approx([1.0, 1.0, 0.3 + 0.7 / 8, 0.3, 0.3])


@pytest.mark.parametrize("present", [[0, 1, 2], [0, 2]])
def test_the_risks_are_those_of_their_definitions(present: list[int]) -> None:
    logits = torch.randn(30, 4, dtype=torch.float64)
    y, group = torch.arange(30) % 4, torch.tensor(present)[torch.arange(30) % len(present)]
    losses = F.cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(invariance_penalty(logits, y, group), outer("irmv1", logits, y, group).detach())
    torch.testing.assert_close(risk_variance(losses, group), outer("rex", logits, y, group))
    torch.testing.assert_close(worst_mean(losses, 0.2), outer("cvar", logits, y, group))


# ---- the last step


def test_the_gradient_for_masks_of_six_points_is_the_one_computed_by_hand() -> None:
    method = MAPLE(form="full", holdout=Given([4, 5]), delta=0.3)
    training = begun(method, data=FIXTURE, model=Zero, precision="float64", batch_size=4)
    state = training.state
    trial = Trial(
        run=training.run, objective=Risk(method.outer), on=state.trains, judge=state.part,
        steps=1, lr=0.5, momentum=0.9, stream=0,
    )  # fmt: skip
    found = trial(torch.ones(4, dtype=torch.bool))
    expected = 0.5 * torch.tensor([BY_HAND[i] for i in range(4)], dtype=torch.float64)  # all 1 at half the rate
    torch.testing.assert_close(found.by_weight, expected, rtol=0, atol=1e-6)
    assert found.by_weight.sign().tolist() == [-1, 1, -1, -1]
    assert found.risk == pytest.approx(1.019529, abs=2e-6)


def unrolled(training: Any, iterations: int) -> list[Tensor]:
    """S after each iteration of the published procedure, its last step by double backward, as plain code."""
    method, run = training.setup.method, training.run
    x, y, group = run.pool.x.double(), run.pool.y, run.pool.group
    on, part = training.state.trains, training.state.part
    model = run.classifier.model
    start = {k: p.detach().clone() for k, p in model.named_parameters()}
    s = torch.full((len(on),), method.start or method.share, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([s], lr=method.lr)
    found = list[Tensor]()

    def losses(theta: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(model, theta, (x[on],)), y[on], reduction="none")

    for k in range(iterations):
        total = torch.zeros_like(s)
        for j in range(method.masks):
            b, soft = straight_through(s, k / iterations, rng.generator(run.seed, "mask", k, j))
            theta = {n: p.clone().requires_grad_() for n, p in start.items()}
            inner = torch.optim.SGD(theta.values(), lr=method.inner_lr, momentum=method.inner_momentum)
            for _ in range(method.steps - 1):
                inner.zero_grad()
                ((b * losses(theta)).sum() / b.sum()).backward()
                inner.step()
            grads = torch.autograd.grad((soft * losses(theta)).sum() / b.sum(), list(theta.values()), create_graph=True)
            ahead = dict[str, Tensor]()
            for (n, p), g in zip(theta.items(), grads, strict=True):
                buffer = inner.state[p].get("momentum_buffer", torch.zeros_like(p))
                ahead[n] = p - method.inner_lr * (method.inner_momentum * buffer + g)
            logits = functional_call(model, ahead, (x[part],))
            risk = outer(method.risk, logits, y[part], group[part])
            total = total + torch.autograd.grad(risk, s)[0] / method.masks
        s.grad = total
        nn.utils.clip_grad_norm_([s], 3.0)
        optimizer.step()
        start_k, target = method.start or method.share, method.share
        left = 1 - min(max((k / iterations - 0.16) / 0.44, 0), 1)
        with torch.no_grad():
            s.copy_(projected(s, (target + (start_k - target) * left**3) * len(on)))
        found.append(s.detach().clone())
    return found


@pytest.fixture
def learnt(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """S after each of its updates."""
    seen, learn = list[Tensor](), MAPLE.learn

    def noted(self: MAPLE, state: Any, *arguments: Any) -> None:
        learn(self, state, *arguments)
        seen.append(state.s[state.trains].clone())

    monkeypatch.setattr(MAPLE, "learn", noted)
    return seen


@pytest.mark.parametrize("risk", RISKS)
@pytest.mark.parametrize("judge", ["part", "pool"])
def test_the_full_form_agrees_with_double_backward_for_twenty_iterations(
    risk: Any, judge: Any, learnt: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("molere.fullbatch.CHUNK", 40)  # several pieces
    method = MAPLE(form="full", risk=risk, judge=judge, iterations=20, steps=4, start=0.8, lr=0.1, keep=judge == "pool")
    training = begun(method, **PLAIN)
    expected = unrolled(training, 20)
    method.split(training.run, training.state)
    assert len(learnt) == 20
    for found, truth in zip(learnt, expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-9)
    assert float((learnt[-1] - learnt[0]).abs().max()) > 0.1


def test_the_gradients_of_several_masks_are_averaged(learnt: list[Tensor]) -> None:
    training = begun(MAPLE(form="full", iterations=5, steps=3, masks=3), **PLAIN)
    expected = unrolled(training, 5)
    training.setup.method.split(training.run, training.state)
    torch.testing.assert_close(learnt[-1], expected[-1], rtol=0, atol=1e-9)


# ---- the online form


@pytest.mark.parametrize("risk", RISKS)
def test_the_online_form_agrees_with_a_plain_restatement_for_twenty_steps(risk: Any) -> None:
    method = MAPLE(risk=risk, start=0.8, lr=0.1)
    training = begun(method, data=rare_region(192), batch_size=32, epochs=10, **PLAIN)
    run, state = training.run, training.state
    twin, s, on = Trainer(run.classifier.model, RULE), state.s.clone(), state.trains
    moments: dict[int, tuple[float, float, int]] = {}
    batches: list[Any] = []
    next_batch = run.val_batch
    run.val_batch = lambda: batches.append(next_batch()) or batches[-1]
    for step in range(20):
        done, draws = step / run.budget, run.rng("mask")
        taken = turn(training)
        at, x, y, val = taken.seen.batch.index, taken.seen.batch.x, taken.seen.batch.y, batches[-1]
        leaf = s[at].requires_grad_()
        b, soft = straight_through(leaf, done, draws)
        theta = {k: t.detach().requires_grad_() for k, t in twin.theta.items()}
        ahead, _ = twin.moved(theta, twin.losses(theta, x, y), len(b) * soft / b.sum(), graph=True)
        value = outer(risk, functional_call(twin.model, ahead, (val.x.double(),)), val.y, val.group)
        grad = torch.autograd.grad(value, leaf)[0]
        summed = dict[int, float]()  # an example may be drawn twice, at the end of a lap
        for i, g in zip(at.tolist(), grad.tolist(), strict=True):
            summed[i] = summed.get(i, 0.0) + g
        for i, g in summed.items():  # Adam, once for each visit
            g *= min(1.0, 3 / (sum(value**2 for value in summed.values()) ** 0.5 + 1e-6))
            m, v, t = moments.get(i, (0.0, 0.0, 0))
            m, v, t = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g, t + 1
            moments[i] = (m, v, t)
            s[i] -= method.lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-8)
        left = 1 - min(max((done - 0.16) / 0.44, 0), 1)
        s[on] = projected(s[on], (0.5 + 0.3 * left**3) * len(on))
        twin.step(x, y, len(b) * b / b.sum())
        assert taken.weights is not None
        torch.testing.assert_close(taken.weights, len(b) * b / b.sum(), rtol=0, atol=1e-10)
        torch.testing.assert_close(state.s, s, rtol=0, atol=1e-9)
        assert_same_parameters(training, twin)


def test_with_everything_kept_and_nothing_learned_the_online_form_is_erm_on_its_part() -> None:
    kept = train("maple[share=1.0,lr=1e-12]")
    part = train("erm-part")
    for (name, ours), theirs in zip(
        kept.classifier.state_dict().items(), part.classifier.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, msg=name)


# ---- what the forms do


def flipped(size: int = 240, seed: int = 0) -> TensorPool:
    """Two clusters; three in ten of the first five sixths carry the wrong label."""
    draws = torch.Generator().manual_seed(seed)
    clean = torch.arange(size) % 2
    x = torch.randn(size, 4, generator=draws) + 2.0 * (2 * clean - 1)[:, None] * torch.tensor([1.0, 0, 0, 0])
    wrong = (torch.rand(size, generator=draws) < 0.3) & (torch.arange(size) < size * 5 // 6)
    return TensorPool(x, torch.where(wrong, 1 - clean, clean), clean_y=clean)


NOISY = Data("flipped", flipped(), None, {"test": flipped(seed=1)})
CLEAN = Given(list(range(200, 240)))


@pytest.mark.parametrize(
    "method",
    [MAPLE(holdout=CLEAN, delta=0.2), MAPLE(form="full", holdout=CLEAN, delta=0.2, iterations=15, steps=30, lr=0.2)],
    ids=["online", "full"],
)
def test_with_a_clean_validation_part_wrong_labels_are_kept_less(method: MAPLE) -> None:
    result = train(method, data=NOISY, epochs=15, batch_size=20)
    s = torch.as_tensor(result.samples["keep_probability"])[:200]
    wrong = (NOISY.train.y != NOISY.train.clean_y)[:200]
    assert float(s[wrong].mean()) < 0.5 * float(s[~wrong].mean())


def test_the_full_form_trains_the_classifier_on_the_kept_examples_only() -> None:
    training = begun("maple[form=full,iterations=4,steps=5]", model=two_layers)
    for _ in range(3):
        turn(training)
    state, split = training.state, training.run.split
    assert torch.equal(split.train.sort().values, state.kept.sort().values)
    assert torch.equal(split.val, state.part.sort().values)
    result = train("maple[form=full,iterations=4,steps=5]")
    assert result.updates == 24
    used = ~np.isnan(result.samples["weight"])
    assert used.sum() == round(result.history[0]["kept"] * 87)
    assert (result.samples["weight"][used] == 1).all()


def test_the_best_mask_is_that_of_least_loss_among_those_of_the_final_size(monkeypatch: pytest.MonkeyPatch) -> None:
    losses, masks = iter([0.1, 0.5, 0.3, 0.4]), list[Tensor]()

    def drew(self: Trial, b: Tensor) -> Any:
        masks.append(b)
        return maple.Found(torch.zeros(len(b), dtype=torch.float64), 1.0, torch.full((9,), next(losses)))

    monkeypatch.setattr(Trial, "__call__", drew)
    training = begun(MAPLE(form="full", iterations=4, start=0.9, share=0.4))  # .4 is reached in the last iteration
    training.setup.method.split(training.run, training.state)
    assert torch.equal(training.state.kept, training.state.trains[masks[3]])
    losses = iter([0.3, 0.1, 0.2, 0.4])
    masks.clear()
    training = begun(MAPLE(form="full", iterations=4))
    training.setup.method.split(training.run, training.state)
    assert torch.equal(training.state.kept, training.state.trains[masks[1]])


def test_the_probabilities_never_exceed_their_budget() -> None:
    training = begun("maple[share=0.3,start=0.9,lr=0.5]")
    while training.run.updates < training.run.budget:
        turn(training)
        s, done = training.state.s, (training.run.updates - 1) / training.run.budget
        assert float(s.sum()) <= share_kept(done, 0.9, 0.3) * 87 + 1e-6
        assert not s[training.state.part].any()


# ---- cost, contract, needs


def test_the_online_form_costs_a_validation_pass_and_the_products_of_each_step() -> None:
    cost = train("maple", estimator="exact").cost
    assert (cost.forward, cost.backward) == (24 * 16, 24 * 16)
    assert (cost.virtual_forward, cost.virtual_backward) == (24 * (9 + 2 * 16), 24 * 9)
    assert train("maple[q=4]", estimator="exact").cost.virtual_backward == 6 * 9
    assert cost.scout_forward == cost.scout_backward == 0


@pytest.mark.parametrize("judge", ["part", "pool"])
def test_the_full_forms_trainings_are_charged_as_scouts(judge: str) -> None:
    all_kept = "form=full,iterations=1,steps=7,share=1.0"
    result = train(f"maple[{all_kept},judge={judge}]", estimator="exact")
    trains, judges = (87, 9) if judge == "part" else (96, 96)
    cost = result.cost
    assert result.history[0]["kept"] == 1.0
    assert cost.scout_forward == 7 * trains + 2 * judges + 2 * trains  # the training, the risk, the products
    assert cost.scout_backward == 7 * trains + judges
    assert cost.scout_seconds > 0
    assert (cost.forward, cost.backward) == (24 * 16, 24 * 16)
    assert cost.virtual_forward == cost.virtual_backward == 0


@pytest.mark.parametrize(
    "spec",
    [
        "maple[risk=rex,q=2]",
        "maple[risk=irmv1,judge=pool]",
        "maple[form=full,iterations=3,steps=3,masks=2,choose=last]",
        "maple@paper[iterations=3,steps=3]",
    ],
)
def test_every_variant_keeps_the_contract(spec: str) -> None:
    check_method(spec, model=batch_norm)


def test_a_resumed_run_does_not_search_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    method = "maple[form=full,iterations=2,steps=2]"
    whole = train(method)
    searches, search = list[int](), MAPLE.search
    monkeypatch.setattr(MAPLE, "search", lambda self, run, state: (searches.append(1), search(self, run, state))[1])
    from molere.recipe import Recipe
    from molere.run import fit
    from molere.watch import Interruption, Stopped

    recipe = Recipe(epochs=4, batch_size=16, device="cpu", save_every=5)
    made = MAPLE(form="full", iterations=2, steps=2)
    with pytest.raises(Interruption):
        fit(Stopped(made, 12), data=rare_region(), model="mlp", recipe=recipe, out=tmp_path, label="m")
    resumed = fit(Stopped(made, -1), data=rare_region(), model="mlp", recipe=recipe, out=tmp_path, label="m")
    assert searches == [1]
    for a, b in zip(resumed.classifier.state_dict().values(), whole.classifier.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert resumed.cost.scout_forward == whole.cost.scout_forward


@pytest.mark.parametrize("risk", ["irmv1", "rex"])
def test_risks_of_groups_need_groups(risk: str) -> None:
    with pytest.raises(DataError, match=rf"^risk={risk} compares groups and these data have none; pass group, or use"):
        train(f"maple[risk={risk}]", data=NOISY)
    pool = rare_region().train
    assert isinstance(pool, TensorPool)
    one = TensorPool(pool.x, pool.y, group=torch.zeros(96, dtype=torch.int64))
    with pytest.raises(DataError, match="all examples are in one; use risk=val or risk=cvar"):
        train(f"maple[risk={risk}]", data=dataclasses.replace(rare_region(), train=one))


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
@pytest.mark.parametrize("form", ["online", "full"])
def test_other_precisions_train(precision: str, form: str) -> None:
    result = train(f"maple[form={form},iterations=2,steps=2]", precision=precision, epochs=2)
    assert all(np.isfinite(row["train_loss"]) for row in result.history)
