"""The interfaces of the four kinds of parts, one in each file, and the tools that parts are written with.

Shape suffixes, here and everywhere: B rows of a batch, T tokens of a row, S cached tokens, N images (N >= 1),
V vision tokens of an image, Q dream queries, R hidden states in any number, D language width, C context width,
P pooled width, H and W pixels, L labelled tokens, c x h x w latents. Images are float: in [-1, 1] where a decoder
trains on them, in [0, 1] where it draws them.

A part is an `nn.Module`. Its class names a frozen dataclass `Config`: the part's section of a recipe. `from_config`
builds the part with random weights, `from_pretrained` with the weights of a named source. `infer_spec` returns its
shapes before that, from config and tokenizer files alone. `dreamkit.testing` checks these rules.
"""
