"""Networks that MONAI lacks, and what several methods' networks share. Imported inside methods only: they need torch."""
