"""The detector of time series: windows, times and gaps against NumPy, its threshold, its stream, its deployed form."""

import pickle

import numpy as np
import pytest

from kerasae import export, figures
from kerasae.data.reading import series
from kerasae.tasks import AnomalyDetector, SeriesDetector

QUICK = {"window": 16, "n_estimators": 1, "max_samples": 600, "epochs": 12, "batch_size": 32, "random_state": 0}


@pytest.fixture(scope="module")
def sensors():
    """Two sensors, of which the second hangs in the new recording."""
    rng, t = np.random.default_rng(0), np.arange(600)
    normal = (
        np.stack([np.sin(t / 5), np.cos(t / 5)], axis=1) * (1, 50)
        + (0, 1000)
        + 0.1 * rng.normal(size=(600, 2)) * (1, 50)
    )
    new = normal[:200].copy()
    new[100:120, 1] = 1000
    return normal, new


@pytest.fixture(scope="module")
def detector(sensors):
    return SeriesDetector(**QUICK).fit(sensors[0][:400])


def test_a_row_s_score_is_the_mean_over_the_windows_that_hold_it(sensors, detector):
    _, new = sensors
    flat = np.stack([new[s : s + 16] for s in range(185)]) - detector.center_
    of_windows = -detector.scorer_.predict((flat / detector.scale_).reshape(185, -1), verbose=0)
    expected = [-of_windows[max(0, t - 15) : t + 1].mean() for t in range(200)]
    np.testing.assert_allclose(detector.score_samples(new), expected, rtol=1e-4)
    assert (detector.predict(new) == np.where(detector.score_samples(new) < detector.offset_, -1, 1)).all()


def test_a_hung_sensor_is_found_and_blamed(sensors, detector):
    _, new = sensors
    (found,) = detector.anomalies(new)
    first, last = found["rows"]
    assert first <= 100
    assert last >= 119
    assert 100 <= found["peak"] < 120
    assert found["channel"] == 1
    times = np.datetime64("2024-05-01", "s") + np.arange(200)
    assert detector.anomalies(new, times)[0]["start"] == times[first]
    assert not detector.anomalies(sensors[0][:100])


@pytest.mark.parametrize("options", [{}, {"delay": 0}, {"delay": 9, "stride": 3}], ids=str)
def test_a_stream_gives_the_scores_of_the_whole(sensors, detector, options):
    _, new = sensors
    new = new[:80].copy()
    new[20:23, 0], new[40:60] = np.nan, np.nan  # one gap is filled in
    other = pickle.loads(pickle.dumps(detector)).set_params(**options)
    other.span_, other.stride_ = other._span(16)
    stream, settled = other.stream(), []
    for number, row in enumerate(new):
        settled += stream.update(row)
        assert all(of <= number - stream.delay for of, _ in settled)
    settled += stream.finish()
    assert [number for number, _ in settled] == list(range(80))
    whole = other.score_samples(new)
    np.testing.assert_allclose([score for _, score in settled], whole, rtol=1e-6)
    assert np.isnan(whole[45:55]).all()
    assert np.isfinite(whole[16:36]).all()


def test_times_are_brought_to_the_step_of_fit(sensors):
    normal, new = sensors
    start = np.datetime64("2024-05-01", "ms")
    at = start + 1000 * np.arange(600)
    detector = SeriesDetector(**{**QUICK, "epochs": 1}).fit(series.Timed(normal, at))
    assert detector.step_ == 1.0
    scores = detector.score_samples(series.Timed(new, at[:200]))
    np.testing.assert_allclose(scores, detector.score_samples(new))
    finer = np.repeat(new, 4, axis=0)
    quarter = start + 1000 * np.repeat(np.arange(200), 4) + np.tile([0, 100, 200, 300], 200)
    np.testing.assert_allclose(detector.score_samples(series.Timed(finer, quarter))[::4], scores, rtol=1e-4)
    lost = np.r_[0:50, 53:200]  # rows that are left out are gaps like any other
    with_gap = new.copy()
    with_gap[50:53] = np.nan
    np.testing.assert_allclose(
        detector.score_samples(series.Timed(new[lost], at[lost])), detector.score_samples(with_gap)[lost]
    )


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0, 1, 1, 2], "repeat the row before in row 3"),
        ([0, 2, 1, 3], "run backwards in row 3"),
        ([0, np.nan, 1, 3], "are missing in row 2"),
        ([0, 1, 2, 1e9], "spans"),
    ],
)
def test_times_that_do_not_rise_are_named(detector, times, message):
    with pytest.raises(ValueError, match=message):
        SeriesDetector(**QUICK).fit(series.Timed(np.ones((4, 2)), np.array(times)))


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.ones((4, 30, 2)), r"several are a list of such.*\(4, 30, 2\)"),
        (np.full((50, 2), np.nan), "holds no value"),
        (np.ones((3, 2)), "too few rows"),
        ([[1.0, np.inf]] * 40, "infinity"),
    ],
    ids=["3-D", "nothing", "short", "infinite"],
)
def test_what_is_no_series_is_refused(X, message):
    with pytest.raises(ValueError, match=message):
        SeriesDetector(**QUICK).fit(X)


def test_lost_and_constant_sensors(sensors, caplog):
    normal, _ = sensors
    more = np.column_stack([normal, np.full(600, np.nan), np.full(600, 7.0)])
    detector = SeriesDetector(**QUICK).fit(more)
    assert "left out: 2" in caplog.text
    assert detector.channels_.tolist() == [0, 1, 3]
    assert detector.scale_[2] == 1
    shown = more[:100].copy()
    shown[:, 2] = 5.0  # it is not looked at
    np.testing.assert_array_equal(detector.score_samples(shown), detector.score_samples(more[:100]))
    shown[50, 3] = 12.0
    assert detector.score_samples(shown)[50] < detector.offset_


def test_a_stream_of_a_detector_without_a_lost_sensor(sensors):
    lost = sensors[0][:200].copy()
    lost[:, 0] = np.nan
    detector = SeriesDetector(**{**QUICK, "epochs": 1}).fit(lost)
    stream = pickle.loads(pickle.dumps(detector.stream()))
    scores = [score for row in lost[:60] for _, score in stream.update(row)] + [score for _, score in stream.finish()]
    np.testing.assert_allclose(scores, detector.score_samples(lost[:60]), rtol=1e-4)
    for row in ([1.0], [1.0, 2.0, 3.0], [1.0, np.inf]):
        with pytest.raises(ValueError, match="A row must be 2 finite numbers, or NaN"):
            stream.update(row)


def test_an_enormous_value_is_forgotten_behind_its_windows():
    values = np.array([1.0, -np.inf, 2.0, -1e38, 3.0, 3.0, 5.0])
    spread = series.spread(values, np.arange(7), 8, (0, 1))
    np.testing.assert_array_equal(spread, [1, -np.inf, -np.inf, -5e37, -5e37, 3, 4, 5])


def test_the_end_must_hold_a_window(sensors):
    gone = sensors[0][:200].copy()
    gone[120:, 1] = np.nan
    with pytest.raises(ValueError, match="The end of X sets the threshold, and no window of 16 rows"):
        SeriesDetector(**QUICK).fit(gone)


def test_times_of_zones_and_of_microseconds(sensors, detector):
    pd = pytest.importorskip("pandas")
    times = pd.date_range("2024-05-01", periods=60, freq="20us")
    assert series.usual_step(series.seconds(times)) == pytest.approx(2e-5, rel=1e-9)
    frame = pd.DataFrame(sensors[1][:60], index=times.tz_localize("Europe/Berlin"))
    np.testing.assert_array_equal(detector._own_times(frame), times - pd.Timedelta("2h"))
    frame = frame.assign(at=times.astype(str))
    with pytest.raises(ValueError, match=r"Column 'at' holds text.*pandas.to_datetime"):
        pickle.loads(pickle.dumps(detector)).set_params(time="at").score_samples(frame)


def test_frames_and_several_series(sensors):
    pd = pytest.importorskip("pandas")
    normal, new = sensors
    frame = pd.DataFrame(normal, columns=["a", "b"]).assign(at=pd.date_range("2024", periods=600, freq="s"))
    detector = SeriesDetector(**QUICK, time="at").fit([frame[:300], frame[300:]])
    several = detector.score_samples([frame[:100], frame[100:150]])
    assert [len(part) for part in several] == [100, 50]
    indexed = pickle.loads(pickle.dumps(detector)).set_params(time=None)
    np.testing.assert_allclose(indexed.score_samples(frame.set_index("at")[:100]), several[0])
    broken = frame[:200].copy()
    broken.loc[100:120, "b"] = 1000
    found = detector.anomalies(broken)[0]
    assert found["channel"] == "b"
    assert isinstance(found["start"], np.datetime64)
    with pytest.raises(ValueError, match="column 'at'"):
        detector.score_samples(new)


@pytest.mark.parametrize("measure", ["reconstruction", "forecast"])
def test_errors_of_reconstructions_and_forecasts(sensors, measure):
    normal, new = sensors
    detector = SeriesDetector(**QUICK, measure=measure).fit(normal)
    scores = detector.score_samples(new)
    known = ~np.isnan(scores)
    assert known.sum() == (200 if measure == "reconstruction" else 185)  # before the first window there is no forecast
    assert scores[105:115].max() < np.median(scores[known])
    x = detector._flat(new[:16][None])
    if measure == "forecast":  # what it is of is not shown
        hidden = x.copy()
        hidden[:, -2:] = 0
        model = detector.estimators_[0]
        reconstruction = model.decoder(model.encoder(hidden)).numpy()
        expected = np.square(x[:, -2:] - reconstruction[:, -2:]).mean()
        np.testing.assert_allclose(detector.scorer_.predict(x, verbose=0), -expected, rtol=1e-4)
        changed = new[:16][None] + np.where(np.arange(16) >= 15, 100, 0)[:, None]
        told = [detector.window_reconstructions(windows) for windows in (new[:16][None], changed)]
        np.testing.assert_array_equal(*told)
        y = np.where(np.arange(200) // 20 == 5, -1, 1)
        assert detector.score(new, y) > 0.8  # of the rows that have a score


def test_gaps_are_filled_from_the_windows_around_them(sensors, detector):
    normal, _ = sensors
    gappy = normal[:200].copy()
    gappy[60:68, 0] = np.nan
    filled = detector.impute(gappy)
    known = ~np.isnan(gappy)
    np.testing.assert_array_equal(filled[known], gappy[known])
    line = np.interp(np.arange(60, 68), [59, 68], normal[[59, 68], 0])
    assert np.abs(filled[60:68, 0] - normal[60:68, 0]).mean() < np.abs(line - normal[60:68, 0]).mean()


def test_a_recording_that_drifts_is_called_so(sensors, detector, caplog):
    normal, _ = sensors
    assert not detector.drifts_
    drifting = normal + np.linspace(0, 20, 600)[:, None] * (1, 50)
    assert SeriesDetector(**{**QUICK, "epochs": 1}).fit(drifting).drifts_
    assert "it drifts" in caplog.text


def test_new_normal_rows_are_rarely_called_anomalies(detector):
    rng, t = np.random.default_rng(1), np.arange(600, 2600)
    later = np.stack([np.sin(t / 5), np.cos(t / 5)], axis=1) + 0.1 * rng.normal(size=(2000, 2))
    assert (detector.predict(later * (1, 50) + (0, 1000)) < 0).mean() <= 0.05


def test_a_picture_shows_channels_scores_and_intervals(sensors, detector):
    _, new = sensors
    scores, reconstruction = detector.score_samples(new), detector.reconstruct(new)
    figure = figures.series(new, scores, detector.offset_, reconstruction, names=["flow", "pressure"])
    assert [ax.get_ylabel() for ax in figure.axes] == ["flow", "pressure", "score"]
    (observed, reconstructed), (score, *_) = figure.axes[1].lines, figure.axes[2].lines
    np.testing.assert_array_equal(observed.get_ydata(), new[:, 1])
    np.testing.assert_array_equal(reconstructed.get_ydata(), reconstruction[:, 1])
    np.testing.assert_array_equal(score.get_ydata(), scores)
    (found,) = detector.anomalies(new)
    for ax in figure.axes:
        (shade,) = ax.patches
        assert (shade.get_x(), shade.get_x() + shade.get_width()) == found["rows"]
    with pytest.raises(ValueError, match="200 rows"):
        figures.series(new, scores[1:])


def test_it_is_exported_as_it_computes(detector, tmp_path):
    manifest = export.export(detector, tmp_path / "bundle", formats=("onnx",))
    assert [part["name"] for part in manifest["parts"]] == ["score_samples", "reconstruct"]
    assert manifest["parts"][0]["inputs"][0]["shape"] == ["batch", 16, 2]
    assert manifest["preparation"]["kind"] == "series"


def test_its_windows_are_scored_as_the_rows_of_a_table_are(sensors, detector):
    assert isinstance(detector, AnomalyDetector)
    again = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(again.score_samples(sensors[1]), detector.score_samples(sensors[1]))
