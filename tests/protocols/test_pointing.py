from __future__ import annotations

import numpy as np
import pytest
import torch

from placket.protocols import attention_peaks, input_window, pointing


def test_attention_peaks():
    maps = torch.zeros(4, 2, 4)
    maps[0, 1, 3] = 1
    maps[1, 0, 1] = maps[1, 1, 0] = 1  # the first of two
    maps[2] = -1
    maps[2, 0, 0] = -0.5
    peaks = attention_peaks(maps)
    assert peaks[:3].tolist() == [[0.875, 0.75], [0.375, 0.25], [0.125, 0.25]]
    assert np.isnan(peaks[3]).all()
    assert attention_peaks(torch.zeros(0, 7, 7)).shape == (0, 2)
    with pytest.raises(ValueError, match="attention must be numbers, got NaN"):
        attention_peaks(maps.log())
    with pytest.raises(ValueError, match=r"attention must have shape \[n, h, w\], got \[4, 2\]"):
        attention_peaks(maps[..., 0])


@pytest.mark.parametrize(
    ("width", "height", "box", "options", "expected"),
    [
        (100, 100, None, {"size": 224}, (0, 0, 100, 100)),
        (300, 200, None, {"size": 100}, (50, 0, 250, 200)),
        (200, 300, None, {"size": 100, "fit": "pad"}, (-50, 0, 250, 300)),
        (300, 100, None, {"size": 50, "fit": "target_pad", "target_ratio": 1.5}, (48, -50, 248, 150)),
        (200, 300, (50, 100, 150, 300), {"size": 50}, (50, 150, 150, 250)),
        (200, 300, (50, 100, 150, 300), {"size": 60, "fit": "squash", "box_margin": 0.1}, (40, 80, 160, 300)),
        (200, 300, (50, 100, 150, 300), {"size": 60, "box_margin": 0.1}, (40, 130, 160, 250)),  # cut below
        # Resized to 10 x 13, of which rows 2 to 12 are kept: int(round(3 / 2)) is 2.
        (20, 27, None, {"size": 10}, (0, 2 * 27 / 13, 20, 12 * 27 / 13)),
    ],
)
def test_input_window(width, height, box, options, expected):
    assert input_window(width, height, box, **options) == pytest.approx(expected)


def test_input_window_errors():
    with pytest.raises(ValueError, match="box must overlap the image of 20 x 10 pixels, got"):
        input_window(20, 10, (20, 0, 30, 10), size=8)
    with pytest.raises(
        ValueError, match="fit must be 'crop', 'pad', 'target_pad' or 'squash', got 'stretch'"
    ):
        input_window(20, 10, size=8, fit="stretch")


def test_pointing():
    # One cell of 4 x 2 is 50 x 100 pixels of the window; the peak of map 0 lies at (175 + 100, 150).
    peaks = [[0.875, 0.75], [0.875, 0.75], [0.875, 0.75], [np.nan, np.nan]]
    windows = [[100, 0, 300, 200]] * 4
    sleeves = [[0, 0, 10, 10], [270, 140, 276, 151]]
    regions = [sleeves, [[0, 0, 275, 300]], [[275, 150, 276, 151]], [[-1000, -1000, 1000, 1000]]]
    assert pointing(peaks, windows, regions).tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match=r"peaks and windows must have shapes \[1, 2\] and \[1, 4\]"):
        pointing(peaks, windows, [sleeves])
