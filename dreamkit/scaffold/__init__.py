"""A new plug-in package: it installs, registers a small working part or data set, and passes its contract test.

The part or data set is a copy of a module of `dreamkit.scaffold.parts`; the other files are templates.
"""

from dreamkit.scaffold.names import KINDS as KINDS, LICENSES as LICENSES
from dreamkit.scaffold.package import new_plugin as new_plugin
