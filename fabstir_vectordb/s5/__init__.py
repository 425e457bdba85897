"""S5 identity and formats: pure functions over bytes, without I/O.

``cid`` has the identifiers of blobs, ``phrase`` and ``keys`` derive keys from a secret, ``cipher`` has the two blob
encryptions, ``dirv1`` the root directory, ``registry`` the signed pointers, ``cbor`` and ``compress`` the codecs.
All of them read what S5.js writes (generation A of S5: HTTP portals, 15-word phrases).
"""
