"""Anyone's CSV, through the command line: a right answer or one clear line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import law_loss
from test_cli import assert_one_line, sd3  # noqa: F401
from test_isoflop import BUDGETS, SYMMETRIC, valleys

from analysis import tables

TRUTH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}


def table(noise=0.0, seed=0, runs=64):
    rng = np.random.default_rng(seed)
    side = int(runs**0.5)
    params, data = (g.ravel() for g in np.meshgrid(np.geomspace(5e7, 1e10, side), np.geomspace(1e9, 5e11, side)))
    loss = law_loss(TRUTH, params, data) * np.exp(noise * rng.standard_normal(len(params)))
    return pd.DataFrame({"params": params, "data": data, "loss": loss})


def test_the_json_of_a_fit_is_what_was_agreed(sd3):  # noqa: F811
    table(0.003).to_csv("t.csv", index=False)
    code, out, err = sd3("fit", "t.csv", "--bootstrap", "100", "--hold-out-largest", "4", "--json", "-")
    assert (code, err) == (0, "note: no flops: C = 6 N D.\n")
    found = json.loads(out)
    keys = ["law", "constants", "intervals", "derived", "objective", "n", "residual_rms", "flags", "hold_out"]
    assert list(found) == keys
    assert found["law"] == "chinchilla"
    assert list(found["constants"]) == ["E", "A", "B", "alpha", "beta"]
    assert list(found["derived"]) == ["a", "b"]
    assert list(found["intervals"]) == ["E", "A", "B", "alpha", "beta", "a", "b"]
    for name, value in TRUTH.items():
        low, high = found["intervals"][name]["ci95"]
        assert low < found["intervals"][name]["ci80"][0] < found["intervals"][name]["ci80"][1] < high
        assert abs(found["constants"][name] - value) < 4 * found["intervals"][name]["se"]
    assert found["n"] == 64
    assert found["hold_out"]["points"] == 4
    assert abs(found["hold_out"]["error"]) < 0.01


@pytest.mark.parametrize("law", ["power", "saturating", "chinchilla", "equal-exponent", "bnsl"])
def test_every_law_can_be_asked_for(sd3, law):  # noqa: F811
    table().to_csv("t.csv", index=False)
    code, out, _ = sd3("fit", "t.csv", "--law", law, "--bootstrap", "0", "--json", "out.json")
    assert code == 0
    assert out.startswith("L = ")
    found = json.loads(Path("out.json").read_text())
    assert (found["law"], found["intervals"], found["hold_out"]) == (law, {}, None)


def test_headers_groups_and_worst_points(sd3):  # noqa: F811
    runs = table(0.002).assign(family=[f"f{i // 4}" for i in range(64)])
    runs.loc[[3, 17], "loss"] = 9.0
    runs.rename(columns={"params": "N", "data": "D", "loss": "val loss"}).to_csv("t.csv", index=False)
    headers = ("--columns", "params=N,data=D,loss=val loss")
    code, out, _ = sd3("fit", "t.csv", *headers, "--drop-worst", "2", "--group", "family", "--bootstrap", "50")
    assert code == 0
    assert "62 points of 16 groups (family)" in out
    assert "bootstrap over 16 groups (family), 50 resamples" in out
    assert "with the 2 worst" in out
    assert "three approaches" in out


def test_the_json_of_valleys_is_what_was_agreed(sd3):  # noqa: F811
    valleys(SYMMETRIC).rename(columns={"images": "data"})[["flops", "params", "data", "loss"]].to_csv("t.csv")
    code, out, _ = sd3("isoflop", "t.csv", "--json", "-")
    assert code == 0
    found = json.loads(out)
    exponents = ["exponent_params", "coefficient_params", "exponent_data", "coefficient_data"]
    assert list(found) == [*exponents, "budgets", "intervals", "flags"]
    assert found["exponent_params"] == pytest.approx(0.5, abs=1e-3)
    assert [one["flops"] for one in found["budgets"]] == pytest.approx(BUDGETS)
    assert list(found["budgets"][0]) == ["flops", "params", "data", "loss", "interior"]
    assert all(one["interior"] for one in found["budgets"])
    assert list(found["intervals"]["exponent_data"]) == ["se", "ci80", "ci95"]


BAD = {
    "headers": ("N,D,L\n1,2,3\n", ["needs a column loss", "there are N, D, L", "--columns params=N"]),
    "negative": ("flops,loss\n1e18,3\n1e19,-2.5\n", ["line 3: loss is -2.5; it must be a positive number"]),
    "zero": ("flops,loss\n0,3\n1e19,2.5\n", ["line 2: flops is 0; it must be a positive number"]),
    "text": ("flops,loss\n1e18,3\n1e19,oops\n", ["line 3: loss is oops"]),
    "empty": ("", ["t.csv: is empty"]),
    "header alone": ("params,data,loss\n", ["holds no row"]),
    "all nan": ("params,data,loss\n1,2,nan\n1,,2\n", ["holds no row"]),
    "one point": ("params,data,loss\n1e8,1e9,3\n", ["at least 3 sizes; there are 1"]),
    "long rows": ("params,data,loss\n1,2,3,4,5\n1,2,3,4,5\n", ["is no CSV"]),
    "binary": (b"\xff\xfe\x00\x01\x80", ["is no CSV"]),
    "flops alone": ("flops,loss\n1e18,3\n1e19,2.5\n", ["needs columns params, data (images); there are flops, loss"]),
    "absurd": ("params,data,loss\n1,2,1e300\n2,3,1e-300\n", ["within a factor of 1e+60"]),
}


@pytest.mark.parametrize("text, words", BAD.values(), ids=BAD)
def test_a_bad_table_is_one_line(sd3, tmp_path, text, words):  # noqa: F811
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    code, out, err = sd3("fit", "t.csv")
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert_one_line(code, out, "".join(f"{line}\n" for line in err.splitlines() if line not in notes), *words)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--columns", "size=N"], ["--columns: 'size=N' is not NAME=HEADER"]),
        (["--columns", "params=N"], ["has no column N; there are params, data, loss"]),
        (["--group", "seed"], ["has no column seed"]),
        (["--law", "cubic"], ["there is no law 'cubic'"]),
        (["--law", "bnsl", "--breaks", "9"], ["9 breaks; valid: 1 to 3"]),
        (["--drop-worst", "64"], ["64 of 64 points cannot be dropped"]),
        (["--hold-out-largest", "63"], ["there are 1"]),
    ],
)
def test_bad_options_are_one_line(sd3, arguments, words):  # noqa: F811
    table().assign(flops=lambda t: 6 * t["params"] * t["data"]).to_csv("t.csv", index=False)
    assert_one_line(*sd3("fit", "t.csv", *arguments), *words)


def test_a_valley_needs_sizes(sd3, tmp_path):  # noqa: F811
    (tmp_path / "t.csv").write_text("flops,loss\n1e18,3\n1e19,2.5\n")
    assert_one_line(*sd3("isoflop", "t.csv"), "has no column params")
    (tmp_path / "t.csv").write_text("flops,params,loss\n1e18,1e8,3\n")
    assert "no FLOP budget" in sd3("isoflop", "t.csv")[2]


def test_holes_and_repetitions_are_counted(tmp_path):
    clean = table(0.002)
    spoilt = pd.concat([clean, clean.iloc[:5], clean.iloc[:2].assign(loss=np.nan), clean.iloc[:1].assign(loss=np.inf)])
    spoilt.to_csv(tmp_path / "t.csv", index=False)
    points = tables.read_points(tmp_path / "t.csv")
    pd.testing.assert_series_equal(points["loss"], clean["loss"])
    assert points.attrs["notes"] == [
        "3 rows with an empty or infinite params or data or loss, left out.",
        "5 rows that another repeats exactly, counted once.",
        "no flops: C = 6 N D.",
    ]


def test_the_third_quantity_follows_from_two(tmp_path):
    whole = table().assign(flops=lambda t: 6 * t["params"] * t["data"])
    for name, column in (("flops", "flops"), ("params", "params"), ("data", "images")):
        whole.drop(columns=name).to_csv(tmp_path / "t.csv", index=False)
        np.testing.assert_allclose(tables.read_points(tmp_path / "t.csv")[column], whole[name], rtol=1e-12)


def test_of_very_many_rows_some_are_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MOST_ROWS", 100)
    whole = table(0.002, runs=900).sample(frac=1, random_state=0)
    whole.to_csv(tmp_path / "t.csv", index=False)
    points = tables.read_points(tmp_path / "t.csv")
    assert len(points) == 100
    assert "of 900 rows 100 are taken, evenly in the order of compute." in points.attrs["notes"]
    compute = 6 * whole["params"] * whole["data"]
    assert (points["flops"].min(), points["flops"].max()) == pytest.approx((compute.min(), compute.max()))
    again = tables.read_points(tmp_path / "t.csv")
    pd.testing.assert_frame_equal(points, again)


@pytest.mark.slow
def test_a_million_rows_are_fitted_in_bounded_time(sd3):  # noqa: F811
    table(0.005, runs=10**6).to_csv("t.csv", index=False)
    code, out, _ = sd3("fit", "t.csv", "--json", "-")
    found = json.loads(out)
    assert (code, found["n"]) == (0, 2000)
    for name, value in TRUTH.items():
        assert abs(found["constants"][name] - value) < 4 * found["intervals"][name]["se"]
