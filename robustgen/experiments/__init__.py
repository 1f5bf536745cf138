"""Experiments: what the project measures, each a short file."""
