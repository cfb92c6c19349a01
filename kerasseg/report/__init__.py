"""HTML pages: `report.html` of an evaluation and of a comparison, each a single file that works offline."""

from kerasseg.report.comparison import write_comparison
from kerasseg.report.evaluation import write_report
from kerasseg.report.sections import ThresholdCurve

__all__ = ["ThresholdCurve", "write_comparison", "write_report"]
