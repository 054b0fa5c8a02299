"""The section `generation` of a recipe, which holds the settings of every generation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from dreamkit.errors import ConfigError, excerpt
from dreamkit.recipe.fields import setting

# Tokens or images of one document, and its dream queries: more than any language model reads.
MAX_TOKENS: Final = 10**8
# A side of a drawn image in pixels: an image of this size would take 12 GB.
MAX_SIDE: Final = 2**16
# Alternatives of a written token: fifty times the most of OpenAI's API.
MAX_ALTERNATIVES: Final = 1000
# Rows of one document: many times those of any published search.
MAX_BEAMS: Final = 1000
# The power of a length: a probability divided by it stays a finite number.
MAX_LENGTH_PENALTY: Final = 30.0
# A repetition penalty, or 1 over it: a logit that it multiplies stays finite.
MAX_PENALTY: Final = 1000.0


@dataclass(frozen=True)
class GenerationSection:
    """Generation of at most `max_tokens` tokens of text and `max_images` images.

    `steps` is the number of denoising steps, `guidance` the scale of classifier-free guidance away from
    `negative_prompt`. `size` is (height, width) of images in pixels (None: the decoder's own). After every
    `preview_every` steps, the unfinished image is decoded for the events (0: only when it is asked for).
    At `temperature` 0, the most likely token is written. `top_k` (0 or None: all) and `min_p` limit the tokens, as
    `top_p` does. `repetition_penalty` divides the logits of tokens that the document has.
    With `beams` above 1, beam search writes the most likely text that it finds, and draws nothing. Scores are divided
    by the length to the power of `length_penalty`.
    Text ends before a string of `stop`. `ignore_eos` continues after an end token.
    `log_probs` adds the log probability of each written token to the events, and of as many alternatives (None: none);
    `dream_probs` adds the probability of the dream token.
    """

    scheduler: str | None = None
    steps: int = setting(15, least=1, most=100_000)  # a scheduler computes a value for each before the first
    guidance: float = setting(7.5, least=0)
    negative_prompt: str = ""
    size: tuple[int, int] | None = setting(None, least=1, most=MAX_SIDE)
    preview_every: int = setting(0, least=0, most=100_000)
    max_tokens: int = setting(256, least=1, most=MAX_TOKENS)
    max_images: int = setting(8, least=0, most=MAX_TOKENS)
    temperature: float = setting(0.0, least=0)
    top_k: int | None = setting(0, least=0, most=MAX_TOKENS)
    top_p: float = setting(1.0, above=0, most=1)
    min_p: float = setting(0.0, least=0, most=1)
    repetition_penalty: float = setting(1.0, least=1 / MAX_PENALTY, most=MAX_PENALTY)
    beams: int = setting(1, least=1, most=MAX_BEAMS)
    length_penalty: float = setting(1.0, least=-MAX_LENGTH_PENALTY, most=MAX_LENGTH_PENALTY)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    log_probs: int | None = setting(None, least=0, most=MAX_ALTERNATIVES)
    dream_probs: bool = False

    @property
    def most_images(self) -> int:
        """The most images of a document: `max_images`, or none with several beams."""
        return self.max_images if self.beams == 1 else 0

    def __post_init__(self) -> None:
        if self.beams > 1:
            self._check_beams()
        for text in self.stop:
            if not text or "\ufffd" in text:
                raise ConfigError(
                    {
                        "stop": f"expected texts of whole characters, at least one each, got '{excerpt(text)}'; remove "
                        "it (\\ufffd stands for bytes that are no character)"
                    }
                )

    def _check_beams(self) -> None:
        """Refuse settings that have no meaning with several beams."""
        wrong = {
            "temperature": (self.temperature > 0, "0", "beam search does not sample"),
            "log_probs": (self.log_probs is not None, "null", "beam search chooses whole texts"),
            "dream_probs": (self.dream_probs, "false", "beam search draws nothing"),
        }
        problems = {
            name: f"expected {value} with beams {self.beams}, got {json.dumps(getattr(self, name))}; {reason}, so set "
            f"{name} to {value} or beams to 1"
            for name, (is_wrong, value, reason) in wrong.items()
            if is_wrong
        }
        if problems:
            raise ConfigError(problems)
