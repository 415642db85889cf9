"""Writes checkpoints for other programs: plain weights in the hub's layout, and compressed ones for vLLM.

`weights` gives every weight of a checkpoint of ours under our names, `hub_layout` says under which names the
hub has them, `run` writes and audits them.
"""
