"""Every equation by name: pure functions of tensors, each with its formula, shapes, ranges and source.

    from molere.equations import probabilistic_margin, split_loss, weight_gradient

Nothing is computed here: the functions live in the files named beside them, and their docstrings are the reference.
Equation numbers are those of Jain, Suggala and Shenoy, "Improving Generalization via Meta-Learning on Hard Samples"
(CVPR 2024), unless the file says otherwise.
"""

from molere.data.corrupt import long_tail, rare_group, tail_sizes, turned
from molere.data.noise import (
    flip_probabilities,
    flip_transition,
    instance_noise,
    noisy_probabilities,
    sibling_transition,
    transition_noise,
    uniform_noise,
    uniform_transition,
)
from molere.evaluate import calibration_error
from molere.hardness import hardest_share, neighbour_mean, rank01, smr_score, static_weights
from molere.losses import (
    clip_factors,
    cross_entropy,
    difficulty_aware,
    group_means,
    invariance_penalty,
    label_penalty,
    risk_variance,
    share_penalty,
    soft_validation_objective,
    split_loss,
    trimmed_mean,
    worst_mean,
)
from molere.metagrad import gradient, weight_gradient
from molere.methods.bilaw import ascended, class_margins, in_order
from molere.methods.dro import least_eta
from molere.methods.gdw import difference, zero_sum
from molere.methods.l2r import agreeing, last_layer_products, residuals
from molere.methods.maple import mask, project, share_kept, temperature
from molere.methods.rho_loss import largest
from molere.methods.stablenet import dependence, dependence_gradient, fourier
from molere.networks import bounded, is_collapsed, mean_one, sigmoid_weights
from molere.split import balanced_part, churn, generate_split, lowest, part_size, probabilistic_margin, random_part
from molere.steps import effective_sample_size

MARGINS_AND_SPLITS = (
    probabilistic_margin, class_margins, in_order, lowest, part_size, random_part, balanced_part, generate_split, churn,
)  # fmt: skip
"""molere.split, molere.methods.bilaw: eq. 7, and the rules that choose which part validates (line 4 of Algorithm 1)."""

SPLITTER = (split_loss, soft_validation_objective, share_penalty, label_penalty)
"""molere.losses: L_split (eq. 5), the soft validation objective J, Omega_1 and Omega_2."""

LOSSES = (
    cross_entropy, clip_factors, trimmed_mean, worst_mean, difficulty_aware, invariance_penalty, risk_variance,
    group_means, least_eta,
)  # fmt: skip
"""molere.losses, molere.methods.dro: losses of examples, and objectives of a batch of them."""

META_GRADIENTS = (weight_gradient, gradient, last_layer_products, residuals)
"""molere.metagrad, molere.methods.l2r: d L_val(theta') / d w_i (eq. 13), and its form for a last layer."""

WEIGHTS = (
    mean_one, bounded, sigmoid_weights, is_collapsed, static_weights, agreeing, effective_sample_size, difference,
    zero_sum,
)  # fmt: skip
"""molere.networks, molere.hardness, molere.steps, methods l2r and gdw: from scores and gradients to weights."""

HARDNESS = (rank01, neighbour_mean, smr_score, hardest_share)
"""molere.hardness: smoothed early hardness, of the method `molere`."""

SELECTION = (mask, project, share_kept, temperature, largest, fourier, dependence, dependence_gradient, ascended)
"""methods maple, rho_loss, stablenet and bilaw: which examples are kept, independent features, attacked inputs."""

NOISE_AND_SHIFT = (
    uniform_noise, transition_noise, instance_noise, uniform_transition, flip_transition, sibling_transition,
    flip_probabilities, noisy_probabilities, long_tail, tail_sizes, rare_group, turned,
)  # fmt: skip
"""molere.data.noise, molere.data.corrupt: wrong labels, long tails, rare groups, as functions of labels and a seed."""

MEASURES = (calibration_error,)
"""molere.evaluate."""

SECTIONS = {
    "margins and splits": MARGINS_AND_SPLITS,
    "the splitter": SPLITTER,
    "losses": LOSSES,
    "meta-gradients": META_GRADIENTS,
    "weights": WEIGHTS,
    "hardness": HARDNESS,
    "selection": SELECTION,
    "noise and shift": NOISE_AND_SHIFT,
    "measures": MEASURES,
}
"""All of them by subject."""
