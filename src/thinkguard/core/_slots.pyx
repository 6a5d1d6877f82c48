"""States by batch index, for a host that keeps each request's output in a Python list, which is read here and nowhere else."""
cimport cython
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_Check
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport int32_t, int64_t, intptr_t
from libc.string cimport memcpy

from thinkguard.core cimport _c as c
from thinkguard.core._core cimport BoundPolicy, Member, ThinkState, advance_one, decide_one, edit_one, member_of

ACTION_FIELDS = 2 + sizeof(c.tg_action) // sizeof(int32_t)

cdef enum:
    PLACEHOLDER = -1  # the host's mark for a token that is sampled, but not known yet
    IMPOSSIBLE = -2  # stands for what is no token id at all


@cython.final
cdef class _Slot:
    """One guarded request: where it stands, and how much of its output was read."""

    cdef ThinkState state  # behind output[:seen]
    cdef ThinkState behind_prompt
    cdef Member member  # of `state`
    cdef list output  # the host's own, which grows
    cdef Py_ssize_t seen
    cdef int64_t last  # output[seen - 1] as it was read
    cdef int32_t policy  # index in Slots.policies


cdef struct Edit:  # what one row of logits needs at this step
    Member member
    c.tg_action action
    int32_t row
    int32_t policy


cdef inline int64_t token_at(list output, Py_ssize_t i) except? -3:
    cdef int overflow = 0
    item = output[i]
    if not PyLong_Check(item):
        return IMPOSSIBLE
    cdef int64_t token = PyLong_AsLongLongAndOverflow(item, &overflow)
    return IMPOSSIBLE if overflow else token


cdef int catch_up(_Slot slot) except -1:
    """Advance over the output's new tokens; 0 if one of them is not known yet. O(new tokens) unless some were discarded."""
    cdef list output = slot.output
    cdef Py_ssize_t length = len(output)
    cdef int64_t token
    if slot.seen and (length < slot.seen or token_at(output, slot.seen - 1) != slot.last):
        slot.state.rollback_to(slot.behind_prompt)  # tokens were discarded: walk what is left once more
        slot.seen = 0
    while slot.seen < length:
        token = token_at(output, slot.seen)
        if token == PLACEHOLDER:
            return 0
        advance_one(&slot.member, token)
        slot.last = token
        slot.seen += 1
    return 1


@cython.final
cdef class Slots:
    """The guarded requests of a batch by their index in it. A step reads what is new in their outputs, and no more.

    `policies` holds every distinct policy in use once; None stands where one is gone, until another takes its place.
    """

    cdef readonly Py_ssize_t num_guarded  # requests
    cdef readonly Py_ssize_t num_waiting  # of them, those that the last step left alone since a token is not known yet
    cdef list slots  # _Slot or None
    cdef list held  # the policies
    cdef list holders  # how many requests each policy has
    cdef Edit *edits  # [len(slots)]
    cdef Py_ssize_t num_edits  # of the last step
    cdef bint writes_rows  # one of them writes a whole row

    def __cinit__(self):
        self.edits = NULL
        self.slots, self.held, self.holders = [], [], []

    def __dealloc__(self):
        PyMem_Free(self.edits)

    def __reduce__(self):
        raise TypeError("Slots cannot be pickled: the lists in them are the host's own")

    @property
    def policies(self):
        return list(self.held)

    def put(self, Py_ssize_t index, ThinkState state not None, list output not None):
        """Guard the request at a batch index, in place of any that was there; `state` stands behind its prompt."""
        cdef _Slot slot = _Slot.__new__(_Slot)
        self.remove(index)
        slot.state, slot.behind_prompt, slot.output = state, state.copy(), output
        slot.member = member_of(state)
        slot.policy = self.hold(state.policy)
        self.set_at(index, slot)
        self.num_guarded += 1

    def remove(self, Py_ssize_t index):
        """Leave the request at a batch index alone from now on."""
        cdef _Slot slot = self.at(index)
        if slot is None:
            return
        self.set_at(index, None)
        self.num_guarded -= 1
        self.holders[slot.policy] -= 1
        if not self.holders[slot.policy]:
            self.held[slot.policy] = None

    def move(self, Py_ssize_t source, Py_ssize_t target, bint swap):
        """Move the request at `source`, guarded or not, to `target`; what was there is gone, or comes to `source`."""
        cdef _Slot slot = self.at(source)
        if source == target:
            return
        if not swap:
            self.remove(target)
        self.set_at(source, self.at(target))
        self.set_at(target, slot)

    def step(self, Py_ssize_t num_rows):
        """Read what the outputs have gained and decide; how many of the first `num_rows` requests need an edit.

        A request whose last token is not known yet waits: what the state before that token asks for may just have been
        done by it, and a forced token would be written twice. It goes on once the token is there.
        """
        cdef Py_ssize_t index
        cdef _Slot slot
        cdef Edit *edit
        self.num_edits = self.num_waiting = 0
        self.writes_rows = False
        for index in range(min(num_rows, len(self.slots)) if self.num_guarded else 0):
            slot = self.slots[index]
            if slot is None:
                continue
            if not catch_up(slot):
                self.num_waiting += 1
                continue
            edit = &self.edits[self.num_edits]
            decide_one(&slot.member, &edit.action)
            if edit.action.kind != c.TG_FREE:
                edit.member, edit.row, edit.policy = slot.member, <int32_t> index, slot.policy
                self.writes_rows |= edit.action.kind != c.TG_EDIT
                self.num_edits += 1
        return self.num_edits

    def edit(self, intptr_t address, int dtype, int64_t row_stride, int64_t stride, int32_t width, bint gathered=False):
        """Carry out the last step's edits in place; in how many rows what was due had been banned before.

        Row i of the logits is the request's at batch index i or, `gathered`, that of the i-th edit. Strides in elements.
        """
        cdef int64_t left
        if not self.writes_rows:  # a few scalars: releasing the GIL could cost more than it frees
            return self.carry_out(<char *> address, dtype, row_stride, stride, width, gathered)
        with nogil:
            left = self.carry_out(<char *> address, dtype, row_stride, stride, width, gathered)
        return left

    def write_actions(self, int32_t[:, ::1] out not None):
        """Write the last step's edits, one a row: batch index, index in `policies`, the fields of tg_action (bias as bits).

        out: [at least as many as `step` returned, ACTION_FIELDS]
        """
        cdef Py_ssize_t i
        if out.shape[0] < self.num_edits or out.shape[1] != ACTION_FIELDS:
            raise ValueError(f"out is [{out.shape[0]}, {out.shape[1]}], wanted [{self.num_edits}, {ACTION_FIELDS}]")
        for i in range(self.num_edits):
            out[i, 0], out[i, 1] = self.edits[i].row, self.edits[i].policy
            memcpy(&out[i, 2], &self.edits[i].action, sizeof(c.tg_action))

    cdef int64_t carry_out(self, char *logits, int dtype, int64_t row_stride, int64_t stride, int32_t width,
                           bint gathered) noexcept nogil:
        cdef Py_ssize_t i
        cdef int64_t left = 0, row_bytes = row_stride * (4 if dtype == c.TG_FLOAT32 else 2)
        cdef Edit *edit
        for i in range(self.num_edits):
            edit = &self.edits[i]
            left += not edit_one(&edit.member, &edit.action, logits + (i if gathered else edit.row) * row_bytes, dtype,
                                 stride, width)
        return left

    cdef _Slot at(self, Py_ssize_t index):
        if not 0 <= index <= 0x7FFFFFFF:
            raise IndexError(f"index {index} in a batch: must not be negative, nor beyond int32")
        return self.slots[index] if index < len(self.slots) else None

    cdef int set_at(self, Py_ssize_t index, _Slot slot) except -1:
        cdef void *edits
        self.num_edits = 0  # they point into states, of which one may be gone now
        if index >= len(self.slots):
            if slot is None:
                return 0
            edits = PyMem_Realloc(self.edits, (index + 1) * sizeof(Edit))
            if edits is NULL:
                raise MemoryError(f"no memory for a batch of {index + 1} requests")
            self.edits = <Edit *> edits  # at least as many as there are slots, if the next line fails too
            self.slots.extend([None] * (index + 1 - len(self.slots)))
        self.slots[index] = slot
        return 0

    cdef int32_t hold(self, BoundPolicy policy) except -1:
        """The policy's index in `policies`; a policy that is not there yet takes a place that is free."""
        cdef Py_ssize_t i, free = len(self.held)
        for i in range(len(self.held)):
            if self.held[i] is policy:
                self.holders[i] += 1
                return <int32_t> i
            if self.held[i] is None and free == len(self.held):
                free = i
        if free == len(self.held):
            self.held.append(None)
            self.holders.append(0)
        self.held[free], self.holders[free] = policy, 1
        return <int32_t> free
