"""Measures this machine in the terms that a model's speed is predicted from, and names its hardware."""
