"""The paper's tables: whole, and in agreement with themselves."""

import numpy as np
import pytest

from analysis import published
from sd3_jax import flops
from sd3_jax.config import ModelConfig

TABLES = [name for name in vars(published) if name.startswith("TABLE_")]
ROWS = {"TABLE_1": 16, "TABLE_2": 10, "TABLE_3": 3, "TABLE_4": 2, "TABLE_5": 15, "TABLE_6": 3}


def test_every_number_has_a_source_whose_confidence_is_explained():
    data = {name for name in vars(published) if name.isupper() and name[0] != "_"} - {"SOURCES", "CONFIDENCE"}
    assert data == {*published.SOURCES, "ALLOCATION"}
    sources = [*published.SOURCES.values(), *(row.source for row in published.ALLOCATION.values())]
    assert {source.confidence for source in sources} == set(published.CONFIDENCE)


def test_exponents_lie_in_their_intervals_to_the_last_digit():
    for name, row in published.ALLOCATION.items():
        assert 0 < row.a < 1, name
        if row.interval:
            assert row.interval[0] - 0.006 <= row.a <= row.interval[1] + 0.006, name
    besiroglu = published.ALLOCATION["Besiroglu 2024, parametric"]
    assert besiroglu.a == pytest.approx(0.5126, abs=1e-4)


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_whole_and_cannot_be_changed(name):
    table = getattr(published, name)
    assert len(table) == ROWS[name]
    assert len({tuple(row) for row in table.values()}) == len(table)  # no row was copied over another
    assert np.isfinite([tuple(row) for row in table.values()]).all()
    with pytest.raises(TypeError):
        table["new"] = None


def test_ranks_are_means_over_the_settings_of_the_study():
    for name, row in published.TABLE_1.items():
        assert abs(24 * row.all - round(24 * row.all)) <= 24 * 0.005 + 1e-9, (
            name
        )  # 6 samplers x 2 weights x 2 data sets
        assert (4 * row.steps_5).is_integer(), name
        assert (4 * row.steps_50).is_integer(), name
    ranks = [row.all for row in published.TABLE_1.values()]
    assert ranks == sorted(ranks)
    assert all(1 <= rank <= 61 for rank in ranks)


def test_the_balanced_formulation_is_hardly_ever_beaten_in_both_metrics():
    best, table = published.TABLE_2["rf/lognorm(0.00, 1.00)"], published.TABLE_2.items()
    imagenet = {
        n for n, row in table if row.imagenet_clip > best.imagenet_clip and row.imagenet_fid < best.imagenet_fid
    }
    cc12m = {n for n, row in table if row.cc12m_clip > best.cc12m_clip and row.cc12m_fid < best.cc12m_fid}
    assert (imagenet, cc12m) == ({"rf/mode(1.75)"}, set())


def test_more_channels_reconstruct_better():
    fid, perceptual, ssim, psnr = np.array([published.TABLE_3[one] for one in (4, 8, 16)]).T
    assert (np.diff([fid, perceptual]) < 0).all()
    assert (np.diff([ssim, psnr]) > 0).all()


@pytest.mark.parametrize("table", [published.TABLE_4, published.TABLE_5])
def test_overall_is_the_mean_of_the_six_tasks(table):
    for name, row in table.items():
        assert abs(row.overall - np.mean(row[1:])) <= 0.01, name  # of rounded tasks, so to the last digit


def test_genevals_shares_rise_with_depth():
    overall = [published.TABLE_5[f"MM-DiT depth {depth}, 512 px"].overall for depth in (18, 24, 30, 38)]
    assert overall == sorted(overall)
    assert all(0 <= value <= 1 for row in published.TABLE_5.values() for value in row)


def test_few_steps_cost_more_and_larger_models_straighten_the_path():
    for row in published.TABLE_6.values():
        assert row.steps_5 > row.steps_10 > row.steps_20 > 0
    assert np.all(np.diff([row.path_length for row in published.TABLE_6.values()]) < 0)
    assert set(published.TABLE_6) == set(published.FIGURE_8.depths)


def test_sizes_and_flops_are_ours_within_what_is_known():
    ours = {depth: flops.parameters(ModelConfig(depth=depth)).total for depth in published.SIZES}
    assert ours[15] / published.SIZES[15] == pytest.approx(1.10, abs=0.005)
    assert ours[38] / published.SIZES[38] == pytest.approx(1.0, abs=0.01)
    spent = published.FIGURE_8.steps * published.FIGURE_8.batch * flops.train_flops(ModelConfig(depth=38))
    assert published.FIGURE_8.largest_flops / spent == pytest.approx(3.6, abs=0.05)
