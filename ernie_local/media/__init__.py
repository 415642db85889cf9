"""Turns image and video files into patches, and gives the tokens that stand for them types and positions.

`open_image` opens anything that a user calls an image, with `formats`, `decode`, `pdf` and `pages`; `trim`
cuts its margins, and `image_view` maps places back to the file; `processor` cuts it into `patches` by the
settings of `processor_config`, the bounds of `detail` and the sizes of `image_size`; `tokens` places it in a
prompt. `open_video` does the same for videos, with `video_file`, `animation`, `video_sampling`, `video_stamp`
and `frame_store`. Importing this package imports neither torch nor pypdfium2 nor PyAV.
"""
