"""The ways of trainings through a plane, as rows of a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from frankenstein.analysis.landscape.plane import Track
from frankenstein.compare.report.charts.chart import Row, rounded

N_ARROWS = 8  # of each training


def track_rows(tracks: Mapping[str, Track]) -> list[Row]:
    """Return a point for each snapshot."""
    return [
        {
            "training": name,
            "step": step,
            "px": rounded(x),
            "py": rounded(y),
            "distance": rounded(distance),
            "is_last": step == track.steps[-1],
        }
        for name, track in tracks.items()
        for step, x, y, distance in zip(track.steps, track.x, track.y, track.distance, strict=True)
    ]


def arrow_rows(tracks: Mapping[str, Track], frame: Sequence[tuple[float, float]], pixels: tuple[int, int]) -> list[Row]:
    """Return arrows at equal distances along each way, as it is drawn: snapshots crowd at its end.

    Args:
        tracks: The trainings.
        frame: What is drawn: the lowest and the highest x, then y.
        pixels: The size of the picture.

    Returns:
        Place, step at which the training is past it, and angle: degrees clockwise from upward.
    """
    per_unit = np.array([size / (high - low) for size, (low, high) in zip(pixels, frame, strict=True)])
    rows: list[Row] = []
    for name, track in tracks.items():
        places = np.stack([track.x, track.y], axis=1)
        moves = np.diff(places, axis=0) * per_unit
        lengths = np.hypot(*moves.T)
        ends = np.cumsum(lengths)
        for target in (np.arange(N_ARROWS) + 0.5) / N_ARROWS * (ends[-1] if len(ends) else 0.0):
            if target <= 0.0:  # it does not move
                break
            i = int(np.searchsorted(ends, target))
            share = 1.0 - (ends[i] - target) / lengths[i]
            x, y = (places[i] + share * (places[i + 1] - places[i])).tolist()
            angle = float(np.degrees(np.arctan2(moves[i, 0], moves[i, 1])))
            rows.append({"training": name, "step": track.steps[i + 1], "ax": rounded(x), "ay": rounded(y)})
            rows[-1]["angle"] = rounded(angle)
    return rows
