"""Basin: adversarial robustness as one tracked pipeline."""
