"""Input embeddings of words, images and dream queries in one pass."""

from dreamkit.kernels.assemble_embeddings.op import assemble_embeddings
from dreamkit.kernels.assemble_embeddings.reference import fill_slots, look_up

__all__ = ["assemble_embeddings", "fill_slots", "look_up"]
