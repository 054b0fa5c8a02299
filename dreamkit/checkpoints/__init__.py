"""Checkpoints: folders with everything of a model that its recipe's sources do not have.

    dreamkit.json            the manifest (`dreamkit.checkpoints.manifest`)
    tokenizer/               the tokenizer in the Hugging Face format, with added tokens
    <part>.safetensors       the tensors of a part, if any are saved, and `dream_queries.safetensors`
    adapters/<part>/         the adapter of a part, in the format of peft (`dreamkit.model.adapters`)
    weights-I-of-N.safetensors  in place of both, in resume points of N processes: the slices that process I had

A part without a source (built from `config`, imported, or a projector) is saved whole. Of a part with a source, the
file has the tensors that were ever trained, rows of added tokens, and buffers.
"""
