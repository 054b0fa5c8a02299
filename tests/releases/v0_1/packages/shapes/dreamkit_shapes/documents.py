"""Documents about coloured shapes, each made when it is asked for."""

from dataclasses import dataclass
from typing import Literal

from PIL import Image as PIL, ImageDraw

from dreamkit import ConfigError, Dataset, Document, DocumentError, Image, Text

COLOURS, FORMS = ("red", "green", "blue"), ("disc", "box")
KINDS = ("read", "draw", "both", "chat")


def shape(colour: str, form: str, side: int = 16):
    picture = PIL.new("RGB", (side, side), "white")
    edges = (side // 4, side // 4, side - side // 4, side - side // 4)
    draw = ImageDraw.Draw(picture)
    (draw.ellipse if form == "disc" else draw.rectangle)(edges, fill=colour)
    return picture


class Shapes(Dataset):
    @dataclass(frozen=True)
    class Config:
        """`kinds`: what is done with a shape. `side` of a picture in pixels."""

        kinds: tuple[Literal["read", "draw", "both", "chat"], ...] = KINDS
        side: int = 16

        def __post_init__(self):
            if not self.kinds:
                raise ConfigError({"kinds": f"none found; give some of {', '.join(KINDS)}"})

    def __init__(self, config: Config):
        self.config = config

    def __len__(self):
        return len(COLOURS) * len(FORMS) * len(self.config.kinds)

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < len(self):
            raise DocumentError(f"there is no shape {index}; there are {len(self)}")
        rest, kind = divmod(index, len(self.config.kinds))
        form, colour = FORMS[rest % len(FORMS)], COLOURS[rest // len(FORMS)]
        picture, words, name = shape(colour, form, self.config.side), f"{colour} {form}", f"shape {index}"
        match self.config.kinds[kind]:
            case "read":
                return Document((Image(picture), Text(f"is a {words}")), name=name)
            case "draw":
                return Document((Text(words, learn=False), Image(picture, draw=True, read=False)), name=name)
            case "both":
                return Document.interleave(f"a {words} <draw> or <image>", [picture, picture], name=name)
        asked = Document.interleave("<image> is?", [picture], name=name, role="user")
        return asked + Document((Text(words, role="assistant"),))
