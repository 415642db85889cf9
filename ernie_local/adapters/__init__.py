"""Reads LoRA adapters, which add a product of two thin matrices to weights of a model."""
