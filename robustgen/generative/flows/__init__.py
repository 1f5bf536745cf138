"""Flows: models whose density is exact, since every layer can be inverted."""
