"""A local page on which a person looks at registered sections and corrects them."""
