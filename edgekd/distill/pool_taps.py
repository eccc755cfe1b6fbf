"""The tap by which a loss reads what one member of a pool says: `member/@logits`, beside `member/PATH`."""

from __future__ import annotations

LOGITS = "@logits"
