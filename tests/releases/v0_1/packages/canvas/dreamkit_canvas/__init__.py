"""An image decoder for dreamkit. Listing it imports no torch."""

from dreamkit import Component, hookimpl


@hookimpl
def dreamkit_image_decoders():
    return [
        Component("canvas", "dreamkit_canvas.decoder:Canvas", "a flow in the latents of a small autoencoder")
    ]
