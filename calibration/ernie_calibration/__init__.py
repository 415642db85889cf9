"""Draws documents and charts from a seed with questions on them, to calibrate and judge models."""
