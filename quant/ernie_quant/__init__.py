"""Quantizes float checkpoints into our own format, and evaluates the result."""
