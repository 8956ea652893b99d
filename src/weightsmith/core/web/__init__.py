"""Pages and REST interfaces of products on this machine only: checks of requests, problems, files of a page, a server.

It needs the packages fastapi, uvicorn and python-multipart, which a product's extra ``serve`` brings.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
