"""Recognition of brain sections in images, before anything is known about their place.

A network that knows coronal sections of the mouse brain answers to square views of the tissue: which plane it shows, a
whole section or a half, and how large an error it expects. Tissue that is no section gets a large one.
"""
