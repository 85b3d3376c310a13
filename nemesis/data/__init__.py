"""From raw scans to superpatches: listing, ingestion, pools and crops."""

VERSION: int = 2  # raise whenever the same raw scans give other stored volumes, other pools or other crops
