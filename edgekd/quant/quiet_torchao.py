"""torchao's first import, without the deprecation line about its own enums that it makes torch log on stderr."""

from __future__ import annotations

import logging


def _import_quietly() -> None:
    logger = logging.getLogger("torch.utils._pytree")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import torchao.quantization.pt2e  # noqa: F401
    finally:
        logger.setLevel(level)


_import_quietly()
