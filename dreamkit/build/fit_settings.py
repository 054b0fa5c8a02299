"""Check of settings beside the parts: row length, special tokens, scheduler, loss, images."""

from __future__ import annotations

from dataclasses import asdict

from dreamkit.build.fit_record import Fit
from dreamkit.data.shrinking import KEY, unknown_side
from dreamkit.errors import count, excerpt
from dreamkit.recipe.sections import ModelSection
from dreamkit.storage.json_files import key_problem


def fit_lengths(fit: Fit, model: ModelSection) -> None:
    train, language = fit.recipe.train, fit.language_model
    if not train or not language:
        return
    place = fit.recipe.place("model.language_model")
    if train.max_length is not None and train.max_length > language.max_length:
        fit.problem(
            "train.max_length",
            f"expected at most the language model's {count(language.max_length, 'token')} ({place}), "
            f"got {train.max_length}",
        )
    if train.packing and not language.packing:
        fit.problem(
            "train.packing",
            f"the language model ({place}) cannot separate documents in one row; set it to false or leave it out",
        )
    visual = fit.projectors.get("visual_projector")
    length = language.max_length if train.max_length is None else train.max_length
    if visual and model.dream_queries is not None:
        # as in `dreamkit.data.sequence`: two tokens around each kind of slots, and those of the whole document; a batch
        # without images has a dummy of this length
        drawn, read = model.dream_queries + 2, visual.out_tokens + 2
        around = 1 if language.bos_id is None else 2
        if drawn + read + around > length:
            key = "model.dream_queries" if train.max_length is None else "train.max_length"
            longer = "raise train.max_length, " if length < language.max_length else ""
            ends = "</s> one" if around == 1 else "<s> and </s> one each"
            fit.problem(
                key,
                f"an image that is drawn and read back takes {drawn} + {count(read, 'token')}, and {ends}, but "
                f"a row has {length}; {longer}lower model.dream_queries ({model.dream_queries}), or name a vision "
                f"encoder or visual projector with fewer than {count(visual.out_tokens, 'token')}",
            )


def fit_tokens(fit: Fit, model: ModelSection) -> None:
    if model.special_tokens is None:
        return
    first: dict[str, str] = {}
    for name, token in asdict(model.special_tokens).items():
        key, other = f"model.special_tokens.{name}", first.setdefault(token, name)
        if not token.strip() or key_problem(token):  # a checkpoint has tokens as keys
            fit.problem(key, f"expected the name of a token, such as <{name}>, got '{excerpt(token)}'")
        elif {other, name} not in ({name}, {"image_patch", "dream_patch"}):
            fit.problem(key, f"'{token}' is also {other}; rename one of them")
        elif fit.language_model and token in fit.language_model.reserved_tokens:
            place = fit.recipe.place("model.language_model")
            fit.problem(key, f"'{token}' is reserved by the language model ({place}); choose another name")


def fit_generation(fit: Fit) -> None:
    options, decoder = fit.recipe.generation, fit.image_decoder
    if not options or not decoder:
        return
    name = options.scheduler
    try:
        if options.size is not None:
            decoder.latent_shape(options.size)
    except ValueError as error:
        place = fit.recipe.place("model.image_decoder")
        fit.problem("generation.size", f"{error}; the image decoder draws no others ({place})")
    if name is None or decoder.schedulers is None or name in decoder.schedulers:
        return
    objective = f", {decoder.objective}" if decoder.objective else ""
    fit.problem(
        "generation.scheduler",
        f"expected one of {', '.join(decoder.schedulers)}, for the image decoder's objective{objective} "
        f"({fit.recipe.place('model.image_decoder')}), got '{excerpt(str(name))}'",
    )


def fit_loss(fit: Fit, model: ModelSection) -> None:
    """Report a denoising loss of weight 0 if no other loss reaches a trained part."""
    loss, train = fit.recipe.loss, fit.recipe.train
    if not loss or loss.denoising != 0 or not train or not train.trainable:
        return
    trained = {*train.trainable, *(adapter.target for adapter in model.adapters or ())}
    if trained <= {"condition_projector", "pooled_projector", "image_decoder"}:
        fit.problem(
            "train.trainable",
            f"only drawing trains {', '.join(sorted(trained))}, but loss.denoising is 0 ({fit.recipe.place('loss')}); "
            "raise loss.denoising or train another part",
        )


def fit_images(fit: Fit) -> None:
    """Report a part that does not state how large it needs images, if they are to be decoded smaller."""
    if not fit.recipe.train or fit.recipe.train.decode_margin is None:
        return
    for part in ("vision_encoder", "image_decoder"):
        spec = getattr(fit, part)
        if spec is not None and spec.resized_side is None:
            fit.problem(KEY, unknown_side(part))
