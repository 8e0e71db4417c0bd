from __future__ import annotations

import numpy as np
import optuna
import pytest

from frankenstein.compare.catalog import catalog
from frankenstein.compare.optimizers import LR_DECADES, Range
from frankenstein.compare.tuning import Halton, Optuna, Rates, halton

OPTIMIZERS = catalog().optimizers
ADAM = OPTIMIZERS["adam"]
SPACE = ADAM.space(10.0)


@pytest.fixture
def tuners(tmp_path):
    return {"halton": Halton(), "optuna": Optuna(tmp_path)}


def bowl(settings):
    """A loss with its best at lr = 0.02, betas[0] = 0.95."""
    return (np.log10(settings["lr"]) - np.log10(0.02)) ** 2 + 100 * (settings["betas[0]"] - 0.95) ** 2


def search(tuner, n_trials, past=()):
    past = list(past)
    for trial in range(len(past), n_trials):
        settings = tuner.settings("p", ADAM, SPACE, trial, past)
        past.append((settings, bowl(settings)))
    return past


@pytest.mark.parametrize("name", ["halton", "optuna"])
def test_the_first_trial_is_the_default_and_the_others_are_in_the_space(tuners, name):
    past = search(tuners[name], 12)
    assert past[0][0] == ADAM.default
    for settings, _ in past[1:]:
        assert settings.keys() == SPACE.keys()
        assert all(SPACE[key].low <= value <= SPACE[key].high for key, value in settings.items())
    assert len({tuple(settings.values()) for settings, _ in past}) == 12


@pytest.mark.parametrize("name", ["halton", "optuna"])
def test_an_interrupted_search_goes_on_as_if_nothing_had_happened(tuners, tmp_path, name):
    whole = search(tuners[name], 10)
    other = Optuna(tmp_path) if name == "optuna" else Halton()
    assert search(other, 10, whole[:6]) == whole


def test_a_longer_search_begins_with_the_shorter_one():
    for n_points in (64, 128, 1024):
        np.testing.assert_array_equal(halton(2, n_points)[:64], halton(2, 64))
    assert search(Halton(), 80)[:20] == search(Halton(), 20)


def test_every_optimizer_gets_the_same_points():
    """The same share of the way through each one's own intervals."""
    points = []
    for spec in OPTIMIZERS.values():
        space = spec.space(3.0)
        settings = Halton().settings("p", spec, space, 7, [])
        points.append([interval.unit(settings[name]) for name, interval in space.items()])
    np.testing.assert_allclose(points, np.tile(points[0], (len(points), 1)), atol=2e-3)  # three digits are kept


def test_halton_fills_every_part():
    """Of 19 points, each fifth of each axis holds at least two, each quarter of the square at least three."""
    points = halton(2, 64)[:19]
    for axis in points.T:
        assert np.histogram(axis, bins=5, range=(0, 1))[0].min() >= 2
    assert np.histogram2d(*points.T, bins=2, range=[[0, 1], [0, 1]])[0].min() >= 3


@pytest.mark.parametrize(
    ("lr_scale", "rates"),
    [(1.0, [1e-3, 3.16e-4, 3.16e-3, 1e-4, 1e-2]), (10.0, [1e-3, 1e-2, 3.16e-3, 3.16e-2, 0.1])],
    ids=["around the default", "around the problem's scale"],
)
def test_rates_tries_the_learning_rate_alone_each_once(lr_scale, rates):
    tried = [Rates().settings("p", ADAM, ADAM.space(lr_scale), trial, []) for trial in range(5)]
    assert tried == [ADAM.default | {"lr": rate} for rate in rates]


def test_many_rates_stay_within_the_interval():
    space = ADAM.space(1.0)
    tried = [Rates().settings("p", ADAM, space, trial, [])["lr"] for trial in range(20)]
    assert len(set(tried)) == 20 and space["lr"].low <= min(tried) and max(tried) <= space["lr"].high
    assert tried[9:11] == [5.62e-4, 1.78e-3]  # between those of the first round


def test_every_search_space_is_of_the_same_size():
    for spec in OPTIMIZERS.values():
        lr, second = spec.space(10.0).values()
        assert np.log10(lr.high / lr.low) == pytest.approx(2 * LR_DECADES)
        assert np.sqrt(lr.low * lr.high) == pytest.approx(10.0 * spec.default["lr"])
        if spec.name == "frankenstein-tied":  # the rule can express no more
            assert np.log10((1 - second.low) / (1 - second.high)) == pytest.approx(np.log10(0.99 / 0.05))
        elif second.scale == "decay":
            assert np.log10((1 - second.low) / (1 - second.high)) == pytest.approx(2.0)
        else:
            assert np.log10(second.high / second.low) == pytest.approx(2.0)


@pytest.mark.parametrize("interval", [Range(1e-4, 10.0), Range(0.7, 0.997, "decay"), Range(-1.0, 3.0, "linear")])
def test_ranges_there_and_back(interval):
    units = np.linspace(0, 1, 11)
    values = [interval.at(unit) for unit in units]
    assert values == sorted(values)
    assert (values[0], values[-1]) == (interval.low, interval.high)
    np.testing.assert_allclose([interval.unit(value) for value in values], units, atol=2e-3)
    assert interval.unit(interval.low / 2 if interval.low > 0 else -9.0) == 0.0


def test_optuna_learns_and_leaves_its_studies(tmp_path):
    """On a smooth bowl it gets closer than blind search, and its dashboard finds the trials, each once."""
    tuner = Optuna(tmp_path)
    past = search(tuner, 40)
    blind = search(Halton(), 40)
    assert min(loss for _, loss in past) < 0.1 * min(loss for _, loss in blind)
    tuner.finish("p", ADAM, SPACE, past)
    tuner.finish("p", ADAM, SPACE, past)
    (summary,) = optuna.get_all_study_summaries(f"sqlite:///{tmp_path / 'optuna.sqlite3'}")
    assert summary.n_trials == 40
    assert summary.best_trial.value == min(loss for _, loss in past)
    assert summary.best_trial.user_attrs["settings"] == min(past, key=lambda one: one[1])[0]
