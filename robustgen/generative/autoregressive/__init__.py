"""Models that draw an image pixel by pixel, each from those before it."""
