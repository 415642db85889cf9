"""Measuring this machine in the terms that a model's speed is predicted from, and naming its hardware.

One file a thing. Every measurement takes seconds, is repeated, and keeps its spread; none is printed here.
"""
