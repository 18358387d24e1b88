"""How good a network is: measures of each section beside those of other methods, as tables and one page."""
