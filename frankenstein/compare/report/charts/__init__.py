"""Charts of a comparison: Vega-Lite, the same for the HTML report and for files.

chart.py    what a chart is, how optimizers look, how a chart becomes a file
curves.py   learning curves, final scores of seeds
tuning.py   validation scores of all trials; ranks with fewer trials
across.py   all problems at once: scores, ranks, wins, performance profiles
cost.py     time and memory
paper.py    all problems in one figure
"""

from frankenstein.compare.report.charts.chart import FORMATS, Chart, Look, looks, save
from frankenstein.compare.report.charts.paper import overview, tuning_overview

__all__ = ["FORMATS", "Chart", "Look", "looks", "overview", "save", "tuning_overview"]
