"""Saving and loading: a version of an index as encrypted S5 blobs.

``save`` and ``load`` are the two pipelines, top to bottom; ``manifest`` is what a version says about itself,
``records`` the history and the catalogue beside the versions, ``versions`` what all of them share.
"""
