"""Checkpoints: a folder that holds whatever of a model cannot be read again from the sources its recipe names.

    dreamkit.json            the manifest (`dreamkit.checkpoints.manifest`)
    tokenizer/               in the Hugging Face format, added tokens included
    <part>.safetensors       one a part, and `dream_queries.safetensors`; none for a part with nothing to hold
    adapters/<part>/         the adapter of a part, as `dreamkit.model.adapters` writes it

A part without a source (built from `config`, imported, or a projector) is held whole. Of a part with one, the file
holds what was ever trained, rows of added tokens, and buffers.
"""
