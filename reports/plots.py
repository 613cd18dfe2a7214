"""The plots of a run, each drawn from the summary as it stands: PNG and SVG, the same bytes every time.

Hue says the method, its shade the setting, the marker the condition (network). The fastest case wears a ring and bold letters.
"""

import numpy as np
from matplotlib.figure import Figure

from reports.figure import _render, _style
from reports.load import Run
from reports.parts_plot import latency_parts
from reports.picture_grid import grid_prompts, image_grid
from reports.quality_plot import latency_quality
from reports.queue_plot import queue_over_time
from reports.sweep_plot import numeric_axes, sweep, sweep_name


def draw_plots(run: Run) -> dict[str, bytes]:
    """Every plot that the run allows, as file name -> bytes; order of the names is order of the report."""
    files: dict[str, bytes] = {}
    with _style():
        figures: dict[str, Figure] = {}
        if np.isfinite(run.summary["latency_mean_s"]).any():
            figures["latency_quality"] = latency_quality(run)
            figures["latency_parts"] = latency_parts(run)
            figures |= {sweep_name(key): sweep(run, key) for key in numeric_axes(run)}
        if (run.queue["queued"] + run.queue["admission"]).any():
            figures["queue_over_time"] = queue_over_time(run)
        if grid_prompts(run):
            figures["image_grid"] = image_grid(run)
        for name, figure in figures.items():
            files[f"{name}.png"] = _render(figure, "png")
            figure.set_layout_engine("none")  # it stands in parts of the figure, and need not be worked out again
            files[f"{name}.svg"] = _render(figure, "svg")
    return files
