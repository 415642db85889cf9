"""Images from files to patches, and the token ids and positions that stand for them.

Knows nothing of the model or of chat text. Importing this package imports neither torch nor pypdfium2.
"""
