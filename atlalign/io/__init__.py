"""File formats, independent of brains and atlases: images, tables, volumes, and files that are written atomically."""
