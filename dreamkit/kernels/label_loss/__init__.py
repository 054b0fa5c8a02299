"""Cross entropy of the rows that have a label, in chunks of rows, without the logits of all of them."""

from dreamkit.kernels.label_loss.op import LabelLoss, label_loss

__all__ = ["LabelLoss", "label_loss"]
