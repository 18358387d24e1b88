"""Recognition of brain sections in images, before anything is known about their place.

A network that knows coronal sections of the mouse brain looks at square views of the tissue. For each view, it returns
the plane, whether the section is whole or a half, and the error that it expects. This error is large for tissue that is
no section.
"""
