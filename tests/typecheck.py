"""The type checker that every weightsmith call goes through in the tests: beartype, with an int allowed as a float."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
