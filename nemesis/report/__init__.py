"""From rows to what people read: tables, figures and the page. Imports neither torch nor MONAI."""

VERSION = 2  # raised whenever the same rows and predictions print other numbers

# what the jobs write, by name: the workflow is planned from these
COLLECTED = ("runs", "rows", "predictions", "curves", "timings")
TABLES = ("main", "label_fractions", "reconstruction")
FIGURES = ("reconstructions", "label_fractions", "training_curves")
