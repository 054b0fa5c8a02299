"""The four kinds of parts a model is made of: an interface a file, and what parts are written with.

Shape suffixes, here and everywhere: B rows of a batch, T tokens of a row, S cached tokens, N images (N >= 1),
V vision tokens of an image, Q dream queries, D language width, C context width, P pooled width, H and W pixels,
L labelled tokens. Images are float, in [-1, 1] where a decoder trains on them and in [0, 1] where one is drawn.

A part is an `nn.Module` whose class names a frozen dataclass `Config`: its section of a recipe. It is made by
`from_config` (random weights) or `from_pretrained` (weights of a named source), and `infer_spec` tells its shapes
beforehand, from config and tokenizer files alone. `dreamkit.testing` checks what is said here.
"""
