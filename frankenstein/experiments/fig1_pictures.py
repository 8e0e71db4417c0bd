"""Trajectories in the plane over the function's contours: as a picture, and as an animation. Needs matplotlib."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from frankenstein.compare.report.charts.chart import COLOURS, is_ours
from frankenstein.compare.store.records import Record
from frankenstein.experiments.experiment import Picture
from frankenstein.experiments.fig1_charts import colour_and_dash
from frankenstein.experiments.fig1_scenes import Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.lines import Line2D
    from PIL.Image import Image

__all__ = ["pictures"]

N_GRID = 161  # points of the contours in each direction
N_LEVELS = 24
SIZE = (8.6, 5.4)  # inches
DPI = 110
ANIMATION_DPI = 80
N_FRAMES = 60
SLOWED = 1.6  # the first steps are the longest, and shown slower: a frame's step is that power of its time
FRAME_MS, LAST_MS = 80, 2500
GREYS = range(0, 256, 15)  # of an animation's palette
BLENDS = (1.0, 0.7, 0.4)  # of a line's colour with the light grey of the contours, at its edges
LIGHT = 224.0
TAIL = 12  # points of a trajectory that an animation shows behind the optimizer


def pictures(scene: Scene, records: list[Record]) -> list[Picture]:
    """Return the picture and the animation of a scene; they are drawn when they are written."""
    start = ", ".join(f"{value:g}" for value in scene.start)
    caption = f"{scene.title}: {scene.formula}, from ({start}), each optimizer at its best rate. Cross: a minimum"
    return [
        Picture(f"fig1-{scene.name}.png", f"{caption}.", lambda: still(scene, records)),
        Picture(
            f"fig1-{scene.name}.gif",
            f"{caption}. {scene.n_steps} steps, the first ones slower.",
            lambda: animation(scene, records),
        ),
    ]


def still(scene: Scene, records: list[Record]) -> bytes:
    """Return the whole trajectories, as PNG."""
    canvas, _, lines = _canvas(scene, records, DPI)
    for record, line in zip(records, lines, strict=True):
        line.set_data(*record["path"])
        line.set_markevery([len(record["path"][0]) - 1])
    file = io.BytesIO()
    canvas.figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def animation(scene: Scene, records: list[Record]) -> bytes:
    """Return the optimizers on their way, as GIF: the contours are drawn once, the lines over them in every frame."""
    canvas, axes, lines = _canvas(scene, records, ANIMATION_DPI)
    for line in lines:
        line.set_animated(True)
    canvas.draw()
    background = canvas.copy_from_bbox(canvas.figure.bbox)
    n_points = max(len(record["path"][0]) for record in records)
    frames: list[Image] = []
    for at in np.unique((np.linspace(0, 1, N_FRAMES) ** SLOWED * (n_points - 1)).round().astype(int)).tolist():
        canvas.restore_region(background)
        for record, line in zip(records, lines, strict=True):
            last = min(at, len(record["path"][0]) - 1)
            x, y = ([*column[max(0, last - TAIL) : last + 1]] for column in record["path"])
            line.set_data(x, y)
            line.set_markevery([len(x) - 1])
            axes.draw_artist(line)
        frames.append(_frame(canvas))
    return _gif(frames)


def _frame(canvas: FigureCanvasAgg) -> Image:
    """Return what is on the canvas."""
    from PIL import Image

    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _gif(frames: list[Image]) -> bytes:
    """Return the frames with one small palette: greys, and the lines' colours."""
    from PIL import Image

    hues = [np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], float) for colour in COLOURS]
    blends = [share * hue + (1.0 - share) * LIGHT for hue in hues for share in BLENDS]
    colours = [[grey] * 3 for grey in GREYS] + [blend.round().astype(int).tolist() for blend in blends]
    palette = Image.new("P", (1, 1))
    palette.putpalette([channel for colour in colours for channel in colour])
    few = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    file = io.BytesIO()
    durations = [FRAME_MS] * (len(few) - 1) + [LAST_MS]
    few[0].save(file, "GIF", save_all=True, append_images=few[1:], duration=durations, loop=0)
    return file.getvalue()


def _canvas(scene: Scene, records: list[Record], dpi: int) -> tuple[FigureCanvasAgg, Axes, list[Line2D]]:
    """Return a figure with the contours and a legend, and a line without points for each trajectory, ours on top."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=dpi, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    left, right, bottom, top = scene.window
    x, y = np.meshgrid(np.linspace(left, right, N_GRID), np.linspace(bottom, top, N_GRID))
    heights = _heights(scene, x, y)
    levels = np.linspace(heights.min(), heights.max(), N_LEVELS)
    axes.contourf(x, y, heights, levels=levels, cmap="Greys", alpha=0.55)
    axes.contour(x, y, heights, levels=levels[1:], colors="#888888", linewidths=0.4)
    axes.plot(*zip(*scene.minima, strict=True), "kx", markersize=9, markeredgewidth=2)
    axes.set(xlim=(left, right), ylim=(bottom, top), xlabel="x", ylabel="y", title=scene.title)
    lines: list[Line2D] = []
    for record in records:
        colour, dash = colour_and_dash(record["optimizer"])
        ours = is_ours(record["optimizer_config"]["class"])
        pattern: Any = (0, dash) if dash[1] else "-"
        lines += axes.plot([], [], color=colour, linestyle=pattern, marker="o", label=record["optimizer_title"])
        lines[-1].set(linewidth=2.2 if ours else 1.0, markersize=6 if ours else 4, alpha=1.0 if ours else 0.8)
        lines[-1].set_zorder(4 if ours else 3)
    figure.legend(handles=lines, loc="outside right upper", fontsize=8, frameon=False, handlelength=3)
    return canvas, axes, lines


def _heights(scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the logarithm of the function, with steps that show the bottom as well as the walls."""
    import torch

    values = scene.function(torch.from_numpy(np.stack([x, y]))).numpy()
    return np.log10(values + 10.0 ** math.floor(np.log10(np.median(values)) - 2.0))
