"""HTML pages: `report.html` of an evaluation and of a comparison, each a single file that works offline."""
