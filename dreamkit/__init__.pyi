# The public names and the modules that define them. `dreamkit/__init__.py` imports a module at the first use of a name.

from .build.build import build_model as build_model
from .checkpoints.load import load_checkpoint as load_checkpoint
from .checkpoints.save import save_checkpoint as save_checkpoint
from .data.dataset import Dataset as Dataset
from .data.document_reads import read_error as read_error
from .data.image_files import decode_picture as decode_picture
from .data.index_cost import index_counts as index_counts
from .data.index_store import indexed as indexed
from .data.mixture import Mixture as Mixture
from .data.range_reads import RangeReads as RangeReads
from .data.records import ImagePaths as ImagePaths
from .data.unpacked_files import open_packed as open_packed, unpacked as unpacked
from .document import Document as Document, Image as Image, Text as Text
from .errors import (
    CacheError as CacheError,
    CheckpointError as CheckpointError,
    ConfigError as ConfigError,
    DocumentError as DocumentError,
    DreamkitError as DreamkitError,
    OutputError as OutputError,
    PluginError as PluginError,
    RecipeError as RecipeError,
    SourceError as SourceError,
    StorageError as StorageError,
    TrainingError as TrainingError,
    count as count,
    describe_error as describe_error,
    describe_value as describe_value,
    did_you_mean as did_you_mean,
    excerpt as excerpt,
    library_errors as library_errors,
    printable as printable,
)
from .evaluation.task import Task as Task
from .model.engine import Engine as Engine, Handle as Handle
from .model.events import (
    DenoisingStep as DenoisingStep,
    DocumentDone as DocumentDone,
    DocumentFailed as DocumentFailed,
    ImageDone as ImageDone,
    ImageStarted as ImageStarted,
    TextPiece as TextPiece,
    TokenScore as TokenScore,
    collect as collect,
)
from .model.likelihood import LogLikelihood as LogLikelihood
from .model.model import DreamModel as DreamModel
from .model.placing import place as place
from .parts.conversation import Turn as Turn, TurnPiece as TurnPiece
from .parts.decoder import Extras as Extras, ImageDecoder as ImageDecoder
from .parts.language import LanguageModel as LanguageModel
from .parts.pictures import to_rgb as to_rgb
from .parts.pooling import PoolingConfig as PoolingConfig
from .parts.projector import Projector as Projector
from .parts.sampling import Scheduler as Scheduler
from .parts.specs import (
    ChatTemplate as ChatTemplate,
    Condition as Condition,
    DecoderSpec as DecoderSpec,
    Embedding as Embedding,
    Head as Head,
    LanguageSpec as LanguageSpec,
    NormWeights as NormWeights,
    PartConfig as PartConfig,
    ProjectorSpec as ProjectorSpec,
    Spans as Spans,
    VisionSpec as VisionSpec,
)
from .parts.vision import VisionEncoder as VisionEncoder
from .recipe.generation_section import GenerationSection as GenerationSection
from .recipe.loading import load_recipe as load_recipe
from .registry.hookspecs import Component as Component, hookimpl as hookimpl
from .registry.registry import Registry as Registry
from .storage.json_files import read_json as read_json
from .storage.sources import locate as locate
from .storage.stored_weights import StoredWeights as StoredWeights, stored_weights as stored_weights
from .storage.urls import Location as Location, Url as Url, location as location
from .storage.writing import write_text as write_text
from .training.reading_updates import read_updates as read_updates
from .training.run import train_recipe as train_recipe
