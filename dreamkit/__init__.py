"""dreamkit: DreamLLM as a modular toolkit. Everything public is importable from here; importing it loads no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamkit.checkpoint import load_checkpoint as load_checkpoint, save_checkpoint as save_checkpoint
    from dreamkit.dataset import Dataset as Dataset
    from dreamkit.diffusion import Scheduler as Scheduler
    from dreamkit.document import Document as Document, Image as Image, Text as Text
    from dreamkit.errors import (
        CacheError as CacheError,
        CheckpointError as CheckpointError,
        ConfigError as ConfigError,
        DocumentError as DocumentError,
        DreamkitError as DreamkitError,
        PluginError as PluginError,
        RecipeError as RecipeError,
        SourceError as SourceError,
        TrainingError as TrainingError,
        did_you_mean as did_you_mean,
    )
    from dreamkit.events import (
        DenoisingStep as DenoisingStep,
        DocumentDone as DocumentDone,
        ImageDone as ImageDone,
        ImageStarted as ImageStarted,
        TextPiece as TextPiece,
        collect as collect,
    )
    from dreamkit.hookspecs import Component as Component, hookimpl as hookimpl
    from dreamkit.interfaces import (
        Extras as Extras,
        ImageDecoder as ImageDecoder,
        LanguageModel as LanguageModel,
        Projector as Projector,
        VisionEncoder as VisionEncoder,
    )
    from dreamkit.model import DreamModel as DreamModel
    from dreamkit.pictures import to_rgb as to_rgb
    from dreamkit.plugins import Registry as Registry
    from dreamkit.pooling import PoolingConfig as PoolingConfig
    from dreamkit.recipe import load_recipe as load_recipe
    from dreamkit.sources import locate as locate
    from dreamkit.specs import (
        ChatTemplate as ChatTemplate,
        Condition as Condition,
        DecoderSpec as DecoderSpec,
        Embedding as Embedding,
        Head as Head,
        LanguageSpec as LanguageSpec,
        NormWeights as NormWeights,
        PartConfig as PartConfig,
        ProjectorSpec as ProjectorSpec,
        VisionSpec as VisionSpec,
    )
    from dreamkit.task import Task as Task
    from dreamkit.train import train as train_recipe  # noqa: F401

# public name -> module that defines it; `module:name` where a module of that name would hide it
_HOMES = {
    "CacheError": "errors",
    "ChatTemplate": "specs",
    "CheckpointError": "errors",
    "Component": "hookspecs",
    "Condition": "specs",
    "ConfigError": "errors",
    "Dataset": "dataset",
    "DecoderSpec": "specs",
    "DenoisingStep": "events",
    "Document": "document",
    "DocumentDone": "events",
    "DocumentError": "errors",
    "DreamModel": "model",
    "DreamkitError": "errors",
    "Embedding": "specs",
    "Extras": "interfaces",
    "Head": "specs",
    "Image": "document",
    "ImageDecoder": "interfaces",
    "ImageDone": "events",
    "ImageStarted": "events",
    "LanguageModel": "interfaces",
    "LanguageSpec": "specs",
    "NormWeights": "specs",
    "PartConfig": "specs",
    "PluginError": "errors",
    "PoolingConfig": "pooling",
    "Projector": "interfaces",
    "ProjectorSpec": "specs",
    "RecipeError": "errors",
    "Registry": "plugins",
    "Scheduler": "diffusion",
    "SourceError": "errors",
    "Task": "task",
    "Text": "document",
    "TextPiece": "events",
    "TrainingError": "errors",
    "VisionEncoder": "interfaces",
    "VisionSpec": "specs",
    "collect": "events",
    "did_you_mean": "errors",
    "hookimpl": "hookspecs",
    "load_checkpoint": "checkpoint",
    "load_recipe": "recipe",
    "locate": "sources",
    "save_checkpoint": "checkpoint",
    "to_rgb": "pictures",
    "train_recipe": "train:train",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dreamkit' has no attribute {name!r}")
    module, _, there = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(f"dreamkit.{module}"), there or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
