"""What the package's other compiled modules may use of the core; C is called through these functions alone."""
cimport cython
from libc.stdint cimport int32_t, int64_t

from thinkguard.core cimport _c as c


@cython.final
cdef class Tables:
    cdef c.tg_program program
    cdef readonly object arrays  # read-only mappings
    cdef readonly object scalars
    cdef readonly Tables turns
    cdef readonly Tables shown
    cdef int point(self, dict at) except -1
    cdef int32_t checked_pair(self, int32_t pair) except -1


@cython.final
cdef class BoundPolicy:
    cdef c.tg_policy *policy  # in `block`, one for each pair, the tokens of their sequences behind them
    cdef readonly object block
    cdef readonly Tables tables
    cdef readonly object source
    cdef readonly object tokens
    cdef readonly object fields


@cython.final
cdef class ThinkState:
    cdef c.tg_state state
    cdef c.tg_loop *loop
    cdef readonly BoundPolicy policy


cdef struct Member:  # where a state and what it stands on lie in memory; good as long as the state lives
    const c.tg_program *program
    const c.tg_policy *policy
    c.tg_state *state
    c.tg_loop *loop


cdef Member member_of(ThinkState state) noexcept
cdef void advance_one(const Member *member, int64_t token) noexcept nogil
cdef void decide_one(const Member *member, c.tg_action *action) noexcept nogil
cdef void prefetch_edit(const Member *member, const c.tg_action *action, const void *logits, int dtype, int64_t stride,
                        int32_t width) noexcept nogil
cdef int32_t edit_one(const Member *member, const c.tg_action *action, void *logits, int dtype, int64_t stride,
                      int32_t width) noexcept nogil
