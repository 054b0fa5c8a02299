"""dreamkit: DreamLLM as a modular toolkit. `__init__.pyi` lists the public names; importing dreamkit loads no torch."""

import lazy_loader

from dreamkit.neighbour import warn_if_mixed

warn_if_mixed()

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
