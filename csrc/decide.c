/* decide.c: what the next step of a sequence needs. It only reads. Numbers in comments are the rules of docs/semantics.md. */
#include "machine.h"

static int is_quote_or_bracket(uint32_t byte) {
  return byte == '"' || byte == '\'' || byte == '`' || byte == '(' || byte == '[' || byte == '{' || byte == '<' ||
         byte == '>';
}

/* TG_BEGINS_END where whatever begins an end can hardly be anything else: no markup so far, less than two characters of an end
 * written, no quote or bracket before them; else 0. */
static int32_t begun_ends(const tg_program* program, const tg_state* state, const tg_action* action) {
  int32_t chars = program->nodes[action->node].end_chars;
  if (chars >= 2 || state->flags & TG_STATE_MARKUP) return 0;
  uint32_t before = (uint32_t)state->tail;
  if (chars) { /* step over the character that is written */
    while ((before & 0xC0) == 0x80) before >>= 8;
    before >>= 8;
  }
  return is_quote_or_bracket(before & 0xFF) ? 0 : TG_BEGINS_END;
}

static void decide_thinking(const tg_program* program, const tg_policy* policy, const tg_state* state, tg_action* action) {
  const tg_node* node = &program->nodes[action->node];
  action->forbidden |= TG_START | TG_ANSWER | TG_TOOL | TG_BODY | TG_HEADER | TG_CALL_END;
  int32_t left = thinking_left(program, policy, state);
  int is_over = state->phase == TG_CLOSING || left <= 0;
  if (is_over) action->flags |= TG_FORCE_AIM;
  if (state->thinking < policy->min_thinking_tokens && !is_over) { /* 13 */
    int32_t ends = TG_END | TG_GROWS_END | TG_IMPLICIT | begun_ends(program, state, action), begins;
    action->forbidden |= ends;
    action->flags |= TG_BAN_EOS;
    if (state->flags & TG_STATE_SPOKEN && extension_fits(program, policy, state, extension_length(policy))) { /* 18 */
      action->moved = ends;
      action->token = extension_aim(policy, state->tail, &begins);
    }
  } else { /* 11 */
    action->flags |= policy->on_eos == TG_EOS_CLOSE ? TG_MOVE_EOS : TG_BAN_EOS;
    action->moved = TG_IMPLICIT;
    action->token = node->plan;
    int in_call = node->finish && node->end_chars < 2;
    if (policy->soft_thinking_tokens != TG_NO_LIMIT && thought(policy, state) >= policy->soft_thinking_tokens &&
        !in_call) /* 17 */
      action->bias = policy->close_bias * (float)(thought(policy, state) - policy->soft_thinking_tokens) /
                     (float)(policy->max_thinking_tokens - policy->soft_thinking_tokens);
  }
  if (!(state->flags & TG_STATE_SPOKEN)) action->forbidden |= TG_HALF_START;
  action->cut = left > 3 ? 0 : left > 1 ? left : 1; /* 15 */
}

int32_t tg_answer_eos(const tg_program* program, const tg_policy* policy) {
  for (int32_t i = 0; i < policy->num_eos; i++)
    if (!(tg_event_at(program, tg_step(program, 0, policy->eos[i]), 0)->kinds & TG_CALL_END)) return policy->eos[i];
  return policy->num_eos ? policy->eos[0] : -1;
}

/* 20a: a wish to close again is answered. Its sources are tokens that complete or begin an end; they lead to a line break, or,
 * once a paragraph stands behind the first one, to EOS. */
static void answer_wish(const tg_program* program, const tg_policy* policy, const tg_state* state, tg_action* action) {
  if (state->phase != TG_ANSWERING) return;
  int32_t sources = TG_END | begun_ends(program, state, action);
  action->forbidden |= sources;
  if (state->node || !(program->nodes[action->node].marks & sources)) return;
  if (!state->visible || ends_in_empty_line(state->tail)) return; /* the answer has to be written first */
  int done = state->flags & TG_STATE_PARAGRAPH && state->visible >= policy->min_answer_tokens && policy->num_eos;
  action->token = done ? tg_answer_eos(program, policy) : program->newline;
  action->moved = action->token >= 0 ? sources : 0;
}

/* 15: bytes that may be missing with `left` tokens left; where what ends there could not be, the output's limit counts. */
static int32_t cut_of(const tg_state* state, int32_t left) {
  if (left < 1 && state->limit != TG_NO_LIMIT) left = room_of(state);
  return left >= 1 && left <= 3 ? left : 0;
}

/* What an answer's step needs; the token that has to be forced, -1: none. */
static int32_t decide_answer(const tg_program* program, const tg_policy* policy, const tg_state* state, tg_action* action) {
  int32_t left = answer_left(policy, state), missing = policy->min_answer_tokens - state->visible;
  int32_t room = INT32_MAX, due = -1;
  if (policy->max_answer_tokens != TG_NO_LIMIT && state->answer >= policy->max_answer_tokens && missing <= 0 &&
      state->phase == TG_ANSWERING && state->body != TG_BODY_CALL)
    due = tg_answer_eos(program, policy);
  if (state->body == TG_BODY_PREAMBLE) { /* ends while the least answer still fits behind it */
    if (policy->max_answer_tokens != TG_NO_LIMIT)
      room = policy->max_answer_tokens - state->answer - policy->min_answer_tokens;
    int32_t behind = program->header_tokens + policy->min_answer_tokens + 2;
    if (state->limit != TG_NO_LIMIT && room_of(state) - behind < room) room = room_of(state) - behind;
    if (room <= 0) due = program->message_end;
  }
  if (missing > 0) {
    action->flags |= TG_BAN_EOS;
    if (state->blank >= TG_BLANK_PATIENCE || left <= missing) action->flags |= TG_BAN_BLANK; /* 20 */
  }
  if (room < left) left = room;
  action->cut = cut_of(state, left);
  if (policy->markers_in_answer == TG_MARKERS_ALLOW && state->phase == TG_ANSWERING && !program->is_channel) {
    action->forbidden = answer_may_restart(policy, state) ? 0 : action->forbidden | TG_ANSWER;
    return due;
  }
  if (left <= 1) action->forbidden |= TG_HALF_START | TG_HALF_END;
  action->forbidden |= TG_END;
  if (!start_is_legal(program, policy, state) || program->is_channel) action->forbidden |= TG_START;
  if (!answer_may_restart(policy, state)) action->forbidden |= TG_ANSWER;
  if (!program->is_channel) {
    answer_wish(program, policy, state, action);
    return due;
  }
  action->forbidden |= TG_ANSWER | TG_TOOL | TG_BODY | TG_HEADER;
  if (state->body == TG_BODY_CALL) {
    action->flags |= TG_ONLY_CALL_END;
  } else {
    action->forbidden |= TG_CALL_END;
    action->flags |= TG_NOT_CALL_END;
  }
  if (state->body != TG_BODY_PREAMBLE) return due;
  if (missing > 0) {
    action->flags |= TG_BAN_EOS;
  } else { /* a preamble is not the turn's end: EOS ends the message (11) */
    action->flags |= TG_MOVE_EOS;
    action->token = program->message_end;
    action->forbidden &= ~TG_END;
  }
  return due;
}

/* Between two messages: which channel comes next, or a tool call's free header. The token to be forced, -1: none. */
static int32_t decide_header(const tg_program* program, const tg_policy* policy, const tg_state* state, tg_action* action) {
  int32_t room = state->limit == TG_NO_LIMIT ? INT32_MAX : room_of(state);
  action->forbidden |= TG_START | TG_END | TG_ANSWER | TG_TOOL | TG_HEADER | TG_CALL_END;
  action->flags |= TG_BAN_EOS;
  if (state->body == TG_BODY_FREE) {
    int32_t behind =
        state->flags & TG_STATE_RECIPIENT ? 0 : program->header_tokens + 1; /* of a preamble: its end, a header */
    int32_t left = TG_HEADER_PATIENCE - state->header_tokens;
    if (state->limit != TG_NO_LIMIT && room - behind - policy->min_answer_tokens - 2 < left)
      left = room - behind - policy->min_answer_tokens - 2;
    action->cut = cut_of(state, left);
    return left <= 0 ? program->body_token : -1;
  }
  int32_t reach = program->nodes[action->node].reach, legal = (reach ? reach : ~0) & (TG_ANSWER | TG_TOOL | TG_START);
  /* Where several kinds are left to choose from, only those for which there is room. */
  if (legal & (legal - 1)) {
    if (!start_is_legal(program, policy, state)) legal &= ~TG_START;
    if (legal & ~TG_TOOL && room <= program->header_tokens + TG_HEADER_PATIENCE + policy->min_answer_tokens + 2)
      legal &= ~TG_TOOL;
  }
  action->forbidden |= TG_BODY;
  if (state->seq) return -1; /* is forced anyway */
  int32_t only = -1, count = 0, longest = -1;
  for (int32_t i = program->mark_offset[action->node]; i < program->mark_offset[action->node + 1]; i++) {
    if (!tg_mark_allowed(program->mark_mask[i], legal)) continue;
    int32_t length = (int32_t)(tg_info(program, program->mark_token[i]) >> 8 & 0xFF);
    count++;
    if (length > longest) {
      longest = length;
      only = program->mark_token[i];
    }
  }
  /* A name that is spelled letter by letter takes more room than it was given: near the limit the longest token is next. */
  if (count > 1 && room > 2 * program->header_tokens + policy->min_answer_tokens + 2) {
    action->kind = TG_ALLOW;
    action->allowed = legal;
    return -1;
  }
  if (count) return only;
  int32_t length;
  return sequence(program, policy, state->pair, program->header_seq, &length)[0];
}

/* The step that is to cost nothing: an answer past its minimum and without limits, where no token completes a marker, and
 * markup is there, so that none is taken for the beginning of an end. TG_BODY is forbidden in no answer of a format without a
 * channel, and one with a channel has more marks at the root. `decide` would come to the same, and does behind other pairs. */
static int answer_is_idle(const tg_program* program, const tg_policy* policy, const tg_state* state) {
  int32_t marks = program->nodes[0].marks & ~(TG_OF_HALVES & ~TG_BEGINS_END) & ~TG_BODY;
  if (state->flags & TG_STATE_MARKUP) marks &= ~TG_BEGINS_END;
  return state->phase == TG_ANSWERING && !state->seq && !state->node && !state->pair && !marks && !program->num_never &&
         state->visible >= policy->min_answer_tokens && state->limit == TG_NO_LIMIT &&
         policy->max_answer_tokens == TG_NO_LIMIT;
}

static TG_OUT_OF_LINE void decide(const tg_program* program, const tg_policy* policy, const tg_state* state,
                                  tg_action* action) {
  int32_t due;
  action->kind = TG_EDIT;
  action->node = tg_node_at(program, state, state->node);
  action->forbidden = TG_SPELLED | TG_MULTI;
  if (state->phase == TG_THINKING || state->phase == TG_CLOSING) {
    decide_thinking(program, policy, state, action);
    due = -1;
  } else if (state->phase == TG_HEADING || (state->phase == TG_BEFORE && program->is_channel)) {
    due = decide_header(program, policy, state, action);
  } else {
    due = decide_answer(program, policy, state, action);
  }
  if (state->node && action->forbidden) action->flags |= TG_BAN_INERT; /* 2 */
  if (program->num_never) action->flags |= TG_BAN_NEVER;               /* 3 */
  if (action->cut) action->pending = pending_bytes(state->tail);
  if (state->seq) due = next_in_sequence(program, policy, state);
  if (due >= 0) {
    action->kind = TG_FORCE;
    action->aim = action->token;
    action->token = due;
  } else if (action->kind == TG_EDIT && !action->flags && !action->cut &&
             !(program->nodes[action->node].marks & action->forbidden)) {
    action->kind = TG_FREE;
  }
}

void tg_decide(const tg_program* program, const tg_policy* policy, const tg_state* state, tg_action* action) {
  tg_action free_step = {.kind = TG_FREE, .token = -1, .aim = -1};
  *action = free_step;
  if (state->phase == TG_DONE || state->flags & TG_STATE_INERT || answer_is_idle(program, policy, state)) return;
  decide(program, policy, state, action);
}
