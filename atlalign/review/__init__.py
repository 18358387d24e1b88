"""A local page on which the user checks registered sections and corrects them."""
