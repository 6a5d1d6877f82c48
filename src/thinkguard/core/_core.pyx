"""Check, release the GIL, call C, raise. The rules are all in C; what is here knows Python's objects and a host's memory."""
cimport cython
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
)
from cpython.exc cimport PyErr_Clear
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int32_t, int64_t, intptr_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from types import MappingProxyType

import numpy as np

from thinkguard.core cimport _c as c
from thinkguard.core.ids import index_of, no_id, row_of
from thinkguard.errors import InputError

# Every constant of the header, by its name there without TG_; names.py gives them Python's types.
CONSTANTS = {
    "OK": c.TG_OK, "NO_MEMORY": c.TG_NO_MEMORY, "BAD_ARGUMENT": c.TG_BAD_ARGUMENT, "TOO_LARGE": c.TG_TOO_LARGE,
    "START": c.TG_START, "END": c.TG_END, "ANSWER": c.TG_ANSWER, "IMPLICIT": c.TG_IMPLICIT, "SPELLED": c.TG_SPELLED,
    "TOOL": c.TG_TOOL, "BODY": c.TG_BODY, "HEADER": c.TG_HEADER, "CALL_END": c.TG_CALL_END,
    "RECIPIENT": c.TG_RECIPIENT, "MULTI": c.TG_MULTI, "GROWS_END": c.TG_GROWS_END, "EXTENDS": c.TG_EXTENDS,
    "BEGINS_END": c.TG_BEGINS_END, "HALF_START": c.TG_HALF_START, "HALF_END": c.TG_HALF_END,
    "TEXT": c.TG_TEXT, "VISIBLE": c.TG_VISIBLE, "INERT": c.TG_INERT, "BOUNDARY": c.TG_BOUNDARY, "RAW": c.TG_RAW,
    "MARKUP": c.TG_MARKUP,
    "BEFORE": c.TG_BEFORE, "THINKING": c.TG_THINKING, "CLOSING": c.TG_CLOSING, "HEADING": c.TG_HEADING,
    "ANSWERING": c.TG_ANSWERING, "DONE": c.TG_DONE, "BY_NONE": c.TG_BY_NONE, "BY_MODEL": c.TG_BY_MODEL,
    "BY_BUDGET": c.TG_BY_BUDGET, "BY_BOUNDARY": c.TG_BY_BOUNDARY, "BY_LOOP": c.TG_BY_LOOP,
    "BY_IMPLICIT": c.TG_BY_IMPLICIT, "BY_PROMPT": c.TG_BY_PROMPT, "BODY_NONE": c.TG_BODY_NONE,
    "BODY_FREE": c.TG_BODY_FREE, "BODY_FINAL": c.TG_BODY_FINAL, "BODY_CALL": c.TG_BODY_CALL,
    "BODY_PREAMBLE": c.TG_BODY_PREAMBLE, "OPEN_FORCE": c.TG_OPEN_FORCE, "OPEN_ALLOW": c.TG_OPEN_ALLOW,
    "OPEN_FORBID": c.TG_OPEN_FORBID, "OPEN_AUTO": c.TG_OPEN_AUTO, "EOS_CLOSE": c.TG_EOS_CLOSE, "EOS_BAN": c.TG_EOS_BAN, "AT_LINE": c.TG_AT_LINE,
    "AT_SENTENCE": c.TG_AT_SENTENCE, "PER_TURN": c.TG_PER_TURN, "PER_BLOCK": c.TG_PER_BLOCK,
    "PREFIX_ANY": c.TG_PREFIX_ANY, "PREFIX_FORCED": c.TG_PREFIX_FORCED, "SEQ_PREFIX": c.TG_SEQ_PREFIX,
    "MARKERS_BAN": c.TG_MARKERS_BAN, "MARKERS_ALLOW": c.TG_MARKERS_ALLOW,
    "FLOAT32": c.TG_FLOAT32, "FLOAT16": c.TG_FLOAT16, "BFLOAT16": c.TG_BFLOAT16, "NO_LIMIT": c.TG_NO_LIMIT,
    "MAX_EOS": c.TG_MAX_EOS, "LOOP_PERIODS": c.TG_LOOP_PERIODS, "BLANK_PATIENCE": c.TG_BLANK_PATIENCE,
    "HEADER_PATIENCE": c.TG_HEADER_PATIENCE, "SEQ_NONE": c.TG_SEQ_NONE, "SEQ_OPEN": c.TG_SEQ_OPEN,
    "SEQ_CLOSE": c.TG_SEQ_CLOSE, "SEQ_OFF": c.TG_SEQ_OFF, "SEQ_EXTEND": c.TG_SEQ_EXTEND,
    "SEQ_PROGRAM": c.TG_SEQ_PROGRAM, "STATE_INERT": c.TG_STATE_INERT, "STATE_LOOP": c.TG_STATE_LOOP,
    "STATE_RECIPIENT": c.TG_STATE_RECIPIENT, "STATE_VIOLATION": c.TG_STATE_VIOLATION,
    "STATE_FORCED": c.TG_STATE_FORCED, "STATE_OPENS": c.TG_STATE_OPENS, "STATE_NO_CHAT": c.TG_STATE_NO_CHAT,
    "STATE_MARKUP": c.TG_STATE_MARKUP, "STATE_PARAGRAPH": c.TG_STATE_PARAGRAPH,
    "STATE_SPOKEN": c.TG_STATE_SPOKEN, "STATE_BARE": c.TG_STATE_BARE, "SEQ_BARE": c.TG_SEQ_BARE,
    "FORCE_AIM": c.TG_FORCE_AIM, "FREE": c.TG_FREE, "FORCE": c.TG_FORCE, "EDIT": c.TG_EDIT, "ALLOW": c.TG_ALLOW,
    "BAN_EOS": c.TG_BAN_EOS, "BAN_INERT": c.TG_BAN_INERT, "BAN_BLANK": c.TG_BAN_BLANK, "MOVE_EOS": c.TG_MOVE_EOS,
    "ONLY_CALL_END": c.TG_ONLY_CALL_END,
    "NOT_CALL_END": c.TG_NOT_CALL_END, "BAN_NEVER": c.TG_BAN_NEVER,
}

cdef c.tg_event an_event
cdef c.tg_node a_node
cdef c.tg_state a_state
memset(&an_event, 0, sizeof(c.tg_event))
memset(&a_node, 0, sizeof(c.tg_node))
memset(&a_state, 0, sizeof(c.tg_state))
STATE_FIELDS = tuple(<object> a_state)
SIZES = {
    "tg_program": sizeof(c.tg_program), "tg_policy": sizeof(c.tg_policy), "tg_loop": sizeof(c.tg_loop),
    "tg_slot": sizeof(c.tg_slot), "tg_edit": sizeof(c.tg_edit), "guard_slots": sizeof(c.tg_slots_step),
    "guard_sequences": sizeof(c.tg_sequences_step), "guard_edits": sizeof(c.tg_edits_step),
}
EVENT = np.dtype([(name, np.int32) for name in (<object> an_event)])
NODE = np.dtype([(name, np.int32) for name in (<object> a_node)])


cdef c.tg_ids ids_of(const int32_t[::1] token_ids) except *:
    """Contiguous ids as C takes them."""
    cdef c.tg_ids ids
    if token_ids.shape[0] and <intptr_t> &token_ids[0] % <intptr_t> sizeof(int32_t):
        raise InputError("token ids lie askew in memory (bytes read as int32?): pass a copy")
    ids.data, ids.stride, ids.bytes = &token_ids[0] if token_ids.shape[0] else NULL, 1, sizeof(int32_t)
    return ids


# Kernels in place: each takes the address of a step of csrc/guard.h, whose pointers lie in this process.

def guard_slots(intptr_t step, int32_t num_rows):
    """Bring the sequences up to date whose first rows are among the first `num_rows`, and edit their rows."""
    cdef int32_t row
    with nogil:
        for row in range(num_rows):
            c.tg_guard_slot(<const c.tg_slots_step *> step, row)


def guard_sequences(intptr_t step, int32_t num_rows):
    """The same for a host that hands over whole sequences."""
    cdef int32_t row
    with nogil:
        for row in range(num_rows):
            c.tg_guard_sequence(<const c.tg_sequences_step *> step, row)


def guard_edits(intptr_t step, int32_t num_edits):
    """Carry out edits."""
    cdef int32_t edit
    with nogil:
        for edit in range(num_edits):
            c.tg_guard_edit(<const c.tg_edits_step *> step, edit)


cdef int check(int status) except -1:
    if status == c.TG_NO_MEMORY:
        raise MemoryError("the marker tables do not fit in memory")
    if status == c.TG_BAD_ARGUMENT:
        raise ValueError("an empty marker, or a token's symbol or a marker's pair outside its table")
    if status == c.TG_TOO_LARGE:
        raise ValueError("the markers need more than 65,535 automaton nodes or token events: use fewer or shorter ones")
    return 0


cdef object copied(const void *data, Py_ssize_t count, object dtype):
    """A numpy copy of `count` elements."""
    array = np.empty(count, dtype)
    cdef uint8_t[::1] target = array.view(np.uint8)
    if count:
        memcpy(&target[0], data, target.shape[0])
    return array


# Token ids, whoever hands them over: what is no whole number is refused here, and nowhere else.

cdef int64_t id_of(str name, object value) except? -2:
    """What one value is as a token id, -1 for a whole number that is none; InputError for anything else."""
    cdef int overflow = 0
    cdef int64_t token
    if not PyLong_CheckExact(value):
        value = index_of(name, value)
    token = PyLong_AsLongLongAndOverflow(value, &overflow)
    return token if not overflow and 0 <= token <= 0x7FFFFFFF else -1


def int32_of(str name not None, ids):
    """The ids of a list or tuple as int32, None of anything else. Ten times numpy's pace. InputError for what is no id."""
    if type(ids) is not list and type(ids) is not tuple:
        return None
    cdef Py_ssize_t i, num = len(ids)
    cdef int64_t token
    array = np.empty(num, np.int32)
    cdef int32_t[::1] out = array
    for i in range(num):
        token = id_of(name, ids[i])
        if token < 0:
            raise no_id(name, index_of(name, ids[i]))
        out[i] = <int32_t> token
    return array


cdef int open_row(str name, object ids, Py_buffer *row) except -1:
    """Open a row of sampled ids as int64, where they lie or in a copy; numbers that are no ids stay none. The caller closes it."""
    if PyObject_CheckBuffer(ids):
        try:
            PyObject_GetBuffer(ids, row, PyBUF_FORMAT | PyBUF_STRIDES)
        except (BufferError, TypeError, ValueError):  # not strided, or of a type that buffers do not know
            pass
        else:
            if row.ndim == 1 and row.itemsize == sizeof(int64_t) and row.format[0] in b"lq" and not row.format[1] and not (
                <intptr_t> row.buf | row.strides[0]
            ) % <intptr_t> sizeof(int64_t):
                return 0
            PyBuffer_Release(row)
    if type(ids) is list or type(ids) is tuple:
        ids = np.array([id_of(name, value) for value in ids], np.int64)
    ids = row_of(name, ids).astype(np.int64)  # aligned, and in this machine's order of bytes
    PyObject_GetBuffer(ids, row, PyBUF_FORMAT | PyBUF_STRIDES)
    return 0


def lift(const uint8_t[::1] text not None, const int64_t[::1] offsets not None, const int32_t[::1] control not None,
         const int32_t[::1] symbols not None, const int32_t[::1] pattern_offsets not None,
         const int32_t[::1] kinds not None, const int32_t[::1] pairs not None, const int32_t[::1] control_bytes not None,
         const int32_t[::1] control_dropped not None, bytes space not None, int32_t num_pairs=1):
    """Build the automaton over the markers and lift it onto the vocabulary; a dict of arrays as in `tg_lift`."""
    cdef c.tg_vocab vocab
    cdef c.tg_patterns patterns
    cdef c.tg_lift *out = NULL
    cdef int status
    if offsets.shape[0] != control.shape[0] + 1 or pattern_offsets.shape[0] != kinds.shape[0] + 1:
        raise ValueError(f"{offsets.shape[0]} offsets for {control.shape[0]} tokens, {pattern_offsets.shape[0]} for "
                         f"{kinds.shape[0]} patterns: one more offset than items is needed")
    if offsets[0] < 0 or pattern_offsets[0] < 0:
        raise ValueError("the first offset is negative")
    if offsets[control.shape[0]] > text.shape[0] or pattern_offsets[kinds.shape[0]] > symbols.shape[0]:
        raise ValueError("the last offset lies behind the end of its data")
    if pairs.shape[0] != kinds.shape[0]:
        raise ValueError(f"{pairs.shape[0]} pairs for {kinds.shape[0]} patterns: one each is needed")
    if control_dropped.shape[0] != control_bytes.shape[0]:
        raise ValueError(f"{control_dropped.shape[0]} flags for {control_bytes.shape[0]} control tokens: one each is needed")
    cdef const uint8_t[::1] space_view = space if space else b"\0"
    vocab.num_tokens = control.shape[0]
    vocab.text = &text[0] if text.shape[0] else NULL
    vocab.offsets = &offsets[0]
    vocab.control = &control[0] if control.shape[0] else NULL
    patterns.num_patterns = kinds.shape[0]
    patterns.num_controls = control_bytes.shape[0]
    patterns.symbols = &symbols[0] if symbols.shape[0] else NULL
    patterns.offsets = &pattern_offsets[0]
    patterns.kinds = &kinds[0] if kinds.shape[0] else NULL
    patterns.pairs = &pairs[0] if pairs.shape[0] else NULL
    patterns.num_pairs = num_pairs
    patterns.control_bytes = &control_bytes[0] if control_bytes.shape[0] else NULL
    patterns.control_dropped = &control_dropped[0] if control_dropped.shape[0] else NULL
    patterns.space = &space_view[0]
    patterns.space_bytes = len(space)
    with nogil:
        status = c.tg_lift_new(&vocab, &patterns, &out)
    check(status)
    try:
        n, in_all = out.num_nodes, out.num_nodes * num_pairs
        return {
            "step": copied(out.step, vocab.num_tokens, np.uint32),
            "info": copied(out.info, vocab.num_tokens, np.uint32),
            "tail": copied(out.tail, vocab.num_tokens, np.uint32),
            "except_offset": copied(out.except_offset, n + 1, np.int32),
            "except_token": copied(out.except_token, out.num_except, np.int32),
            "except_step": copied(out.except_step, out.num_except, np.uint32),
            "mark_offset": copied(out.mark_offset, in_all + 1, np.int32),
            "mark_token": copied(out.mark_token, out.num_marks, np.int32),
            "mark_mask": copied(out.mark_mask, out.num_marks, np.uint32),
            "events": copied(out.events, out.num_events * num_pairs, EVENT),
            "nodes": copied(out.nodes, in_all, NODE),
            "depth": copied(out.depth, n, np.int32),
            "end_depth": copied(out.end_depth, in_all, np.int32),
            "end_of": copied(out.end_of, in_all, np.int32),
            "start_depth": copied(out.start_depth, n, np.int32),
            "start_of": copied(out.start_of, n, np.int32),
            "call_depth": copied(out.call_depth, n, np.int32),
            "call_of": copied(out.call_of, n, np.int32),
            "call_chars": copied(out.call_chars, n, np.int32),
        }
    finally:
        c.tg_lift_free(out)


# Every array of a tg_program, in the order in which they are laid out on a device.
cdef tuple ARRAYS = (
    "step", "info", "tail", "except_offset", "except_token", "except_step", "mark_offset", "mark_token", "mark_mask",
    "events", "nodes", "never", "inert", "blank", "partial1", "partial2", "partial3", "continuing1", "continuing2",
    "seq_offset", "seq_token", "name_offset", "name_token", "name_next",
)


cdef tuple UNSIGNED = ("step", "info", "tail", "except_step", "mark_mask")
cdef tuple ALIKE = (  # arrays of one length
    ("step", "info", "tail"), ("except_token", "except_step"), ("mark_token", "mark_mask"), ("name_token", "name_next"),
)


cdef object words_of(object array):
    """An array of 32-bit numbers, or of structs of them, as int32."""
    return array.reshape(-1).view(np.int32)


cdef dict frozen(object arrays, int num_pairs):
    """Read-only views of arrays that C can walk: of the wanted types, in one piece, as long as their offsets say."""
    cdef dict views = dict(arrays)
    missing = [name for name in ARRAYS if name not in views]
    if missing:
        raise ValueError(f"arrays has no {', '.join(missing)}: pass all that `compile_format` makes")
    for name, array in dict(views).items():
        if isinstance(array, np.ndarray):
            views[name] = array.view()
            views[name].flags.writeable = False
        if name not in ARRAYS:
            continue
        wanted = {"events": EVENT, "nodes": NODE}.get(name, np.dtype(np.uint32 if name in UNSIGNED else np.int32))
        if not isinstance(array, np.ndarray):
            raise ValueError(f"arrays[{name!r}] is of type {type(array).__name__}: wanted an array of {wanted}")
        if array.dtype != wanted or array.ndim != 1 or not array.flags.c_contiguous or not array.flags.aligned:
            raise ValueError(f"arrays[{name!r}] has shape {list(array.shape)} and type {array.dtype}: wanted one contiguous "
                             f"row of {wanted}")
    for names in ALIKE:
        if len({len(views[name]) for name in names}) > 1:
            raise ValueError(f"arrays has {', '.join(f'{len(views[name])} of {name}' for name in names)}: wanted as many each")
    if num_pairs < 1:
        raise ValueError(f"scalars has {num_pairs} pairs: wanted at least one")
    num_nodes, left = divmod(len(views["nodes"]), num_pairs)
    if not num_nodes or left or len(views["events"]) % num_pairs:
        raise ValueError(f"arrays has {len(views['nodes'])} nodes and {len(views['events'])} events for {num_pairs} pairs: "
                         "wanted as many for each")
    if len(views["mark_offset"]) != len(views["nodes"]) + 1 or len(views["except_offset"]) != num_nodes + 1:
        raise ValueError(f"arrays has {len(views['mark_offset'])} of mark_offset and {len(views['except_offset'])} of "
                         f"except_offset: wanted {len(views['nodes']) + 1} and {num_nodes + 1}")
    for name in ("except", "mark", "seq", "name"):
        offsets, num = views[f"{name}_offset"], len(views[f"{name}_token"])
        if len(offsets) and (offsets[0] or (np.diff(offsets) < 0).any() or offsets[len(offsets) - 1] > num):
            raise ValueError(f"arrays['{name}_offset'] has to rise from 0 to at most {num}, the tokens of '{name}_token'")
    return views


cdef object unpicklable(object one, str instead):
    """The error for an object that would be nothing without the memory of this process."""
    return TypeError(f"a {type(one).__name__} cannot be pickled: {instead}")


@cython.final
cdef class Tables:
    """A compiled format as C sees it; `arrays` and `scalars` are what it was made from.

    `turns` are those of its boundaries, `shown` those of the texts that say that thinking is on. Immutable, and whole from the
    beginning: C holds addresses in its arrays.
    """

    def __cinit__(self, object arrays not None, object scalars not None, Tables turns=None, Tables shown=None):
        cdef int num_pairs = scalars.get("num_pairs", 1)
        self.arrays, self.scalars = MappingProxyType(frozen(arrays, num_pairs)), MappingProxyType(dict(scalars))
        self.turns, self.shown = turns, shown
        arrays = self.arrays
        cdef c.tg_program *p = &self.program
        memset(p, 0, sizeof(c.tg_program))
        p.vocab_size = len(arrays["step"])
        p.num_pairs, p.num_nodes = num_pairs, len(arrays["nodes"]) // num_pairs
        p.is_channel, p.header_seq, p.channel_seq = scalars["is_channel"], scalars["header_seq"], scalars["channel_seq"]
        p.body_token, p.message_end = scalars["body_token"], scalars["message_end"]
        p.header_tokens = scalars["header_tokens"]
        p.space_word, p.space_bytes = scalars["space_word"], scalars["space_bytes"]
        p.newline = scalars["newline"]
        p.num_never, p.num_inert, p.num_blank = len(arrays["never"]), len(arrays["inert"]), len(arrays["blank"])
        cdef int i
        for i in range(3):
            p.num_partial[i] = len(arrays[f"partial{i + 1}"])
        for i in range(2):
            p.num_continuing[i] = len(arrays[f"continuing{i + 1}"])
        p.num_name_nodes = max(len(arrays["name_offset"]) - 1, 0)
        if turns is not None:
            p.turns = &turns.program
        if shown is not None:
            p.shown = &shown.program
        self.point({name: words_of(arrays[name]).__array_interface__["data"][0] for name in ARRAYS})

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        raise unpicklable(self, "pickle its ThinkProgram, which makes it anew")

    cdef int point(self, dict at) except -1:
        """Set the pointers of `program` to addresses, by the arrays' names."""
        cdef c.tg_program *p = &self.program
        cdef int i
        p.step, p.info = <const uint32_t *> <intptr_t> at["step"], <const uint32_t *> <intptr_t> at["info"]
        p.tail = <const uint32_t *> <intptr_t> at["tail"]
        p.except_offset = <const int32_t *> <intptr_t> at["except_offset"]
        p.except_token = <const int32_t *> <intptr_t> at["except_token"]
        p.except_step = <const uint32_t *> <intptr_t> at["except_step"]
        p.mark_offset = <const int32_t *> <intptr_t> at["mark_offset"]
        p.mark_token = <const int32_t *> <intptr_t> at["mark_token"]
        p.mark_mask = <const uint32_t *> <intptr_t> at["mark_mask"]
        p.events, p.nodes = <const c.tg_event *> <intptr_t> at["events"], <const c.tg_node *> <intptr_t> at["nodes"]
        p.never, p.inert = <const int32_t *> <intptr_t> at["never"], <const int32_t *> <intptr_t> at["inert"]
        p.blank = <const int32_t *> <intptr_t> at["blank"]
        for i in range(3):
            p.partial[i] = <const int32_t *> <intptr_t> at[f"partial{i + 1}"]
        for i in range(2):
            p.continuing[i] = <const int32_t *> <intptr_t> at[f"continuing{i + 1}"]
        p.seq_offset, p.seq_token = <const int32_t *> <intptr_t> at["seq_offset"], <const int32_t *> <intptr_t> at["seq_token"]
        p.name_offset = <const int32_t *> <intptr_t> at["name_offset"]
        p.name_token = <const int32_t *> <intptr_t> at["name_token"]
        p.name_next = <const int32_t *> <intptr_t> at["name_next"]
        return 0

    @property
    def placed_size(self):
        """int32 that `placed` writes."""
        cdef Py_ssize_t size = sum(len(words_of(self.arrays[name])) for name in ARRAYS)
        for more in (self.turns, self.shown):
            size += 0 if more is None else sizeof(c.tg_program) // sizeof(int32_t) + more.placed_size
        return size + size % 2  # what lies behind it is aligned too

    def placed(self, intptr_t base):
        """(a tg_program as bytes, all it points at as int32), to be written to `base` in a device's memory."""
        cdef Tables copy = Tables(self.arrays, self.scalars)
        parts, at, where = [], {}, base
        for more in (self.turns, self.shown):
            if more is None:
                continue
            head = sizeof(c.tg_program)
            struct, tables = more.placed(where + head)
            if more is self.turns:
                copy.program.turns = <const c.tg_program *> <intptr_t> where
            else:
                copy.program.shown = <const c.tg_program *> <intptr_t> where
            parts += [np.frombuffer(struct, np.int32), tables]
            where += head + tables.nbytes
        for name in ARRAYS:
            table = words_of(self.arrays[name])
            at[name] = where
            parts.append(table)
            where += table.nbytes
        copy.point(at)
        parts.append(np.zeros(self.placed_size - sum(map(len, parts)), np.int32))
        return (<char *> &copy.program)[:sizeof(c.tg_program)], np.concatenate(parts)

    cdef int32_t checked_pair(self, int32_t pair) except -1:
        if not 0 <= pair < self.program.num_pairs:
            raise IndexError(f"pair {pair} is not among the format's {self.program.num_pairs}")
        return pair

    def step(self, int32_t node, token, int32_t pair=0):
        """(next node, index in `events`) of a token seen from a node, behind a start of a pair; 0 is the event of nothing.

        What is no token id leads nowhere.
        """
        if not 0 <= node < self.program.num_nodes:
            raise IndexError(f"node {node} is not among the automaton's {self.program.num_nodes}")
        cdef uint32_t step = c.tg_step(&self.program, node, <int32_t> id_of("token", token))
        return step & 0xFFFF, (step >> 16) * self.program.num_pairs + self.checked_pair(pair) if step >> 16 else 0

    def kinds_on_the_way(self, const int32_t[::1] tokens not None, int32_t pair=0):
        """All kinds of marker that a sequence of tokens would complete behind a start of a pair, begun from any node."""
        cdef int32_t kinds = 0
        self.checked_pair(pair)
        if tokens.shape[0]:
            with nogil:
                kinds = c.tg_kinds_on_the_way(&self.program, pair, &tokens[0], tokens.shape[0])
        return kinds

    def turn_start(self, const int32_t[::1] token_ids not None, int64_t lead=0):
        """(index where the assistant's own turn starts, whether the prompt shows no chat).

        With `lead` the ids are the end of a longer prompt, as tg_turn_start says; the index is -1 where a look at more of
        it is needed.
        """
        cdef int32_t raw = 0
        cdef int64_t start
        cdef c.tg_ids ids = ids_of(token_ids)
        with nogil:
            start = c.tg_turn_start(&self.program, &ids, token_ids.shape[0], lead, &raw)
        return start, bool(raw)


@cython.final
cdef class BoundPolicy:
    """A policy with its messages spelled for one program and its EOS set resolved."""

    def __cinit__(self, Tables tables not None, object source, object fields not None, list sequences not None,
                  tuple eos_token_ids not None):
        """`fields` are those of tg_policy by name, the sequences and the EOS set aside.

        `sequences` has six of each pair: open, close, off, extend, bare, prefix.
        """
        cdef Py_ssize_t pair, num_pairs = tables.program.num_pairs
        if len(eos_token_ids) > c.TG_MAX_EOS:
            raise InputError(f"eos_token_ids={eos_token_ids!r}: at most {c.TG_MAX_EOS} ids can end a sequence")
        if [len(of_pair) for of_pair in sequences] != [c.TG_SEQ_PROGRAM - 1 - c.TG_SEQ_NONE] * num_pairs:
            raise ValueError(f"{[len(of_pair) for of_pair in sequences]} sequences of each pair: wanted six for each of "
                             f"{num_pairs}, of the tokens that open, close, skip, extend, close without a message, and begin "
                             "the answer")
        fields = dict(fields)
        if not 0 <= fields.get("loop_tokens", 0) <= 4 * c.TG_LOOP_PERIODS:
            raise ValueError(f"loop_tokens={fields['loop_tokens']}: must lie between 0 and {4 * c.TG_LOOP_PERIODS}")
        eos = int32_of("eos_token_ids", eos_token_ids).tolist()
        tokens = int32_of("sequences", [token for of_pair in sequences for sequence in of_pair for token in sequence])
        cdef Py_ssize_t head = sizeof(c.tg_policy) // sizeof(int32_t), behind = num_pairs * head
        memory = np.zeros(behind + len(tokens), np.int32)
        memory[behind:] = tokens
        cdef int32_t[::1] block = memory
        self.policy = <c.tg_policy *> &block[0]
        known = {"num_eos": len(eos), "eos": [*eos, *[-1] * (c.TG_MAX_EOS - len(eos))]}
        for pair in range(num_pairs):
            offsets = np.cumsum([0, 0, *map(len, sequences[pair])]).tolist()
            self.policy[pair] = dict(fields, **known, seq_offset=offsets, tokens=behind - pair * head)
            behind += offsets[len(offsets) - 1]
        memory.flags.writeable = False
        self.block, self.tokens = memory[:], memory[num_pairs * head:]  # views: nobody can give the memory another size
        self.tables, self.source, self.fields = tables, source, MappingProxyType(fields)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        raise unpicklable(self, "pickle its ThinkProgram and ThinkPolicy, and bind them again")

    @property
    def eos_token_ids(self):
        return tuple(self.policy.eos[i] for i in range(self.policy.num_eos))

    @property
    def close_room(self):
        """Tokens that have to be left of `max_tokens` when thinking ends."""
        return c.tg_close_room(&self.tables.program, self.policy)

    @property
    def answer_eos(self):
        """The token that is forced at `max_answer_tokens`, -1 for an empty EOS set."""
        return c.tg_answer_eos(&self.tables.program, self.policy)

    def sequence(self, int seq, int32_t pair=0):
        """The tokens of one of the policy's own sequences, `names.Seq`, behind a start of a pair."""
        if not c.TG_SEQ_NONE < seq < c.TG_SEQ_PROGRAM:
            raise IndexError(f"sequence {seq} is none of a policy's own, 1 to {c.TG_SEQ_PROGRAM - 1}")
        cdef const c.tg_policy *policy = self.policy + self.tables.checked_pair(pair)
        cdef Py_ssize_t begin = pair * (sizeof(c.tg_policy) // sizeof(int32_t)) + policy.tokens
        return self.block[begin + policy.seq_offset[seq]:begin + policy.seq_offset[seq + 1]].tolist()


@cython.final
cdef class Action:
    """What the next step of a sequence needs; `kind` is one of `names.ActionKind`."""

    cdef c.tg_action action
    cdef readonly BoundPolicy policy

    def __init__(self):
        raise TypeError("actions are made by ThinkState.decide()")

    def __reduce__(self):
        raise unpicklable(self, "keep what as_dict() returns")

    @property
    def kind(self):
        return self.action.kind

    @property
    def token(self):
        """The forced token, or the target of redirects and bias; -1: none."""
        return self.action.token

    @property
    def bias(self):
        return self.action.bias

    def allows(self, token):
        """Whether the action lets a token be sampled. InputError for what is no token id."""
        cdef int64_t known = id_of("token", token)
        if known < 0:
            raise no_id("token", index_of("token", token))
        if self.policy is None:  # made by __new__ alone
            raise TypeError("actions are made by ThinkState.decide()")
        return bool(c.tg_allows(&self.policy.tables.program, self.policy.policy, &self.action, <int32_t> known))

    def allows_in_place(self, int32_t token):
        """Whether it lets a token be sampled where nothing can be that was to be forced or allowed."""
        cdef c.tg_action edit = self.action
        if edit.kind != c.TG_FORCE and edit.kind != c.TG_ALLOW:
            return self.allows(token)
        edit.kind = c.TG_EDIT
        return bool(c.tg_allows(&self.policy.tables.program, self.policy.policy, &edit, token))

    def as_dict(self):
        return self.action


@cython.final
cdef class ThinkState:
    """Where one sequence stands. Made by `ThinkProgram.start`; `copy()` forks it, `rollback_to()` goes back to a fork."""

    def __cinit__(self, BoundPolicy policy not None):
        self.loop = NULL
        self.policy = policy
        memset(&self.state, 0, sizeof(c.tg_state))
        if policy.policy.loop_tokens:
            self.loop = <c.tg_loop *> PyMem_Malloc(sizeof(c.tg_loop))
            if self.loop is NULL:
                raise MemoryError("no memory for a sequence's loop detector")
            memset(self.loop, 0, sizeof(c.tg_loop))

    def __dealloc__(self):
        PyMem_Free(self.loop)

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def __reduce__(self):
        raise unpicklable(self, "keep the token ids, of which it is a function; copy() forks it")

    def start(self, const int32_t[::1] turn_ids not None, bint raw, int32_t limit):
        """Walk the assistant's own part of the prompt; `limit` is the most tokens of output, NO_LIMIT where it is not known."""
        if limit < c.TG_NO_LIMIT:
            raise InputError(f"limit={limit}: must be how many tokens the output may have, {c.TG_NO_LIMIT} if unknown")
        cdef c.tg_ids ids = ids_of(turn_ids)
        with nogil:
            c.tg_start(&self.policy.tables.program, self.policy.policy, &ids, turn_ids.shape[0], raw, limit, &self.state,
                       self.loop)

    def is_open(self):
        """Whether the start still depends on the prompt: `open` has to be called."""
        return self.policy.policy.opening == c.TG_OPEN_AUTO and self.state.phase == c.TG_BEFORE

    def open(self, const int32_t[::1] prompt_ids not None):
        """Complete the start: force the opening if the whole prompt says that thinking is on."""
        cdef c.tg_ids ids = ids_of(prompt_ids)
        with nogil:
            c.tg_open(&self.policy.tables.program, self.policy.policy, &ids, prompt_ids.shape[0], &self.state)

    def advance(self, token):
        """Account for one sampled token. A number that is no token id makes the state inert: nothing is enforced any more."""
        c.tg_advance(&self.policy.tables.program, self.policy.policy, &self.state, self.loop,
                     <int32_t> id_of("token_id", token))

    def advance_all(self, token_ids):
        """Account for several sampled tokens, one after the other."""
        cdef Py_buffer row
        cdef c.tg_ids ids
        open_row("token_ids", token_ids, &row)
        ids.data, ids.bytes, ids.stride = row.buf, sizeof(int64_t), row.strides[0] // <Py_ssize_t> sizeof(int64_t)
        with nogil:
            c.tg_scan(&self.policy.tables.program, self.policy.policy, &self.state, self.loop, &ids, row.shape[0])
        PyBuffer_Release(&row)

    def decide(self):
        """Say what the next step needs."""
        cdef Action action = Action.__new__(Action)
        action.policy = self.policy
        c.tg_decide(&self.policy.tables.program, self.policy.policy, &self.state, &action.action)
        return action

    def copy(self):
        """A fork that shares nothing but the policy."""
        cdef ThinkState other = ThinkState(self.policy)
        other.rollback_to(self)
        return other

    def rollback_to(self, ThinkState other not None):
        """Become a copy of another state of the same policy."""
        if other.policy is not self.policy:
            raise InputError("state.rollback_to(other): the two belong to different policies; fork the other with copy()")
        self.state = other.state
        if self.loop is not NULL:
            memcpy(self.loop, other.loop, sizeof(c.tg_loop))

    def as_dict(self):
        """Every field of the state, for tests and reports."""
        return self.state

    @property
    def phase(self):
        return self.state.phase

    @property
    def thinking_tokens(self):
        return self.state.thinking

    @property
    def closed_by(self):
        return self.state.closed_by

    @property
    def flags(self):
        return self.state.flags

    @property
    def forced(self):
        """Whether the last token was the forced one."""
        return bool(self.state.flags & c.TG_STATE_FORCED)


cdef enum:
    AHEAD = 16  # states whose memory is asked for before the first of them is looked at


cdef struct Logits:
    intptr_t address
    int dtype
    int64_t row_stride, stride  # elements
    int32_t width


cdef dict known_dtypes = {}  # numpy's and torch's own objects -> tg_dtype; to spell a dtype costs more than a row


cdef int dtype_of(object dtype) except -1:
    known = known_dtypes.get(dtype)
    if known is None:
        name = str(dtype).removeprefix("torch.")
        if name not in ("float32", "float16", "bfloat16"):
            raise InputError(f"logits are {name}: wanted float32, float16 or bfloat16")
        known = known_dtypes[dtype] = CONSTANTS[name.upper()]
    return known


# DLPack's exchange interface, version 1, as torch has it from 2.10 on: a tensor described by one call in C. Behind a model's
# step, which leaves none of this in the caches, each of the five attributes that say the same costs a microsecond or two.

cdef struct DLTensor:
    void *data
    int32_t device_type, device_id
    int32_t ndim
    uint8_t type_code, type_bits
    uint16_t type_lanes
    int64_t *shape
    int64_t *strides  # elements
    uint64_t byte_offset


ctypedef int (*Describe)(void *tensor, DLTensor *out) noexcept


cdef struct ExchangeApi:
    uint32_t major, minor
    void *older
    void *allocate
    void *to_managed
    void *from_managed
    Describe describe
    void *work_stream


cdef enum:
    DL_CPU = 1
    DL_FLOAT = 2
    DL_BFLOAT = 4

cdef object exchange_type = None  # whose tensors `exchange` describes; no subclass of it
cdef object exchange_is_neg = None  # its method of that name: what the interface does not say of a tensor
cdef Describe exchange = NULL


cdef bint exchanged(object logits, DLTensor *out) except -1:
    """Describe a tensor by its library's exchange interface; whether that can be done."""
    global exchange_type, exchange_is_neg, exchange
    cdef ExchangeApi *api
    kind = type(logits)
    if kind is not exchange_type:
        capsule = vars(kind).get("__dlpack_c_exchange_api__") if hasattr(kind, "__dlpack_c_exchange_api__") else None
        if capsule is None:
            return False
        api = <ExchangeApi *> PyCapsule_GetPointer(capsule, "dlpack_exchange_api")
        if api.major != 1 or api.describe is NULL:
            return False
        exchange_type, exchange_is_neg, exchange = kind, getattr(kind, "is_neg", lambda tensor: False), api.describe
    if exchange(<void *> logits, out):
        PyErr_Clear()  # a tensor with a gradient, for one: its attributes tell the same
        return False
    return True


cdef int raise_for_shape(object logits, Py_ssize_t num_states) except -1:
    raise InputError(f"logits have shape {list(logits.shape)} for {num_states} states: wanted [{num_states}, vocab_size]")


cdef int raise_for_layout(const Logits *found, Py_ssize_t num_states, bint is_neg) except -1:
    """InputError for memory whose values are not those of the logits, or that holds one of them in two places."""
    cdef int64_t across = abs(found.row_stride), along = abs(found.stride)
    cdef int64_t reach = along * (found.width - 1) if along < across else across * (num_states - 1)  # of the denser ones
    cdef int item_bytes = 4 if found.dtype == c.TG_FLOAT32 else 2
    if not num_states or not found.width:
        return 0
    if is_neg:
        raise InputError("logits have the negative bit set, so that what is written reads with its sign changed: pass "
                         "logits.resolve_neg()")
    if not found.address:
        raise InputError("logits have no memory of their own (a tensor of zeros that are not stored?): pass a copy")
    if found.address % item_bytes:
        raise InputError("logits lie askew in memory (a field of a structured array?): pass a copy")
    if (num_states > 1 and not across) or (found.width > 1 and not along) or (
        num_states > 1 and found.width > 1 and max(across, along) <= reach
    ):
        raise InputError("logits share memory (an expanded view), so rows and tokens cannot differ: pass a copy")
    return 0


cdef Logits described_logits(object logits, Py_ssize_t num_states, bint is_known) except *:
    """Where logits lie in memory; InputError for what cannot be edited there. All logits on the host come through here.

    `is_known`: logits of the same origin were seen to read as they are stored. To ask torch that costs as much as a row.
    """
    cdef Logits found
    cdef DLTensor tensor
    if exchanged(logits, &tensor) and tensor.device_type == DL_CPU and tensor.type_lanes == 1 and (
        tensor.type_code == DL_FLOAT and tensor.type_bits in (16, 32) or tensor.type_code == DL_BFLOAT
    ):
        if tensor.ndim != 2 or tensor.shape[0] != num_states:
            raise_for_shape(logits, num_states)
        found.dtype = c.TG_BFLOAT16 if tensor.type_code == DL_BFLOAT else (
            c.TG_FLOAT32 if tensor.type_bits == 32 else c.TG_FLOAT16)
        found.address, found.width = <intptr_t> tensor.data + <intptr_t> tensor.byte_offset, tensor.shape[1]
        found.row_stride = tensor.shape[1] if tensor.strides is NULL else tensor.strides[0]
        found.stride = 1 if tensor.strides is NULL else tensor.strides[1]
        raise_for_layout(&found, num_states, False if is_known else exchange_is_neg(logits))
        return found
    dtype, data_ptr = getattr(logits, "dtype", None), getattr(logits, "data_ptr", None)
    if dtype is None:
        raise InputError(f"logits are {type(logits).__name__}: wanted float32, float16 or bfloat16")
    found.dtype = dtype_of(dtype)
    if data_ptr is not None and not logits.is_cpu:
        raise InputError(f"logits are on {logits.device}: wanted a tensor on the CPU")
    shape = logits.shape  # torch has its own kind of tuple
    if len(shape) != 2 or <Py_ssize_t> shape[0] != num_states:
        raise_for_shape(logits, num_states)
    found.width = shape[1]
    if data_ptr is not None:
        try:
            found.address, strides = data_ptr(), logits.stride()
        except RuntimeError as error:  # torch's own, of a sparse tensor and of others that are no array of numbers
            raise InputError(f"logits are a tensor without strided memory ({error}): pass logits.to_dense()") from None
        is_neg = getattr(logits, "is_neg", None)
        found.row_stride, found.stride = strides[0], strides[1]
        raise_for_layout(&found, num_states, is_neg is not None and is_neg())
        return found
    interface = getattr(logits, "__array_interface__", None)
    if interface is None:
        raise InputError(f"logits are {type(logits).__name__}: wanted a numpy array or a torch tensor")
    if interface["data"][1]:
        raise InputError("logits are read-only, but have to be edited in place: pass a writable array")
    found.address, strides = interface["data"][0], logits.strides
    if any(stride % logits.itemsize for stride in strides):
        raise InputError("logits lie askew in memory (a field of a structured array?): pass a copy")
    found.row_stride, found.stride = strides[0] // logits.itemsize, strides[1] // logits.itemsize
    raise_for_layout(&found, num_states, False)
    return found


cdef ThinkState checked_state(str name, object state):
    """A state as itself; InputError for anything else."""
    if type(state) is not ThinkState:
        raise InputError(f"{name} is a {type(state).__name__}, wanted what ThinkProgram.start returns")
    return state


cdef Member member_of(ThinkState state) noexcept:
    return Member(&state.policy.tables.program, state.policy.policy, &state.state, state.loop)


cdef void advance_one(const Member *member, int64_t token) noexcept nogil:
    cdef int32_t known = <int32_t> token if 0 <= token <= 0x7FFFFFFF else -1  # anything else is an impossible id
    c.tg_advance(member.program, member.policy, member.state, member.loop, known)


cdef void decide_one(const Member *member, c.tg_action *action) noexcept nogil:
    c.tg_decide(member.program, member.policy, member.state, action)


cdef inline void prefetch_state(const Member *member) noexcept nogil:
    c.TG_PREFETCH(member.state)
    c.TG_PREFETCH(<const char *> member.state + sizeof(c.tg_state) - 1)  # it may lie across two lines of the cache


cdef void prefetch_edit(const Member *member, const c.tg_action *action, const void *logits, int dtype, int64_t stride,
                        int32_t width) noexcept nogil:
    c.tg_prefetch(member.program, member.policy, action, logits, <c.tg_dtype> dtype, stride, width)


cdef int32_t edit_one(const Member *member, const c.tg_action *action, void *logits, int dtype, int64_t stride,
                      int32_t width) noexcept nogil:
    return c.tg_apply(member.program, member.policy, action, logits, <c.tg_dtype> dtype, stride, width)


@cython.final
cdef class StateBatch:
    """The states of a batch, gathered once so that a step costs a few nanoseconds for each. [num_states]"""

    cdef readonly tuple states
    cdef Member *members
    cdef int64_t *last
    cdef bint has_last
    cdef bint has_edited
    cdef Py_ssize_t num_states

    def __cinit__(self, list states not None):
        self.members = NULL
        self.last = NULL
        self.has_last = False
        self.states = tuple(states)
        cdef Py_ssize_t i, num = len(self.states)
        self.members = <Member *> PyMem_Malloc(max(num, 1) * sizeof(Member))
        self.last = <int64_t *> PyMem_Malloc(max(num, 1) * sizeof(int64_t))
        if self.members is NULL or self.last is NULL:
            raise MemoryError(f"no memory for a batch of {num} states")
        for i, state in enumerate(self.states):
            self.members[i] = member_of(checked_state(f"states[{i}]", state))
        self.num_states = num

    def __reduce__(self):
        raise unpicklable(self, "make one of the states' copies")

    def __dealloc__(self):
        PyMem_Free(self.members)
        PyMem_Free(self.last)

    def __len__(self):
        return self.num_states

    def advance(self, token_ids):
        """Account for one sampled token of each sequence. token_ids: [num_states], quickest as an array of int64"""
        cdef Py_ssize_t i
        cdef Py_buffer row
        open_row("token_ids", token_ids, &row)
        cdef Py_ssize_t num = row.shape[0], stride = row.strides[0]
        cdef const char *ids = <const char *> row.buf
        if num != self.num_states:
            PyBuffer_Release(&row)
            raise InputError(f"token_ids has {num} entries for {self.num_states} states: pass one id for each")
        cdef Member *members = self.members
        with nogil:
            for i in range(self.num_states):
                prefetch_state(&members[min(i + AHEAD, self.num_states - 1)])
                advance_one(&members[i], (<const int64_t *> (ids + i * stride))[0])
        PyBuffer_Release(&row)

    def apply(self, intptr_t address, int dtype, int64_t row_stride, int64_t stride, int32_t width):
        """Decide and edit row i of the logits for state i, in place; strides in elements. Returns in how many rows what was
        due had been banned before.
        """
        cdef Py_ssize_t begin = 0, i, many
        cdef int64_t left = 0, row_bytes = row_stride * (4 if dtype == c.TG_FLOAT32 else 2)
        cdef char *rows
        cdef Member *members
        cdef c.tg_action actions[AHEAD]
        with nogil:
            while begin < self.num_states:
                many = min(<Py_ssize_t> AHEAD, self.num_states - begin)
                members, rows = &self.members[begin], <char *> address + begin * row_bytes
                for i in range(many):
                    prefetch_state(&members[i])
                for i in range(many):
                    decide_one(&members[i], &actions[i])
                    prefetch_edit(&members[i], &actions[i], rows + i * row_bytes, dtype, stride, width)
                for i in range(many):
                    left += not edit_one(&members[i], &actions[i], rows + i * row_bytes, dtype, stride, width)
                begin += many
        return left

    def edit(self, logits):
        """`apply` for a numpy array or a torch tensor on the CPU, [num_states, width]; InputError for what cannot be edited.

        A tensor's negative bit is looked for in a batch's first logits: the later ones come out of the same hands.
        """
        cdef Logits described = described_logits(logits, self.num_states, self.has_edited)
        self.has_edited = True
        return self.apply(described.address, described.dtype, described.row_stride, described.stride, described.width)

    def note_last(self, intptr_t ids, int64_t row_stride, int64_t stride, int64_t length):
        """Remember each sequence's last token, for `follow`."""
        cdef Py_ssize_t i
        self.has_last = length > 0 and not ids % <intptr_t> sizeof(int64_t)
        for i in range(self.num_states if self.has_last else 0):
            self.last[i] = (<const int64_t *> ids)[i * row_stride + (length - 1) * stride]

    def follow(self, intptr_t ids, int64_t row_stride, int64_t stride, int64_t num_rows, int64_t length):
        """Account for the last token of each sequence of int64 ids, if each ends in the token that was seen last and one more.

        ids: address of [num_rows, length], strides in elements. Returns whether they do; else nothing is accounted for.
        """
        cdef Py_ssize_t i
        cdef const int64_t *before = <const int64_t *> ids + (length - 2) * stride
        cdef const int64_t *newest = before + stride
        if length < 2 or not self.has_last or num_rows != self.num_states or ids % <intptr_t> sizeof(int64_t):
            return False
        for i in range(self.num_states):
            if before[i * row_stride] != self.last[i]:
                return False
        with nogil:
            for i in range(self.num_states):
                self.last[i] = newest[i * row_stride]
                advance_one(&self.members[i], newest[i * row_stride])
        return True

    def is_free(self):
        """Whether no sequence needs an edit at its next step."""
        cdef Py_ssize_t i
        cdef c.tg_action action
        for i in range(self.num_states):
            decide_one(&self.members[i], &action)
            if action.kind:
                return False
        return True
