"""The best steps of a chain by dynamic programming (Watson et al. 2021, arXiv 2106.03802)."""

import numpy as np


def elbo_costs(gammas, errors):
    """What going from one step to another in one call costs of the log-likelihood's lower bound, in nats a picture.

    KL(q(y_s | y_t, y_0) ‖ p(y_s | y_t)) for Gaussians of the posterior variance is ½ (SNR_s − SNR_t) E‖y_0 − ŷ₀(y_t)‖²,
    SNR = γ/(1 − γ) (Kingma et al. 2021, arXiv 2107.00630, eq. 14).

    Args:
        gammas: of the whole chain's steps (T,), the least noisy first.
        errors: E‖y_0 − ŷ₀‖² at each of them (T,), summed over the values of a picture.

    Returns: float64 (T, T), the cost from step t (row) to step s (column); infinite where s ≥ t.
    """
    snr = gammas / (1 - gammas)
    costs = 0.5 * errors[:, None] * (snr[None] - snr[:, None])
    return np.where(np.arange(len(gammas))[None] < np.arange(len(gammas))[:, None], costs, np.inf)


def best_steps(costs, counts):
    """The cheapest ways from the last step to the first one.

    Args:
        costs: (T, T), see `elbo_costs`; costs of a way add up.
        counts: how many steps a way consists of, both ends included: each from 2 to T.

    Returns: dict from each count to its steps, ascending, a list.
    """
    length = len(costs)
    # Cheapest cost from a step to the first one in so many calls, and the step that comes after it.
    cost, following = np.full(length, np.inf), []
    cost[0] = 0
    found = {}
    for count in range(2, max(counts) + 1):
        total = costs + cost[None]
        following.append(total.argmin(1))
        cost = total.min(1)
        if count in counts:
            way = [length - 1]
            for choice in reversed(following):
                way.append(int(choice[way[-1]]))
            found[count] = way[::-1]
    return found
