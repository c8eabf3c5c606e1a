"""What can't be had on a node: told with its reason and the next step, never a lost capture."""

from __future__ import annotations


class Gap(Exception):
    """Something asked for can't be collected here. `what` names it, `why` says the reason, `hint` the next step.

    Said beforehand (`problems`), `whole` is whether the collector is of no use without it.
    """

    def __init__(self, what: str, why: str, hint: str = "", whole: bool = True):
        super().__init__(f"{what}: {why}" + (f" ({hint})" if hint else ""))
        self.what, self.why, self.hint, self.whole = what, why, hint, whole
