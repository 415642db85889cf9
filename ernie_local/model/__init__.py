"""The network: plain torch modules whose parameters carry the checkpoint's names.

Knows no files, no paging, no text; the engine runs it and `loading` fills it.
"""
