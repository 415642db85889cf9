"""Turns conversations into token ids, and what the model writes into reasoning, answer and tool calls.

`template` writes a conversation down, `template_file` does so with the template of a model's own files, which
`jinja_process` renders. `tokenizer` encodes and decodes text, `sentencepiece_file` reads its vocabulary,
`special_tokens` the tokens beside it, `reasoning` parses generated text. No torch here; an image is a number
of tokens.
"""
