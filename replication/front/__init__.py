"""HTTP as a node and a gateway both serve it, and as their clients page through it. It knows neither of them.

A server that nobody can hold by doing nothing (``server``, ``crowd``, ``holding``), answers that are made once and read
by many (``pieces``), lists that come in pages (``pages``), and who is within which network (``networks``).
"""
