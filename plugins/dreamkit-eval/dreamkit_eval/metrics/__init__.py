"""Metrics that equal the reference implementations: captions, visual questions, yes or no, multiple choice.

Every figure is a raw value: 0.5 where a leaderboard prints 50. CIDEr is the exception of the field: it has no bound of
1, and leaderboards print it times 100 (CIDEr 1.154 is "115.4").
"""

from .bleu import bleu as bleu
from .cider import cider as cider, cider_each as cider_each
from .mmbench import mmbench as mmbench
from .mme import mme as mme
from .penn_treebank import caption_tokens as caption_tokens
from .pope import pope as pope
from .vqa import vqa_accuracy as vqa_accuracy
