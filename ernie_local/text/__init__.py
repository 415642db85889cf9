"""Turns conversations into token ids, and what the model writes into reasoning, answer and tool calls.

`template` writes a conversation down, `tokenizer` encodes and decodes text, `sentencepiece_file` reads its
vocabulary, `reasoning` parses generated text. No torch here; an image is a number of tokens.
"""
