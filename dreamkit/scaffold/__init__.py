"""A new plug-in package: it installs, registers a small part that works, and passes its contract test.

The part itself is a module of `dreamkit.scaffold.parts`, which is checked like any other; the rest are templates.
"""

from dreamkit.scaffold.names import KINDS as KINDS, LICENSES as LICENSES
from dreamkit.scaffold.package import new_plugin as new_plugin
