"""Turns image files into patches, and gives the tokens that stand for images their types and positions.

`open_image` opens anything that a user calls an image, with `formats`, `decode`, `pdf` and `pages`; `trim`
cuts its margins, and `image_view` maps places back to the file; `processor` cuts it into `patches` by the
settings of `processor_config`, the bounds of `detail` and the sizes of `image_size`; `tokens` places it in a
prompt. Importing this package imports neither torch nor pypdfium2.
"""
