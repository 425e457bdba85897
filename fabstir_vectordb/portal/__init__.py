"""A small S5 node over a local directory, for development, for tests, and to serve a store to other S5 clients.

Extra ``portal``. It answers as the S5 reference says nodes and gateways answer, and is no node of the network: it has
no peers and no pins. Web pages of other origins cannot use it unless they are allowed to (`guard`): a page that
somebody looks at must not reach a portal on their own machine.
"""
