"""An oracle without any theory: one step as matrices, read off the rule's own function, and repeated one at a time."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class OneStep:
    """z' = transition z + gain xi + push, of all slots stacked."""

    transition: np.ndarray  # (m*d, m*d)
    gain: np.ndarray  # (m*d, d)
    push: np.ndarray  # (m*d,): what the optimum adds

    @classmethod
    def of(cls, optimizer, problem):
        """Step every unit vector of the state, and of the noise."""
        slots, d = len(optimizer.rule.slots), problem.dim
        optimizer = optimizer.replace(**{name: float(value) for name, value in optimizer.values.items()})

        def stepped(states, noise=0.0):
            return np.hstack(optimizer.step(np.split(states, slots, axis=1), lambda w: w @ problem.hessian + noise)).T

        nothing = np.zeros((d, slots * d))
        return cls(
            transition=stepped(np.eye(slots * d)),
            gain=stepped(nothing, np.eye(d)),
            push=stepped(nothing[:1], -problem.hessian @ problem.optimum)[:, 0],
        )


def rest(optimizer, weights):
    """All slots at rest at these weights, by the names that the shipped rules use."""
    copies = {"w", "w_prev", "ema"}
    return np.concatenate([weights if slot in copies else 0.0 * weights for slot in optimizer.rule.slots])


def propagate(optimizers, problem, covariance, mean):
    """Yield (covariance, mean) of all slots before the first step and after each, one optimizer a step."""
    known = {}
    yield covariance, mean
    for optimizer in optimizers:
        if optimizer not in known:
            known[optimizer] = OneStep.of(optimizer, problem)
        step = known[optimizer]
        covariance = step.transition @ covariance @ step.transition.T + step.gain @ problem.noise @ step.gain.T
        covariance = (covariance + covariance.T) / 2
        mean = step.transition @ mean + step.push
        yield covariance, mean


def block(joint, optimizer, slots):
    """The blocks of these slots, in their order, of a joint covariance or a stacked mean."""
    d = len(joint) // len(optimizer.rule.slots)
    rows = np.concatenate([np.arange(d) + d * optimizer.rule.slots.index(slot) for slot in slots])
    return joint[np.ix_(rows, rows)] if joint.ndim == 2 else joint[rows]
