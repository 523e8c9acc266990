"""The laws that can be fitted: what each is a function of, its constants, and how a fit of it starts.

C are training FLOPs, N parameters, D data (images or tokens), L the validation loss. A form knows mathematics alone;
:mod:`analysis.solvers` fits it, :mod:`analysis.laws` says how far the result can be trusted.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis import broken, powers
from sd3_jax.errors import UserError


class Form(NamedTuple):
    """One law. Constants are fitted as ``theta``: those in ``logs`` by their logarithms, as they are all positive."""

    name: str
    formula: str
    columns: tuple[str, ...]  # of the points, that it is a function of
    constants: dict[str, str]  # name: meaning
    logs: frozenset[str]
    exponents: tuple[str, ...]  # given as numbers only where they are resolved
    features: Callable[[pd.DataFrame], Float[np.ndarray, "k n"]]
    evaluate: Callable  # (theta, log features) -> log L and its derivatives by theta
    starts: Callable  # (log features, log L, weights, number) -> thetas, best first
    bounds: Callable  # (log features, log L) -> lowest and highest theta
    shift: Callable  # (theta, centre, scale) -> theta of features x exp(centre), losses x exp(scale)
    rough: bool = False  # whether it has many optima: a resample has several starts, the point estimate among them
    simpler: "Form | None" = None  # the same law without its last break
    derive: Callable[[dict], dict] = lambda _: {}  # what follows from the constants

    def linear(self, theta: Float[np.ndarray, "*r p"]) -> Float[np.ndarray, "*r p"]:
        """The constants themselves, from theta."""
        return np.where([name in self.logs for name in self.constants], np.exp(theta), theta)

    def theta(self, values: Float[np.ndarray, "*r p"]) -> Float[np.ndarray, "*r p"]:
        """Theta, from the constants themselves."""
        logs = np.array([name in self.logs for name in self.constants])
        return np.where(logs, np.log(np.where(logs, values, 1.0)), values)

    def named(self, values: Float[np.ndarray, "*r p"]) -> dict[str, Float[np.ndarray, "*r"]]:
        """Constants by name, and what follows from them."""
        named = dict(zip(self.constants, np.moveaxis(values, -1, 0), strict=True))
        return named | self.derive(named)

    def predict_log(
        self, theta: Float[np.ndarray, "*r p"], features: Float[np.ndarray, "k n"]
    ) -> Float[np.ndarray, "*r n"]:
        """log L at features."""
        rows = np.reshape(theta, (-1, theta.shape[-1]))
        return self.evaluate(rows, np.log(features))[0].reshape(*theta.shape[:-1], features.shape[1])


def form(law: str, breaks: int = 1) -> Form:
    """The form of a name; ``breaks`` of a broken power law. Raises UserError for another name."""
    if law == "bnsl":
        return _broken(breaks)
    if law not in FORMS:
        raise UserError(f"there is no law {law!r}; there are {', '.join((*FORMS, 'bnsl'))}")
    return FORMS[law]


def _columns(*names: str) -> Callable[[pd.DataFrame], Float[np.ndarray, "k n"]]:
    return lambda points: points[list(names)].to_numpy(float).T


def _powers(name: str, formula: str, floor: bool, tied: bool = False, **described: Any) -> Form:
    logs = frozenset({"E", "A", "B"} & described["constants"].keys())
    shape = {"floor": floor, "tied": tied}
    rules: dict[str, Any] = {
        key: partial(getattr(powers, key), **shape) for key in ("evaluate", "starts", "bounds", "shift")
    }
    return Form(name=name, formula=formula, logs=logs, **described, **rules)


def _broken(breaks: int) -> Form:
    if not 1 <= breaks <= 3:
        raise UserError(f"a broken power law of {breaks} breaks; valid: 1 to 3")
    constants = {"E": "irreducible loss", "A": "A / C^c0", "c0": "exponent before the first break"}
    for i in range(1, breaks + 1):
        constants |= {f"c{i}": f"change of it at break {i}", f"d{i}": f"C of break {i}", f"f{i}": f"width of break {i}"}
    rules: dict[str, Any] = {key: partial(getattr(broken, key), breaks=breaks) for key in ("starts", "bounds")}
    return Form(
        name="bnsl",
        formula="L = E + A C^-c0 prod_i (1 + (C / d_i)^(1 / f_i))^(-c_i f_i)",
        columns=("flops",),
        constants=constants,
        logs=frozenset({"E", "A"} | {name for name in constants if name[0] in "df"}),
        exponents=(),
        features=_columns("flops"),
        evaluate=broken.evaluate,
        shift=broken.shift,
        simpler=_broken(breaks - 1) if breaks > 1 else SATURATING,
        rough=True,
        **rules,
    )


def _allocation(named: dict) -> dict:
    """N* ~ C^a and D* ~ C^b at the least loss for C = k N D."""
    total = named["alpha"] + named["beta"]
    return {"a": named["beta"] / total, "b": named["alpha"] / total}


def _tied_allocation(named: dict) -> dict:
    """The exponents of N and D where C = k N D, and the allocation that follows."""
    exponents = {"alpha": 2 * named["h"], "beta": 2 * named["h"]}
    return exponents | _allocation(exponents)


def _over_training(points: pd.DataFrame) -> Float[np.ndarray, "2 n"]:
    """C / M and C M, with M = D / N."""
    flops, ratio = points["flops"].to_numpy(float), (points["images"] / points["params"]).to_numpy(float)
    return np.stack([flops / ratio, flops * ratio])


CHINCHILLA = _powers(
    "chinchilla",
    "L = E + A / N^alpha + B / D^beta",
    floor=True,
    columns=("params", "images"),
    constants={
        "E": "irreducible loss",
        "A": "A / N^alpha",
        "B": "B / D^beta",
        "alpha": "exponent of parameters N",
        "beta": "exponent of images D",
    },
    exponents=("alpha", "beta", "a", "b"),
    features=_columns("params", "images"),
    derive=_allocation,
)
SATURATING = _powers(
    "saturating",
    "L = E + A / C^a",
    floor=True,
    columns=("flops",),
    constants={"E": "irreducible loss", "A": "A / C^a", "a": "exponent of FLOPs C"},
    exponents=("a",),
    features=_columns("flops"),
)
POWER = _powers(
    "power",
    "L = A / C^a",
    floor=False,
    columns=("flops",),
    constants={"A": "A / C^a", "a": "exponent of FLOPs C"},
    exponents=("a",),
    features=_columns("flops"),
)
EQUAL_EXPONENT = _powers(
    "equal-exponent",
    "L = E + (A M^h + B M^-h) / C^h",
    floor=True,
    tied=True,
    columns=("flops", "params", "images"),
    constants={"E": "irreducible loss", "A": "A M^h, M = D / N", "B": "B M^-h", "h": "exponent of FLOPs C"},
    exponents=("h",),
    features=_over_training,
    derive=_tied_allocation,
)
FORMS = {one.name: one for one in (POWER, SATURATING, CHINCHILLA, EQUAL_EXPONENT)}
