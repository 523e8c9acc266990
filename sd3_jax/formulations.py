"""The paper's names of formulations, and what each of its 61 is (sections 3 and 5.1, Tables 1 and 2).

A name says the path, the prediction and the density of t: ``rf/lognorm(0.00, 1.00)`` draws t of a rectified flow
logit-normally with m = 0 and s = 1, ``eps/linear`` predicts the noise on LDM's schedule, ``edm(-1.20, 1.20)`` is EDM
with P_m and P_s. Numbers are written with two decimals, with more where those would be another number's.
"""

import dataclasses
import functools
import math
import re
from typing import Any, Literal

from sd3_jax.config import FlowConfig
from sd3_jax.errors import UserError

SHORT = {"cosine": "cos", "linear": "linear", "rf": "rf"}  # of paths, in names
MODES = sorted([*(-1 + 2.75 * k / 6 for k in range(7)), 1.0])  # s of mode; s = 0 is uniform and called rf
MEANS, SCALES = (-1.0, -0.5, 0.0, 0.5, 1.0), (0.2, 0.6, 1.0, 1.4, 1.8, 2.2)  # m, s of lognorm
EDM_MEANS, EDM_SCALES = (-1.2, -0.6, 0.0, 0.6, 1.2), (0.6, 1.2, 1.8)  # P_m, P_s
_NUMBER = r"\s*([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)\s*"
_OTHERS = "valid: rf/lognorm(m, s), rf/mode(s), rf/cosmap, rf, {eps,v}/{linear,cos}, edm(P_m, P_s), edm/rf and edm/cos"


def name_of(flow: FlowConfig) -> str:
    """The paper's name of a formulation; where it has none, its parts. The shift is no part of it.

    >>> name_of(FlowConfig()), name_of(FlowConfig(path="cosine", prediction="v", density="uniform"))
    ('rf/lognorm(0.00, 1.00)', 'v/cos')
    >>> name_of(FlowConfig(path="linear", prediction="v"))
    'v/linear/lognorm(0.00, 1.00)'
    """
    density = {
        "uniform": "",
        "cosmap": "/cosmap",
        "mode": f"/mode({_two(flow.mode_scale)})",
        "logit-normal": f"/lognorm({_two(flow.mean)}, {_two(flow.scale)})",
    }[flow.density]
    weight = "" if flow.weight in ("own", flow.prediction) else f"/weight {flow.weight}"
    edm = f"edm({_two(flow.log_sigma_mean)}, {_two(flow.log_sigma_scale)})"
    scale = f"/data scale {flow.data_scale:g}" if flow.prediction == "F" and flow.data_scale != 0.5 else ""
    if flow.prediction == "F":
        name = edm if flow.path == "edm" else f"edm/{SHORT[flow.path]}"
    elif flow.prediction == "velocity" and flow.path == "rf":
        name = "rf"
    else:
        name = f"{flow.prediction}/{edm if flow.path == 'edm' else SHORT[flow.path]}"
    return name + density + scale + weight


def parse(name: str) -> dict[str, Any]:
    """The fields of FlowConfig (all but the shift) that a name stands for.

    A name of the 61 is that member, whose numbers may have more than two decimals. diffusers' names are taken where
    they mean the same. Raises UserError for any other name, and for numbers out of range.

    >>> parse("rf/mode(1.29)")["mode_scale"]
    1.2916666666666665
    """
    name = name.strip().replace("\N{MINUS SIGN}", "-")
    known = _members().get(re.sub(r"\s+", "", name))
    return _fields(known or _flow(name))


def members() -> tuple[str, ...]:
    """The names of the paper's 61 formulations."""
    return tuple(name_of(flow) for flow in _members().values())


def describe(flow: FlowConfig) -> dict[str, str]:
    """A formulation in words: its path, what is predicted, the weight of the noise's error, and the density of t.

    The weight is w_t of the paper's loss -(1/2) E w_t lambda'_t ||eps_hat - eps||^2 over uniform t (equation 7), with
    pi(t) the density that t is drawn from instead, and lambda' the log-SNR's derivative.

    >>> describe(FlowConfig(density="uniform"))["weight"]
    't / (1 - t)'
    """
    noise = {
        "rf": "t / (1 - t)",
        "cosine": "tan(pi t / 2)",
        "edm": f"exp({flow.log_sigma_mean:g} + {flow.log_sigma_scale:g} Phi^-1(t))",
        "linear": "(b / a of LDM's 1,000 betas)",
    }[flow.path]
    path = {
        "rf": "(1 - t) x0 + t eps",
        "cosine": "cos(pi t / 2) x0 + sin(pi t / 2) eps",
        "linear": "a x0 + b eps, a^2 = prod (1 - beta), LDM's 1,000 betas",
    }.get(flow.path if flow.prediction != "F" else "F", f"x0 + {noise} eps")
    predicted = {"velocity": "eps - x0" if flow.path == "rf" else "dz/dt", "eps": "eps", "v": "a eps - b x0"}
    of_eps = "-2 / lambda'"
    weights = {
        "eps": {"cosine": "sech(lambda / 2) / pi"}.get(flow.path, of_eps),
        "v": {"cosine": "2 exp(-lambda / 2) / pi", "rf": f"{of_eps} (1 + exp(-lambda))"}.get(
            flow.path, f"{of_eps} / a^2"
        ),
        "velocity": {"rf": "t / (1 - t)"}.get(flow.path, "-(1/2) lambda' b^2"),
        "F": f"{of_eps} (1 + {flow.data_scale**-2:g} exp(-lambda))",
    }
    weight = weights[flow.prediction if flow.weight == "own" else flow.weight]
    drawn = {
        "uniform": "uniform",
        "logit-normal": f"logit-normal, m = {flow.mean:g}, s = {flow.scale:g}",
        "mode": f"mode, s = {flow.mode_scale:.6g}",
        "cosmap": "CosMap",
    }[flow.density]
    return {
        "name": name_of(flow),
        "z": path,
        "predicts": predicted.get(flow.prediction, f"F, sigma_data = {flow.data_scale:g}"),
        "weight": weight if flow.density == "uniform" else f"pi(t) {weight}",
        "t": drawn,
    }


def _flow(name: str) -> FlowConfig:
    """The formulation of a name that is not one of the 61."""
    plain: dict[str, Any] = {"density": "uniform"}
    if found := re.fullmatch(rf"rf/lognorm\({_NUMBER},{_NUMBER}\)", name):
        mean, scale = _numbers(found, name)
        return FlowConfig(
            mean=_inside(name, "m", mean, FlowConfig, "mean"), scale=_inside(name, "s", scale, FlowConfig, "scale")
        )
    if found := re.fullmatch(rf"rf/mode\({_NUMBER}\)", name):
        (scale,) = _numbers(found, name)
        return FlowConfig(density="mode", mode_scale=_inside(name, "s", scale, FlowConfig, "mode_scale"))
    if found := re.fullmatch(rf"edm\({_NUMBER},{_NUMBER}\)", name):
        mean, scale = _numbers(found, name)
        return FlowConfig(
            path="edm",
            prediction="F",
            log_sigma_mean=_inside(name, "P_m", mean, FlowConfig, "log_sigma_mean"),
            log_sigma_scale=_inside(name, "P_s", scale, FlowConfig, "log_sigma_scale"),
            **plain,
        )
    if name in ("none", "mode", "logit_normal"):  # diffusers' weighting_scheme: t is mirrored there, these are even
        theirs: dict[str, dict[str, Any]] = {"none": plain, "mode": {"density": "mode"}, "logit_normal": {}}
        return FlowConfig(**theirs[name])
    if found := re.fullmatch(rf"logit_normal\({_NUMBER},{_NUMBER}\)", name):
        mean, scale = _numbers(found, name)
        if mean:
            raise UserError(
                f"flow: {name!r}: diffusers mirrors t, so its logit_mean m is our mean -m: rf/lognorm({-mean:g}, "
                f"{scale:g}), if that is what is meant"
            )
        return _flow(f"rf/lognorm({mean}, {scale})")
    if name == "cosmap":
        raise UserError(
            "flow: 'cosmap' is a weight of uniformly drawn t in diffusers, not a density of t; rf/cosmap has the same "
            "expected loss, with t drawn"
        )
    if name == "sigma_sqrt":
        raise UserError("flow: 'sigma_sqrt' is diffusers' weight sigma^-2 of uniformly drawn t, not in the paper")
    raise UserError(f"flow: {name!r} names no formulation; {_OTHERS}")


@functools.cache
def _members() -> dict[str, FlowConfig]:
    """The 61, by their names without blanks."""
    uniform: dict[str, Any] = {"density": "uniform"}
    paths: tuple[Literal["linear", "cosine"], ...] = ("linear", "cosine")
    predictions: tuple[Literal["eps", "v"], ...] = ("eps", "v")
    flows = [FlowConfig(path=path, prediction=one, **uniform) for path in paths for one in predictions]
    flows += [FlowConfig(**uniform)]
    flows += [FlowConfig(density="mode", mode_scale=scale) for scale in MODES]
    flows += [FlowConfig(mean=mean, scale=scale) for mean in MEANS for scale in SCALES]
    flows += [FlowConfig(density="cosmap")]
    flows += [
        FlowConfig(path="edm", prediction="F", log_sigma_mean=mean, log_sigma_scale=scale, **uniform)
        for mean in EDM_MEANS
        for scale in EDM_SCALES
    ]
    flows += [FlowConfig(path="rf", prediction="F", **uniform), FlowConfig(path="cosine", prediction="F", **uniform)]
    return {name_of(flow).replace(" ", ""): flow for flow in flows}


def _fields(flow: FlowConfig) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(flow).items() if key != "shift"}


def _numbers(found: re.Match, name: str) -> list[float]:
    try:
        return [float(text) for text in found.groups()]
    except ValueError:
        raise UserError(f"flow: {name!r} has a number that is none; {_OTHERS}") from None


def _inside(name: str, letter: str, value: float, kind: type, key: str) -> float:
    """``value`` where the field has it in range. Raises UserError that says the range."""
    spec = next(spec for spec in dataclasses.fields(kind) if spec.name == key)
    low, high = spec.metadata["low"], spec.metadata["high"]
    if not (low <= value <= high and math.isfinite(value)):
        raise UserError(f"flow: {name!r}: {letter} = {value:g} is out of range; valid: {low:g} to {high:g}")
    return value


def _two(value: float) -> str:
    """Two decimals, no negative zero; more where those are of another number, and it is no member's."""
    value += 0.0
    text = f"{value:.2f}"
    return text if value in MODES or abs(float(text) - value) < 1e-9 else f"{value:.6g}"
