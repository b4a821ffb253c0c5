"""Statistics of a study against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from pipeline.studies.report.statistics import (
    differences,
    estimate,
    falls,
    left_out,
    metrics_of,
    summarise,
    unit_values,
)

KEYS = ("method", "noise_level", "noise_kind", "seed", "dataset", "case", "slice")


def frame(*rows: tuple[object, ...], **columns: list[float]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=[*KEYS]).assign(**columns)


def cell(method: str, level: float, case: str, index: int = 0, seed: int = 0, kind: str = "affine"):
    return (method, level, kind, seed, "d", case, index)


def units(patients: int, seeds: int, spread: float = 1.0) -> pd.DataFrame:
    random = np.random.default_rng(1)
    rows = [
        ("d", f"p{patient}", seed, random.normal(10, spread)) for patient in range(patients) for seed in range(seeds)
    ]
    return pd.DataFrame(rows, columns=["dataset", "case", "seed", "psnr"])


def test_a_patient_counts_once_however_many_slices_it_has():
    results = frame(
        cell("reggan", 0, "a", 0), cell("reggan", 0, "a", 1), cell("reggan", 0, "b", 0), psnr=[20.0, 22.0, 31.0]
    )
    assert unit_values(results)["psnr"].tolist() == [21.0, 31.0]
    (row,) = summarise(unit_values(results)).to_dict("records")
    assert (row["mean"], row["patients"], row["seeds"], row["units"]) == (26.0, 2, 1, 2)


def test_differences_are_paired_by_patient_and_seed():
    results = frame(
        cell("pix2pix", 5, "a"),
        cell("pix2pix", 5, "b"),
        cell("reggan", 5, "a"),
        cell("reggan", 5, "b"),
        cell("reggan", 5, "c"),  # without a partner
        psnr=[20.0, 10.0, 23.0, 15.0, 99.0],
    )
    table = differences(unit_values(results), ["pix2pix", "cyclegan"])
    (row,) = table.to_dict("records")
    assert (row["method"], row["reference"], row["mean"], row["units"]) == ("reggan", "pix2pix", 4.0, 2)
    assert (row["low"], row["high"]) == (3.0, 5.0)


def test_fall_is_positive_where_a_method_gets_worse():
    rows = [cell("pix2pix", level, case) for level in (0, 3, 5) for case in "ab"]
    results = frame(
        *rows,
        cell("pix2pix", 2, "a", kind="nonaffine"),
        cell("late", 5, "a"),
        psnr=[27, 25, 26, 23, 20, 19, 24, 18],
        nmae=[0.05, 0.05, 0.06, 0.06, 0.08, 0.10, 0.07, 0.2],
    )
    table = falls(unit_values(results.astype({"psnr": float}))).set_index(["method", "noise_kind", "metric"])
    assert table.loc[("pix2pix", "affine", "psnr"), "mean"] == 6.5
    assert table.loc[("pix2pix", "affine", "nmae"), "mean"] == pytest.approx(0.04)
    assert set(table["noise_level"]) == {5.0, 2.0}
    assert table.loc[("pix2pix", "nonaffine", "psnr"), "mean"] == 3.0
    assert "late" not in table.index.get_level_values("method")


def test_fall_below_another_method_on_aligned_pairs():
    rows = [("a", 0.0, 30.0), ("a", 5.0, 26.0), ("b", 0.0, 29.0), ("b", 5.0, 28.5)]
    units = pd.DataFrame(
        [
            {"method": method, "noise_level": level, "noise_kind": "affine", "seed": seed, "dataset": "d"}
            | {"case": case, "psnr": psnr + seed}
            for method, level, psnr in rows
            for case in "xy"
            for seed in (0, 1)
        ]
    )
    assert dict(falls(units).set_index("method")["mean"]) == pytest.approx({"a": 4, "b": 0.5})
    assert dict(falls(units, "a").set_index("method")["mean"]) == pytest.approx({"a": 4, "b": 1.5})
    assert falls(units, "c").empty


def test_one_patient_and_one_seed_have_no_interval():
    result = estimate(units(1, 1), "psnr")
    assert math.isfinite(result.mean)
    assert math.isnan(result.low)
    assert math.isnan(result.high)


def test_folds_of_one_patient_each_are_drawn_among_each_other():
    folds = pd.concat([units(1, 1), units(1, 1).assign(dataset="other")])
    folds["psnr"] = [20.0, 22.0]
    result = estimate(folds, "psnr")
    assert (result.low, result.mean, result.high) == (20.0, 21.0, 22.0)
    assert (result.patients, result.seeds, result.units) == (2, 1, 2)


@pytest.mark.parametrize(("patients", "seeds"), [(1, 3), (4, 1), (4, 3)])
def test_interval_holds_the_mean_and_is_the_same_each_time(patients, seeds):
    result = estimate(units(patients, seeds), "psnr")
    assert result.low < result.mean < result.high
    assert estimate(units(patients, seeds).sample(frac=1, random_state=0), "psnr") == result


def test_interval_shrinks_with_more_patients():
    few, many = (estimate(units(count, 2), "psnr") for count in (4, 100))
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_interval_is_that_of_the_normal_approximation_for_many_patients():
    values = units(400, 1)
    result = estimate(values, "psnr")
    half = 1.96 * values["psnr"].std() / 20
    assert (result.high - result.low) / 2 == pytest.approx(half, rel=0.1)


def test_patients_are_drawn_within_their_data_set():
    values = pd.concat([units(30, 1, 0.01).assign(dataset=name) for name in ("easy", "hard")])
    values.loc[values["dataset"] == "hard", "psnr"] -= 8
    result = estimate(values, "psnr")
    assert result.high - result.low < 0.1  # drawn from all 60 it would be about 2


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    random = np.random.default_rng(3)
    hits = 0
    for _ in range(100):
        table = units(15, 4)
        of_patient, of_seed = random.normal(0, 1, 15), random.normal(0, 0.5, 4)
        noise = random.normal(0, 0.3, (15, 4))
        table["psnr"] = (5 + of_patient[:, None] + of_seed + noise).ravel()
        result = estimate(table, "psnr", resamples=300)
        hits += result.low <= 5 <= result.high
    assert 80 <= hits <= 100


def test_missing_units_are_left_out():
    values = units(3, 2)
    whole = values.drop(index=1)
    values.loc[1, "psnr"] = np.nan
    assert estimate(values, "psnr") == estimate(whole, "psnr")
    assert estimate(values, "psnr").units == 5
    assert estimate(values.assign(psnr=np.nan), "psnr").units == 0


def test_values_that_are_not_finite_are_left_out_and_noted():
    results = frame(
        *(cell("reggan", 0, "a", index) for index in range(3)),
        cell("pix2pix", 0, "a"),
        psnr=[20.0, math.inf, 24.0, 21.0],
        folded=[0.0, 0.0, math.nan, math.nan],
    )
    assert unit_values(results).set_index("method").loc["reggan", "psnr"] == 22.0
    assert left_out(results) == [
        "PSNR of reggan: 1 infinite and 0 undefined of 3 slices are left out of the means.",
        "Folded share of reggan: 0 infinite and 1 undefined of 3 slices are left out of the means.",
    ]
    # a metric that a method does not have is no gap, and has no row
    table = summarise(unit_values(results))
    assert table.loc[table["metric"] == "folded", "method"].tolist() == ["reggan"]


def test_metrics_come_in_their_order_and_unknown_ones_last():
    results = frame(cell("reggan", 0, "a"), new_score=[1.0], psnr=[20.0], nmae=[0.1], folded=[math.nan])
    assert [metric.name for metric in metrics_of(results)] == ["nmae", "psnr", "new_score"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda good: good.drop(columns="seed"), r"results lack the columns \['seed'\]"),
        (lambda good: good.assign(noise_kind="wild"), r"noise_kind must be one of .* got \['wild'\]"),
        (lambda good: good.assign(noise_level="5"), "noise_level must be a number"),
        (lambda good: good.assign(case=None), "rows without a value"),
        (lambda good: pd.concat([good, good]), "a slice twice: .*reggan"),
    ],
)
def test_what_is_no_long_form_is_refused(change, message):
    good = frame(cell("reggan", 0, "a"), psnr=[20.0])
    with pytest.raises(ValueError, match=message):
        unit_values(change(good))
