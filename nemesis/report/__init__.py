"""From rows to what people read: tables, figures and the page. Imports neither torch nor MONAI."""

VERSION = 10  # raised whenever the same rows and predictions print other numbers

# what the jobs write, by name: the workflow is planned from these
COLLECTED = ("runs", "rows", "predictions", "peeking", "reconstructions", "segmentations", "curves", "timings", "audit")
TABLES = (
    "data", "main", "label_fractions", "pretraining", "segmentation", "segmentation_organs", "controls", "convergence",
    "peeking", "ablations", "sweep", "maesil_reconstruction", "maesil_datasets", "reconstruction", "claims", "cost",
)  # fmt: skip
FIGURES = (
    "reconstructions",
    "label_fractions",
    "segmentation",
    "convergence",
    "pretexts",
    "training_curves",
    "sweep",
    "ablations",
    "cost_quality",
    "superpatch_sizes",
    "attention",
)
NOTEBOOKS = ("data", "ablation_tables", "paper_figures")  # notebooks/<name>.ipynb
