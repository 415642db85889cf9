"""Text to token ids and back: the tokenizer, the chat templates, and the parser of what the model writes.

Knows nothing of images beyond the number of tokens that one fills, and nothing of torch or of the model.
"""
