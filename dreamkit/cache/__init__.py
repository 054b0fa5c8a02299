"""Outputs of frozen parts, computed once and read from disk: a folder with at most two tables.

    cache.json                     the manifest (`dreamkit.cache.manifest`)
    features-00000.safetensors     vision features, before the projector
    latents-00000.safetensors      mean and standard deviation of latents, and the decoder's extras

A row is found by the content of its image, so data may come in any order and mixture. `dreamkit.cache.write` writes the
folder. `dreamkit.cache.model_check` refuses a cache of another model before anything is read.
"""
