"""Saving and loading: a version of an index as encrypted S5 blobs.

``save`` and ``load`` are the two pipelines, top to bottom. ``manifest`` describes a version, ``records`` has the
history and the catalogue beside the versions, ``version`` the types that all of them share.
"""
