"""Keeps results that cost much, and finds them again: features of images, keys and values of prompts.

`features` keeps them in memory, `cache_folder` and `prefixes` on disk, where the user asks for it. `identity`
and `model_hash` say what a result depends on; `results` joins them for one loaded model.
"""
