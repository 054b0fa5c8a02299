"""What frozen parts make of pictures, computed once and read from disk: a folder of two tables at most.

    cache.json                     the manifest (`dreamkit.cache.manifest`)
    features-00000.safetensors     vision features, before the projector
    latents-00000.safetensors      mean and standard deviation of latents, and the decoder's extras

A row is found by what its picture holds (`dreamkit.cache.keys`), so data may come in any order and mixture. What made a
table (`dreamkit.cache.maker`) is compared before anything is read. `dreamkit.cache.write` writes it.
"""
