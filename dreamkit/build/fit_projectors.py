"""Projectors between parts: they bring tokens from the width of one to that of the next."""

from __future__ import annotations

from dataclasses import replace

from dreamkit.build.fit_record import Fit, part_section
from dreamkit.parts.specs import ProjectorSpec
from dreamkit.recipe.sections import ModelSection


def fit_projectors(found: Fit, model: ModelSection) -> None:
    language, vision, decoder = found.language_model, found.vision_encoder, found.image_decoder

    def project(
        key: str, in_dim: int, in_tokens: int, out_dim: int, out_rms: float = 1.0
    ) -> ProjectorSpec | None:
        section = part_section(model, key)
        if section is None:
            return None
        widths = {"in_dim": in_dim, "in_tokens": in_tokens, "out_dim": out_dim}
        spec: ProjectorSpec | None = found.spec("projector", f"model.{key}", section, **widths)
        for name, width in widths.items() if spec is not None else ():
            if getattr(spec, name) != width:
                found.problem(
                    f"model.{key}",
                    f"'{section.name}' has {name} {getattr(spec, name)}, but its neighbours have {width}; "
                    "name another projector",
                )
                return None
        if spec is not None:
            spec = replace(spec, out_rms=out_rms)
            found.projectors[key] = spec
        return spec

    if language and vision:
        project("visual_projector", vision.dim, vision.num_tokens, language.dim)
    if language and decoder and model.dream_queries is not None:
        spec = project(
            "condition_projector",
            language.dim,
            model.dream_queries,
            decoder.context_dim,
            decoder.context_scale,
        )
        if spec and decoder.context_tokens not in (None, spec.out_tokens):
            follows = spec.out_tokens == model.dream_queries  # else the projector's own settings say how many
            queries = f"set model.dream_queries to {decoder.context_tokens}, or " if follows else ""
            found.problem(
                "model.condition_projector",
                f"it gives {spec.out_tokens} tokens for {model.dream_queries} dream queries "
                f"({found.recipe.place('model.dream_queries')}), but the image decoder takes {decoder.context_tokens} "
                f"({found.recipe.place('model.image_decoder')}); {queries}name a projector that gives "
                f"{decoder.context_tokens}, such as {{name: resampler, tokens: {decoder.context_tokens}}}",
            )
    if language and decoder and decoder.pooled_dim is not None:
        spec = project("pooled_projector", language.dim, 1, decoder.pooled_dim)
        if spec and spec.out_tokens != 1:
            found.problem(
                "model.pooled_projector",
                f"it makes {spec.out_tokens} tokens of 1, but a pooled vector is 1; set its tokens to 1 where it has "
                "such a setting, or name another projector, such as linear",
            )
    if decoder and decoder.pooled_dim is None and model.pooled_projector is not None:
        found.problem(
            "model.pooled_projector",
            f"'{model.pooled_projector.name}' found, but the image decoder takes no pooled vector "
            f"({found.recipe.place('model.image_decoder')}); remove it, or set it to null",
        )
    trainable = found.recipe.train.trainable if found.recipe.train else None
    if decoder and decoder.pooled_dim is None and "pooled_projector" in (trainable or ()):
        found.problem(
            "train.trainable",
            "'pooled_projector' found, but this model has none: its image decoder takes no pooled vector; remove it",
        )
