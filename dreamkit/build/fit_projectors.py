"""Check of projectors: each maps the width of one part to that of the next."""

from __future__ import annotations

from dataclasses import replace

from dreamkit.build.fit_record import Fit, part_section
from dreamkit.errors import count
from dreamkit.parts.specs import ProjectorSpec
from dreamkit.recipe.sections import ModelSection


def fit_projectors(fit: Fit, model: ModelSection) -> None:
    language, vision, decoder = fit.language_model, fit.vision_encoder, fit.image_decoder
    if language and vision:
        _fit_projector(fit, model, "visual_projector", vision.dim, vision.num_tokens, language.dim)
    if language and decoder and model.dream_queries is not None:
        spec = _fit_projector(
            fit,
            model,
            "condition_projector",
            language.dim,
            model.dream_queries,
            decoder.context_dim,
            decoder.context_scale,
        )
        expected = decoder.context_tokens
        if spec and expected not in (None, spec.out_tokens):
            # otherwise the projector's own settings determine the number of tokens
            follows_queries = spec.out_tokens == model.dream_queries
            queries = f"set model.dream_queries to {expected}, or " if follows_queries else ""
            fit.problem(
                "model.condition_projector",
                f"expected {count(expected, 'token')} for the image decoder "
                f"({fit.recipe.place('model.image_decoder')}), got {spec.out_tokens} from "
                f"{count(model.dream_queries, 'dream query')} ({fit.recipe.place('model.dream_queries')}); "
                f"{queries}name a projector that returns {expected}, "
                f"such as {{name: resampler, tokens: {expected}}}",
            )
    if not decoder:
        return
    if decoder.pooled_dim is None:
        _fit_without_pooled(fit, model)
    elif language:
        spec = _fit_projector(fit, model, "pooled_projector", language.dim, 1, decoder.pooled_dim)
        if spec and spec.out_tokens != 1:
            fit.problem(
                "model.pooled_projector",
                f"expected 1 token from 1, got {spec.out_tokens}; set its number of tokens to 1, or name another "
                "projector, such as linear",
            )


def _fit_projector(
    fit: Fit,
    model: ModelSection,
    key: str,
    in_dim: int,
    in_tokens: int,
    out_dim: int,
    out_rms: float = 1.0,
) -> ProjectorSpec | None:
    """Infer the spec of the projector `key`, and check it against the widths of its neighbours."""
    section = part_section(model, key)
    if section is None:
        return None
    widths = {"in_dim": in_dim, "in_tokens": in_tokens, "out_dim": out_dim}
    spec: ProjectorSpec | None = fit.infer_spec("projector", f"model.{key}", section, **widths)
    if spec is None:
        return None
    for name, width in widths.items():
        if getattr(spec, name) != width:
            fit.problem(
                f"model.{key}",
                f"expected {name} {width} between its neighbours, got {getattr(spec, name)} from '{section.name}'; "
                "name another projector",
            )
            return None
    fit.projectors[key] = spec = replace(spec, out_rms=out_rms)
    return spec


def _fit_without_pooled(fit: Fit, model: ModelSection) -> None:
    """Check that nothing names a pooled projector, since the image decoder takes no pooled vector."""
    place = fit.recipe.place("model.image_decoder")
    message = f"the image decoder ({place}) takes no pooled vector; remove it"
    if model.pooled_projector is not None:
        fit.problem(
            "model.pooled_projector", f"unused '{model.pooled_projector.name}': {message} or set it to null"
        )
    if fit.recipe.train and "pooled_projector" in (fit.recipe.train.trainable or ()):
        fit.problem("train.trainable", f"no 'pooled_projector' in this model: {message}")
