"""A language model for dreamkit. Listing it imports no torch."""

from dreamkit import Component, hookimpl


@hookimpl
def dreamkit_language_models():
    return [
        Component("scribe", "dreamkit_scribe.scribe:Scribe", "a small causal transformer that writes bytes")
    ]
