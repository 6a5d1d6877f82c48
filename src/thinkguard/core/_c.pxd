"""The public header, line by line."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

cdef extern from "thinkguard.h" nogil:
    ctypedef enum tg_status:
        TG_OK, TG_NO_MEMORY, TG_BAD_ARGUMENT, TG_TOO_LARGE

    enum:
        TG_START, TG_END, TG_ANSWER, TG_IMPLICIT, TG_SPELLED, TG_TOOL, TG_BODY, TG_HEADER, TG_CALL_END, TG_RECIPIENT
        TG_MULTI, TG_GROWS_END, TG_EXTENDS, TG_BEGINS_END, TG_HALF_START, TG_HALF_END

    enum:
        TG_TEXT, TG_VISIBLE, TG_INERT, TG_BOUNDARY, TG_RAW, TG_MARKUP

    ctypedef enum tg_phase:
        TG_BEFORE, TG_THINKING, TG_CLOSING, TG_HEADING, TG_ANSWERING, TG_DONE

    ctypedef enum tg_closed_by:
        TG_BY_NONE, TG_BY_MODEL, TG_BY_BUDGET, TG_BY_BOUNDARY, TG_BY_LOOP, TG_BY_IMPLICIT, TG_BY_PROMPT

    ctypedef enum tg_body:
        TG_BODY_NONE, TG_BODY_FREE, TG_BODY_FINAL, TG_BODY_CALL, TG_BODY_PREAMBLE

    ctypedef enum tg_opening:
        TG_OPEN_FORCE, TG_OPEN_ALLOW, TG_OPEN_FORBID, TG_OPEN_AUTO

    ctypedef enum tg_on_eos:
        TG_EOS_CLOSE, TG_EOS_BAN

    ctypedef enum tg_close_at:
        TG_AT_LINE, TG_AT_SENTENCE

    ctypedef enum tg_budget_per:
        TG_PER_TURN, TG_PER_BLOCK

    ctypedef enum tg_answer_prefix_on:
        TG_PREFIX_ANY, TG_PREFIX_FORCED

    ctypedef enum tg_markers:
        TG_MARKERS_BAN, TG_MARKERS_ALLOW

    ctypedef enum tg_dtype:
        TG_FLOAT32, TG_FLOAT16, TG_BFLOAT16

    enum:
        TG_NO_LIMIT, TG_MAX_EOS, TG_LOOP_PERIODS, TG_BLANK_PATIENCE, TG_HEADER_PATIENCE

    enum:
        TG_SEQ_NONE, TG_SEQ_OPEN, TG_SEQ_CLOSE, TG_SEQ_OFF, TG_SEQ_EXTEND, TG_SEQ_BARE, TG_SEQ_PREFIX, TG_SEQ_PROGRAM

    enum:
        TG_STATE_INERT, TG_STATE_LOOP, TG_STATE_RECIPIENT, TG_STATE_VIOLATION, TG_STATE_FORCED
        TG_STATE_OPENS, TG_STATE_NO_CHAT, TG_STATE_MARKUP, TG_STATE_PARAGRAPH, TG_STATE_SPOKEN, TG_STATE_BARE

    enum:
        TG_BAN_EOS, TG_BAN_INERT, TG_BAN_BLANK, TG_MOVE_EOS, TG_ONLY_CALL_END, TG_NOT_CALL_END, TG_BAN_NEVER
        TG_FORCE_AIM

    ctypedef struct tg_event:
        int32_t kinds, last, starts, tail_bytes, tail_visible, space, marker_bytes, pair

    ctypedef struct tg_node:
        int32_t start_bytes, end_chars, marks, reach, plan, finish, open, halves

    ctypedef struct tg_ids:
        const void *data
        int64_t stride
        int64_t bytes

    ctypedef struct tg_program:
        int32_t vocab_size, num_nodes, is_channel, header_seq, channel_seq, body_token, message_end, header_tokens
        int32_t space_word, space_bytes, newline, num_pairs
        const uint32_t *step
        const uint32_t *info
        const uint32_t *tail
        const int32_t *except_offset
        const int32_t *except_token
        const uint32_t *except_step
        const int32_t *mark_offset
        const int32_t *mark_token
        const uint32_t *mark_mask
        const tg_event *events
        const tg_node *nodes
        const int32_t *never
        const int32_t *inert
        const int32_t *blank
        const int32_t *partial[3]
        const int32_t *continuing[2]
        int32_t num_never, num_inert, num_blank
        int32_t num_partial[3]
        int32_t num_continuing[2]
        const int32_t *seq_offset
        const int32_t *seq_token
        const tg_program *turns
        const tg_program *shown
        int32_t num_name_nodes
        const int32_t *name_offset
        const int32_t *name_token
        const int32_t *name_next

    ctypedef struct tg_policy:
        int32_t max_thinking_tokens
        int32_t budget_per
        int32_t min_thinking_tokens
        int32_t grace_tokens
        int32_t close_at
        int32_t soft_thinking_tokens
        int32_t max_extensions
        int32_t on_eos
        int32_t opening
        int32_t max_think_blocks
        int32_t min_answer_tokens
        int32_t max_answer_tokens
        int32_t reserve_answer_tokens
        int32_t loop_tokens
        int32_t markers_in_answer
        int32_t answer_prefix_on
        int32_t longest_close, num_eos
        int32_t eos[16]
        float close_bias
        int32_t closes_line, lead_word, lead_bytes
        int32_t lead[4]
        int32_t prefix_space
        int32_t seq_offset[8]
        int32_t tokens

    ctypedef struct tg_state:
        int32_t phase, node, tail, seq, pos, flags, thinking, block, blocks, visible, answer, blank, extensions, space
        int32_t closed_by, length, header_tokens, is_headed, body, limit, pair

    ctypedef struct tg_loop:
        uint32_t count
        int32_t ring[64]
        int32_t run[64]

    ctypedef enum tg_action_kind:
        TG_FREE, TG_FORCE, TG_EDIT, TG_ALLOW

    ctypedef struct tg_action:
        int32_t kind, token, aim, node, forbidden, moved, allowed, flags, cut, pending
        float bias

    ctypedef struct tg_vocab:
        int32_t num_tokens
        const uint8_t *text
        const int64_t *offsets
        const int32_t *control

    ctypedef struct tg_patterns:
        int32_t num_patterns, num_controls
        const int32_t *symbols
        const int32_t *offsets
        const int32_t *kinds
        const int32_t *pairs
        const int32_t *control_bytes
        const int32_t *control_dropped
        const uint8_t *space
        int32_t space_bytes, num_pairs

    ctypedef struct tg_lift:
        int32_t num_nodes, num_events, num_except, num_marks, num_symbols
        uint32_t *step
        uint32_t *info
        uint32_t *tail
        int32_t *except_offset
        int32_t *except_token
        uint32_t *except_step
        int32_t *mark_offset
        int32_t *mark_token
        uint32_t *mark_mask
        tg_event *events
        tg_node *nodes
        int32_t *delta
        int32_t *depth
        int32_t *end_depth
        int32_t *end_of
        int32_t *start_of
        int32_t *start_depth
        int32_t *call_of
        int32_t *call_depth
        int32_t *call_chars

    tg_status tg_lift_new(const tg_vocab *vocab, const tg_patterns *patterns, tg_lift **lift)
    void tg_lift_free(tg_lift *lift)
    uint32_t tg_step(const tg_program *program, int32_t node, int32_t token)
    int32_t tg_kinds_on_the_way(const tg_program *program, int32_t pair, const int32_t *tokens, int64_t num_tokens)
    int64_t tg_turn_start(const tg_program *program, const tg_ids *ids, int64_t num_tokens, int64_t lead, int32_t *raw)
    void tg_start(const tg_program *program, const tg_policy *policy, const tg_ids *turn_ids, int64_t num_tokens,
                  int32_t raw, int32_t limit, tg_state *state, tg_loop *loop)
    void tg_open(const tg_program *program, const tg_policy *policy, const tg_ids *prompt_ids, int64_t num_tokens,
                 tg_state *state)
    void tg_advance(const tg_program *program, const tg_policy *policy, tg_state *state, tg_loop *loop, int32_t token)
    void tg_scan(const tg_program *program, const tg_policy *policy, tg_state *state, tg_loop *loop, const tg_ids *ids,
                 int64_t num_tokens)
    void tg_decide(const tg_program *program, const tg_policy *policy, const tg_state *state, tg_action *action)
    int32_t tg_close_room(const tg_program *program, const tg_policy *policy)
    int32_t tg_answer_eos(const tg_program *program, const tg_policy *policy)
    int32_t tg_allows(const tg_program *program, const tg_policy *policy, const tg_action *action, int32_t token)
    void tg_prefetch(const tg_program *program, const tg_policy *policy, const tg_action *action, const void *logits,
                     tg_dtype dtype, int64_t stride, int32_t width)
    int32_t tg_apply(const tg_program *program, const tg_policy *policy, const tg_action *action, void *logits,
                     tg_dtype dtype, int64_t stride, int32_t width)

cdef extern from "machine.h" nogil:
    void TG_PREFETCH(const void *address)

cdef extern from "guard.h" nogil:
    ctypedef struct tg_slot:
        tg_state state

    ctypedef struct tg_edit:
        tg_action action

    ctypedef struct tg_slots_step:
        tg_program program

    ctypedef struct tg_sequences_step:
        tg_program program

    ctypedef struct tg_edits_step:
        tg_program program

    void tg_guard_slot(const tg_slots_step *step, int32_t row)
    void tg_guard_sequence(const tg_sequences_step *step, int32_t row)
    void tg_guard_edit(const tg_edits_step *step, int32_t edit)
