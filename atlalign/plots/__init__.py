"""All drawing: registrations, fields, runs, evaluations and slides."""

from atlalign.plots.charts import (
    Course,
    curve_figure,
    distribution_figure,
    level_figure,
    located_figure,
    position_figure,
    series_figure,
)
from atlalign.plots.fields import (
    draw_grid,
    field_displacement_figure,
    field_grid_figure,
    field_jacobian_figure,
)
from atlalign.plots.figures import figure_svg, save_figure
from atlalign.plots.pictures import brightened, error_map, overlay, png, section_overlay, thumbnail
from atlalign.plots.registrations import Panel, registration_figure
from atlalign.plots.runs import runs_figure
from atlalign.plots.slides import Outlined, sections_figure

__all__ = [
    "Course",
    "Outlined",
    "Panel",
    "brightened",
    "curve_figure",
    "distribution_figure",
    "draw_grid",
    "error_map",
    "field_displacement_figure",
    "field_grid_figure",
    "field_jacobian_figure",
    "figure_svg",
    "level_figure",
    "located_figure",
    "overlay",
    "png",
    "position_figure",
    "registration_figure",
    "runs_figure",
    "save_figure",
    "section_overlay",
    "sections_figure",
    "series_figure",
    "thumbnail",
]
