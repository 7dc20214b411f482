"""Classification of images that are files: which, by whom, and the table of their classes."""
