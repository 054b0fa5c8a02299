"""Cross entropy of the labelled rows, computed in chunks, so that the logits of all rows never exist at once."""

from dreamkit.kernels.label_loss.op import LabelLoss, label_loss

__all__ = ["LabelLoss", "label_loss"]
