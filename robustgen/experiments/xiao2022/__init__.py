"""Flows, latent flows and autoencoders with a density of codes (Xiao, 2022)."""
