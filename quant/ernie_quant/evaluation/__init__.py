"""Compares checkpoints with a reference on the same images, turn by turn.

`observation` runs one model, `reference` stores what the first one did, `comparison` compares another model
with it turn by turn, `summary` computes figures of all turns, `run` finds the models and does all that.
"""
