"""Texts and their words: how they are taken apart, which words count, and where a text has them."""
