"""The house's own methods, one file each, through the same contract as every rival."""
