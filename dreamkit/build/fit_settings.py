"""Settings beside the parts: lengths of rows, names of tokens, the scheduler, and what learns."""

from __future__ import annotations

from dreamkit.build.fit_record import Fit
from dreamkit.recipe.sections import ModelSection


def fit_lengths(found: Fit, model: ModelSection) -> None:
    train, language = found.recipe.train, found.language_model
    if not train or not language:
        return
    if train.max_length is not None and train.max_length > language.max_length:
        found.problem(
            "train.max_length",
            f"rows of {train.max_length} tokens, but the language model takes at most {language.max_length} "
            f"({found.recipe.place('model.language_model')}); set it to {language.max_length} or less",
        )
    if train.packing and not language.packing:
        found.problem(
            "train.packing",
            "true found, but the language model cannot keep documents in one row apart "
            f"({found.recipe.place('model.language_model')}); set it to false, or leave it out",
        )
    visual = found.projectors.get("visual_projector")
    room = language.max_length if train.max_length is None else train.max_length
    if visual and model.dream_queries is not None:
        # as in `dreamkit.data.sequence`: both kinds of slots stand between two tokens, all between <s> and </s>
        drawn, read = model.dream_queries + 2, visual.out_tokens + 2
        if drawn + read + 2 > room:
            key = "model.dream_queries" if train.max_length is None else "train.max_length"
            longer = "raise train.max_length, " if room < language.max_length else ""
            found.problem(
                key,
                f"an image that is drawn and read back takes {drawn} + {read} tokens, and <s> and </s> one each, but a "
                f"row holds {room}; {longer}lower model.dream_queries ({model.dream_queries}), or take "
                f"a vision encoder or visual projector with fewer than {visual.out_tokens} tokens",
            )


def fit_tokens(found: Fit, model: ModelSection) -> None:
    tokens = model.special_tokens
    if tokens is None:
        return
    apart: dict[str, str] = {}
    for name in ("dream_start", "dream_end", "image_start", "image_end", "image_patch", "dream_patch"):
        token = getattr(tokens, name)
        other = apart.setdefault(token, name)
        if not token.strip():
            found.problem(
                f"model.special_tokens.{name}", f"'{token}' found, but a token has a name, such as <{name}>"
            )
        elif other != name and (other, name) != ("image_patch", "dream_patch"):
            found.problem(
                f"model.special_tokens.{name}",
                f"'{token}' found, which is also {other}; give one another name",
            )
        elif found.language_model and token in found.language_model.reserved_tokens:
            found.problem(
                f"model.special_tokens.{name}",
                f"'{token}' found, which starts, ends or pads the language model's texts "
                f"({found.recipe.place('model.language_model')}); give it another name",
            )


def fit_generation(found: Fit) -> None:
    name, decoder = found.recipe.generation and found.recipe.generation.scheduler, found.image_decoder
    known = None if decoder is None else decoder.schedulers
    if decoder is not None and name is not None and known is not None and name not in known:
        objective = f", {decoder.objective}" if decoder.objective else ""
        found.problem(
            "generation.scheduler",
            f"'{name}' is none of the schedulers that fit the image decoder's objective{objective} "
            f"({found.recipe.place('model.image_decoder')}); name one of these: {', '.join(known)}",
        )


def fit_loss(found: Fit, model: ModelSection) -> None:
    """Refuse a denoising loss of weight 0 if no other loss reaches anything that is trained."""
    loss, train = found.recipe.loss, found.recipe.train
    if not loss or loss.denoising != 0 or not train or not train.trainable:
        return
    learning = {*train.trainable, *(adapter.target for adapter in model.adapters or ())}
    if learning <= {"condition_projector", "pooled_projector", "image_decoder"}:
        found.problem(
            "train.trainable",
            f"{', '.join(sorted(learning))} found, which only drawing reaches, but loss.denoising is 0 "
            f"({found.recipe.place('loss')}), so nothing would learn; give loss.denoising a weight, or "
            "train another part",
        )
