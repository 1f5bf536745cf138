"""Ahmed, "Generative Models for Natural Images", 2017: its tables of likelihoods and of held-out classes."""
