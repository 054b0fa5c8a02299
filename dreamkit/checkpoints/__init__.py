"""Checkpoints: folders with everything of a model that its recipe's sources do not have.

    dreamkit.json            the manifest (`dreamkit.checkpoints.manifest`)
    tokenizer/               the tokenizer in the Hugging Face format, with added tokens
    <part>.safetensors       the tensors of a part, if any are saved, and `dream_queries.safetensors`
    adapters/<part>/         the adapter of a part, written by `dreamkit.model.adapters`

A part without a source (built from `config`, imported, or a projector) is saved whole. Of a part with a source, the
file has the tensors that were ever trained, rows of added tokens, and buffers.
"""
