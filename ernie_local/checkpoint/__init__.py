"""Reads and writes checkpoints.

`hub` finds the directory, `files` its files, `header` reads one file's header; `names` maps tensor names,
`shapes` lists the tensors of a model, `index` accounts for every one, `reader` streams their values.
`packed` names the tensors of our own format, `format_tables` chooses formats, `writer` writes files;
`parts` sums up what a model is made of. Only `reader` and `writer` need torch.
"""
