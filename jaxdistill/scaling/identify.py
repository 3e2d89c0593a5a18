"""Which parameters of a fitted law the runs determine, and which they leave open.

Two views are taken, and the wider one counts. The bootstrap shows what other runs of the same design would have given.
The curvature of the fit shows how far a parameter can move while the others make up for it; it sees flat directions
along which a bootstrap, started at the point fit, never moves and so reports an interval of no width (the published c1
is such a case).
"""

import dataclasses

import numpy as np

from jaxdistill.scaling.forms import Form
from jaxdistill.scaling.laws import Distillation, Supervised

NOISE_FLOOR = (
    5e-4  # losses of equal runs with other seeds differ by at least this much (Muennighoff et al. 2023: 0.03-0.07 %)
)
NORMAL_90 = 1.645  # half width of a normal 90 % interval, in standard deviations
ADDITIVE = {"c0": 2.0}  # a signed exponent: the widest interval that still says something
LARGEST_FACTOR = {"A": 10.0, "B": 10.0, "A'": 10.0, "B'": 10.0, "kappa": 10.0, "c1": 10.0, "a": 2.0}
OTHER_FACTOR = 3.0  # exponents and the irreducible loss, where a factor of ten is no knowledge

WHAT_WOULD_TELL = {
    "A": "more model sizes at equal tokens",
    "B": "more token counts at equal size",
    "E": "larger models trained longer, closer to the irreducible loss",
    "alpha": "a wider range of model sizes at equal tokens",
    "beta": "a wider range of token counts at equal size",
    "gamma": "a wider range of both sizes and tokens",
    "a": "wider IsoFLOP profiles",
    "A'": "students of more sizes, and teachers whose losses differ more,",
    "B'": "students of one size distilled on more token counts",
    "alpha'": "students of a wider range of sizes under one teacher",
    "beta'": "students of one size distilled on a wider range of tokens",
    "gamma'": "a wider range of both student sizes and tokens under one teacher",
    "c0": "teachers whose losses differ more",
    "kappa": "teachers both much stronger than the student would be alone and about as weak",
    "f1": "several teachers for one student, with L_T from well below to just above L~_S",
    "c1": "teachers of more than 1.2 times the loss that the student would reach alone",
}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a fitted law.

    Attributes:
      symbol: as in the papers; a prime marks the distillation law.
      value: the point fit.
      low, high: ends of the 90 % bootstrap interval; both the value itself where the parameter was held.
      held: not fitted, but fixed by the choice of law.
      identified: whether the runs determine it.
      reason: why not, and which runs would; empty if identified.
    """

    symbol: str
    value: float
    low: float
    high: float
    held: bool
    identified: bool
    reason: str = ""

    def __str__(self) -> str:
        if self.held:
            return f"{self.symbol} = {self.value:.4g} (held)"
        if not self.identified:
            return f"{self.symbol}: not identified by these runs ({self.reason})"
        return f"{self.symbol} = {self.value:.4g}  [{self.low:.4g}, {self.high:.4g}]"


def symbols(law: Supervised | Distillation) -> dict[str, float]:
    """The numbers people quote of a law: its parameters, and `a`, where compute-optimal N grows as C^a when F = 2N."""
    if isinstance(law, Supervised):
        a = law.beta / (law.alpha + law.beta)
        return {"A": law.A, "B": law.B, "E": law.E, "alpha": law.alpha, "beta": law.beta, "gamma": law.gamma, "a": a}
    own = {
        "A'": law.A,
        "B'": law.B,
        "B'/A'": law.B / law.A,
        "alpha'": law.alpha,
        "beta'": law.beta,
        "gamma'": law.gamma,
    }
    return own | {"c0": law.c0, "kappa": law.kappa, "f1": law.f1, "c1": law.c1}


def parameters(
    form: Form, theta_P: np.ndarray, draws_KP: np.ndarray, data, residual_R: np.ndarray
) -> tuple[Parameter, ...]:
    """Every parameter of a fitted law, with its interval and the verdict.

    Args:
      form: the law and its coordinates.
      theta_P: the point fit.
      draws_KP: the same, fitted to bootstrap resamples.
      data: columns of the runs.
      residual_R: log predicted - log measured loss at the point fit.
    """
    deviation = _deviations(form, theta_P, data, residual_R)
    draws = symbols(form.params(draws_KP))
    held = {name.removeprefix("log ") for name in form.held}
    unsaid = "B'" if "B'/A'" in held else "B'/A'"
    return tuple(
        Parameter(symbol, float(value), float(value), float(value), held=True, identified=True)
        if symbol in held
        else _fitted(symbol, float(value), np.percentile(draws[symbol], [5, 95]), deviation[symbol])
        for symbol, value in symbols(form.params(theta_P)).items()
        if symbol != unsaid
    )


def noise(residual_R: np.ndarray, free: int) -> float:
    """Standard deviation of a log loss about a law of `free` parameters, from its residuals, robustly."""
    spread = 1.4826 * np.median(np.abs(residual_R)) * np.sqrt(len(residual_R) / (len(residual_R) - free))
    return max(float(spread), NOISE_FLOOR)


def _deviations(form: Form, theta_P: np.ndarray, data, residual_R: np.ndarray) -> dict[str, float]:
    """Standard deviation of each symbol by linearised least squares: relative, or absolute in `ADDITIVE`."""
    step_QP = 1e-5 * np.eye(len(theta_P))[form.free_P]  # central differences of a smooth law: good to ten digits
    above_QP, below_QP = theta_P + step_QP, theta_P - step_QP
    slope_QR = (form.law(above_QP[:, None, :], data) - form.law(below_QP[:, None, :], data)) / 2e-5
    basis_QQ, singular_Q, _ = np.linalg.svd(slope_QR, full_matrices=False)
    root_QQ = basis_QQ / np.maximum(singular_Q, 1e-12) * noise(residual_R, len(slope_QR))  # root @ root.T: covariance
    above, below = symbols(form.params(above_QP)), symbols(form.params(below_QP))
    value = symbols(form.params(theta_P))
    with np.errstate(invalid="ignore"):  # a held c1 is infinite, and its deviation is not asked for
        deviation = {name: float(np.linalg.norm((above[name] - below[name]) / 2e-5 @ root_QQ)) for name in value}
    return {name: d if name in ADDITIVE else d / float(value[name]) for name, d in deviation.items()}


def _fitted(symbol: str, value: float, interval: np.ndarray, deviation: float) -> Parameter:
    low, high = map(float, interval)
    if symbol in ADDITIVE:
        limit, bootstrap, curvature = ADDITIVE[symbol], high - low, 2 * NORMAL_90 * deviation
        words = "is {} wide"
    else:
        limit = LARGEST_FACTOR.get(symbol, OTHER_FACTOR)
        bootstrap, curvature = high / max(low, 1e-300), np.exp(min(2 * NORMAL_90 * deviation, 600.0))
        words = "spans a factor of {}"
    if max(bootstrap, curvature) <= limit:
        return Parameter(symbol, value, low, high, held=False, identified=True)
    view = (
        "its 90 % bootstrap interval " if bootstrap > limit else "the fit is nearly flat along it: its 90 % interval "
    )
    width = bootstrap if bootstrap > limit else curvature
    how_wide = words.format(f"{width:,.0f}" if width >= 10 else f"{width:.2g}") if width < 1e4 else "is unbounded"
    reason = f"{view}{how_wide}; {WHAT_WOULD_TELL[symbol]} would tell"
    return Parameter(symbol, value, low, high, held=False, identified=False, reason=reason)
