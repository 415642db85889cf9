"""The network: torch modules whose parameters carry the checkpoint's names.

`loading` fills it, and the engine runs it.
"""
