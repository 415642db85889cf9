"""Reads and writes checkpoints.

`hub` finds the directory: `hub_download` brings it, file by file with `hub_fetch`, or its headers with
`hub_outline`; `hub_failures` says what went wrong. `published` knows the repositories, `stored` the models
on this machine. `files` finds the files of a directory, `header` reads one file's header; `names` maps tensor
names, `shapes` lists the tensors of a model, `index` accounts for every one, `reader` streams their values.
`compressed` matches parts of matrices that other tools quantized, `dequantize` has their library read them.
`packed` names the tensors of our own format, `format_tables` chooses formats, `writer` writes files;
`parts` sums up what a model is made of. Only `reader`, `dequantize` and `writer` need torch.
"""
