"""Models that take Gaussian noise away."""
