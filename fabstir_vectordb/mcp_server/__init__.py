"""An agent's memory, and the server that offers it by the Model Context Protocol (command ``mcp``, extra ``mcp``).

``notes`` is what a memory holds, ``memory`` the memory itself, which knows no protocol, and ``server`` its tools and
resources.
"""
