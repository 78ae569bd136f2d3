"""`check_rule(rule)`: the contract every update rule must keep, for the library's and for your own.

The clauses compare the rule with its definition, one step a token, in every other form: a scan,
chunks, packed documents, pieces of a stream, a batch. They take gradients by autodiff and by finite
differences. So they need no reference implementation; compare your equations with one separately.

`clauses.py` has the contract, one function a clause; `definition.py` is the oracle of all forms.
"""

from fastweights.testing.check import CLAUSES, RuleContractError, check_rule

__all__ = ["CLAUSES", "RuleContractError", "check_rule"]
