"""The contract, one function a clause, in the order in which they are checked.

A clause's docstring has its title and the likely causes of a failure, which the error repeats.
"""

from collections.abc import Callable

from fastweights.testing.case import Case
from fastweights.testing.clauses.documents import a_document_starts_anew
from fastweights.testing.clauses.forms import (
    a_sequence_may_be_split_anywhere,
    chunks_equal_scan,
    outputs_equal_run,
    scan_equals_the_definition,
    sequences_do_not_see_each_other,
    the_future_is_unseen,
)
from fastweights.testing.clauses.numbers import (
    extremes_stay_finite,
    gradients_are_right,
    tokens_may_be_bfloat16,
)
from fastweights.testing.clauses.state import (
    a_saved_state_goes_on,
    a_second_call_compiles_nothing,
    an_identity_token_changes_nothing,
    carry_is_a_fix_point,
    reset_forgets,
    tokens_are_made_of_slots,
)

Clause = Callable[[Case], None]

#: a clause of the state before the forms, which it would break too
CLAUSES: tuple[Clause, ...] = (
    carry_is_a_fix_point,
    a_saved_state_goes_on,
    tokens_are_made_of_slots,
    reset_forgets,
    an_identity_token_changes_nothing,
    scan_equals_the_definition,
    chunks_equal_scan,
    outputs_equal_run,
    a_document_starts_anew,
    a_sequence_may_be_split_anywhere,
    the_future_is_unseen,
    sequences_do_not_see_each_other,
    gradients_are_right,
    tokens_may_be_bfloat16,
    extremes_stay_finite,
    a_second_call_compiles_nothing,
)
