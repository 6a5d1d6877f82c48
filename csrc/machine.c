/* machine.c: where a sequence stands and what its next step needs.
 *
 * tg_advance moves a state over one token: the automaton says which markers the token completed, the last of them decides the
 * phase, the counters follow, and `settle` looks ahead for what has to be forced. tg_decide only reads. Numbers in comments
 * are the rules of docs/semantics.md.
 */
#include "machine.h"

#include <limits.h>
#include <string.h>

static const tg_event* event_at(const tg_program* program, uint32_t step) { return &program->events[step >> 16]; }

uint32_t tg_step(const tg_program* program, int32_t node, int32_t token) {
  if (!(tg_info(program, token) & TG_TEXT)) return (uint32_t)node;
  TG_ASSERT(node >= 0 && node < program->num_nodes);
  if (!node) return program->step[token];
  int32_t at = tg_find(program->except_token, program->except_offset[node], program->except_offset[node + 1], token);
  return at < 0 ? program->step[token] : program->except_step[at];
}

int32_t tg_kinds_on_the_way(const tg_program* program, const int32_t* tokens, int64_t num_tokens) {
  int32_t kinds = 0;
  for (int32_t from = 0; from < program->num_nodes; from++) {
    int32_t node = from;
    for (int64_t i = 0; i < num_tokens; i++) {
      uint32_t step = tg_step(program, node, tokens[i]);
      node = (int32_t)(step & 0xFFFF);
      kinds |= event_at(program, step)->kinds;
    }
  }
  return kinds;
}

/* Count one more, up to INT32_MAX. */
static inline void count(int32_t* counter) { *counter += *counter != INT32_MAX; }

/* --- sequences --- */

static const int32_t* sequence(const tg_program* program, const tg_policy* policy, int32_t seq, int32_t* length) {
  TG_ASSERT(seq > TG_SEQ_NONE);
  const int32_t* offset = seq < TG_SEQ_PROGRAM ? policy->seq_offset + seq : program->seq_offset + (seq - TG_SEQ_PROGRAM);
  *length = offset[1] - offset[0];
  TG_ASSERT(*length >= 0);
  return (seq < TG_SEQ_PROGRAM ? tg_policy_tokens(policy) : program->seq_token) + offset[0];
}

static void begin_sequence(const tg_program* program, const tg_policy* policy, tg_state* state, int32_t seq, int32_t pos) {
  int32_t length;
  sequence(program, policy, seq, &length);
  state->seq = pos < length ? seq : TG_SEQ_NONE;
  state->pos = state->seq ? pos : 0;
}

/* The token of a sequence under way, -1: none. */
static int32_t next_in_sequence(const tg_program* program, const tg_policy* policy, const tg_state* state) {
  if (!state->seq) return -1;
  int32_t length;
  const int32_t* tokens = sequence(program, policy, state->seq, &length);
  TG_ASSERT(state->pos >= 0 && state->pos < length);
  return tokens[state->pos];
}

/* --- budgets --- */

int32_t tg_close_room(const tg_program* program, const tg_policy* policy) {
  int32_t answer =
      policy->reserve_answer_tokens > policy->min_answer_tokens ? policy->reserve_answer_tokens : policy->min_answer_tokens;
  return policy->longest_close + program->header_tokens + answer + 1;
}

/* Tokens of output that are left, which has a limit; not below 0, so that more can be subtracted. */
static int32_t room_of(const tg_state* state) { return state->limit > state->length ? state->limit - state->length : 0; }

/* Tokens of thinking that are left; INT32_MAX: any number. The limit of the output counts as a budget (8). */
static int32_t thinking_left(const tg_program* program, const tg_policy* policy, const tg_state* state) {
  int32_t left = INT32_MAX;
  if (policy->max_thinking_tokens != TG_NO_LIMIT) left = policy->max_thinking_tokens - state->thinking;
  if (state->limit != TG_NO_LIMIT) {
    int32_t room = room_of(state) - tg_close_room(program, policy);
    if (room < left) left = room;
  }
  return left;
}

/* Whether the answer may begin once more, its visible tokens counted anew (9): the least answer has to fit again. */
static int answer_may_restart(const tg_policy* policy, const tg_state* state) {
  if (policy->max_answer_tokens != TG_NO_LIMIT && policy->max_answer_tokens - state->answer < policy->min_answer_tokens)
    return 0;
  return state->limit == TG_NO_LIMIT || room_of(state) > policy->min_answer_tokens + 1;
}

/* Whether one more extension may be said: `rest` tokens of its message are still to come, and closing must fit behind. */
static int extension_fits(const tg_program* program, const tg_policy* policy, const tg_state* state, int32_t rest) {
  if (state->thinking >= policy->min_thinking_tokens || state->extensions >= policy->max_extensions) return 0;
  return state->limit == TG_NO_LIMIT || room_of(state) - tg_close_room(program, policy) >= rest;
}

static int32_t extension_length(const tg_policy* policy) {
  return policy->seq_offset[TG_SEQ_EXTEND + 1] - policy->seq_offset[TG_SEQ_EXTEND];
}

/* 1 if another block may be opened, else 0. Along a marker of several tokens the room must last to the marker's end. */
static int start_is_legal(const tg_program* program, const tg_policy* policy, const tg_state* state) {
  if (state->blocks >= policy->max_think_blocks || policy->opening == TG_OPEN_FORBID || !answer_may_restart(policy, state))
    return 0;
  if (policy->max_thinking_tokens != TG_NO_LIMIT && state->thinking >= policy->max_thinking_tokens) return 0;
  return state->limit == TG_NO_LIMIT || thinking_left(program, policy, state) > program->header_tokens;
}

/* How many more tokens the answer may have, by max_answer_tokens and by the limit of the output; INT32_MAX: any number. At
 * or below 0 none is left. */
static int32_t answer_left(const tg_policy* policy, const tg_state* state) {
  int32_t left = INT32_MAX;
  if (policy->max_answer_tokens != TG_NO_LIMIT) left = policy->max_answer_tokens - state->answer;
  if (state->limit != TG_NO_LIMIT && room_of(state) < left) left = room_of(state);
  return left;
}

/* --- text --- */

/* Bytes that the text's last character still misses; 0 if it is whole or already invalid. */
static int32_t pending_bytes(int32_t tail) {
  uint32_t text = (uint32_t)tail;
  for (int32_t have = 1; have <= 3; have++) {
    uint32_t byte = text >> 8 * (have - 1) & 0xFF;
    if ((byte & 0xC0) == 0x80) continue;
    int32_t want = byte >= 0xF5 ? 1 : byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC2 ? 2 : 1;
    if (have > 1) {
      uint32_t second = text >> 8 * (have - 2) & 0xFF;
      if ((byte == 0xE0 && second < 0xA0) || (byte == 0xED && second > 0x9F) || (byte == 0xF0 && second < 0x90) ||
          (byte == 0xF4 && second > 0x8F))
        return 0;
    }
    return want > have ? want - have : 0;
  }
  return 0;
}

static int ends_sentence(uint32_t tail) {
  uint32_t last = tail & 0xFF, before = tail >> 8 & 0xFF, wide = tail & 0xFFFFFF;
  if (wide == 0xE38082 || wide == 0xEFBC81 || wide == 0xEFBC9F || wide == 0xEFBC8E)
    before = tail >> 24;
  else if (last != '.' && last != '!' && last != '?')
    return 0;
  return before < '0' || before > '9';
}

static int at_boundary(const tg_policy* policy, const tg_state* state) { /* 14 */
  uint32_t tail = (uint32_t)state->tail;
  if (state->block < 1 || pending_bytes(state->tail)) return 0;
  return (tail & 0xFF) == '\n' || (policy->close_at == TG_AT_SENTENCE && ends_sentence(tail));
}

/* Count a token that lies wholly in the canonical white space behind a start; 0 if it does not (7). */
static int in_start_space(const tg_program* program, tg_state* state, uint32_t info, int32_t token) {
  int32_t length = (int32_t)(info >> 8 & 0xFF);
  if (state->space >= 0 && length > 0 && length <= program->space_bytes - state->space) {
    uint32_t word = (uint32_t)program->space_word >> 8 * (program->space_bytes - state->space - length);
    uint32_t mask = length == 4 ? UINT32_MAX : ((uint32_t)1 << 8 * length) - 1;
    if ((word & mask) == program->tail[token]) {
      state->space += length;
      return 1;
    }
  }
  state->space = -1;
  return 0;
}

/* --- loops (16) --- */

static void note_for_loop(const tg_policy* policy, tg_state* state, tg_loop* loop, int32_t token) {
  if (!loop || !policy->loop_tokens) return;
  int32_t periods = policy->loop_tokens / 4, found = 0;
  TG_ASSERT(periods <= TG_LOOP_PERIODS);
  for (int32_t p = 1; p <= periods; p++) {
    int same = loop->count >= (uint32_t)p && loop->ring[(loop->count - (uint32_t)p) % TG_LOOP_PERIODS] == token;
    if (same)
      count(&loop->run[p - 1]);
    else
      loop->run[p - 1] = 0;
    found |= loop->run[p - 1] >= policy->loop_tokens - p;
  }
  loop->ring[loop->count % TG_LOOP_PERIODS] = token;
  loop->count++;
  if (found) state->flags |= TG_STATE_LOOP;
}

/* --- what has to be forced next --- */

static void settle(const tg_program* program, const tg_policy* policy, tg_state* state) {
  if (state->seq || state->phase == TG_ANSWERING || state->phase == TG_DONE) return;
  const tg_node* node = &program->nodes[state->node];
  if (state->phase == TG_BEFORE && policy->opening == TG_OPEN_FORCE) { /* 10 */
    begin_sequence(program, policy, state, node->open ? node->open : TG_SEQ_OPEN, 0);
  } else if (state->phase == TG_BEFORE && policy->opening == TG_OPEN_FORBID) {
    begin_sequence(program, policy, state, TG_SEQ_OFF, 0);
  } else if (state->phase == TG_BEFORE && program->is_channel && !node->reach) {
    begin_sequence(program, policy, state, program->channel_seq, 0);
  } else if (state->phase == TG_HEADING && state->body == TG_BODY_NONE && !state->is_headed && !node->reach) {
    begin_sequence(program, policy, state, program->header_seq, 0);
  } else if (state->phase == TG_THINKING) {
    int32_t left = thinking_left(program, policy, state), reason = TG_BY_NONE;
    if (left <= 0 || policy->opening == TG_OPEN_FORBID)
      reason = TG_BY_BUDGET;
    else if (state->thinking < policy->min_thinking_tokens)
      return; /* 13 */
    else if (state->flags & TG_STATE_LOOP)
      reason = TG_BY_LOOP;
    else if (left <= policy->grace_tokens && at_boundary(policy, state))
      reason = TG_BY_BOUNDARY;
    if (reason) {
      state->phase = TG_CLOSING;
      state->closed_by = reason;
      begin_sequence(program, policy, state, node->finish ? node->finish : TG_SEQ_CLOSE, 0); /* 12, 19 */
    }
  }
}

/* --- what a token did --- */

static void begin_block(tg_state* state, tg_loop* loop, const tg_event* event) {
  state->phase = TG_THINKING;
  state->closed_by = TG_BY_NONE;
  state->block = 0;
  state->space = event->space;
  if (loop) memset(loop, 0, sizeof *loop);
}

static void begin_answer(tg_state* state, int32_t body, int32_t visible) {
  state->phase = TG_ANSWERING;
  state->body = body;
  state->visible = visible;
  state->blank = 0;
}

static void begin_header(tg_state* state, int32_t body) {
  state->phase = TG_HEADING;
  state->body = body;
  state->header_tokens = state->is_headed = 0;
  if (body == TG_BODY_NONE) state->flags &= ~TG_STATE_RECIPIENT;
}

/* Let the last marker of a token decide the phase (1). `was` is the phase before, CLOSING only if the token was the forced
 * one. Returns whether the marker meant anything there. */
static int follow_marker(const tg_program* program, const tg_policy* policy, tg_state* state, tg_loop* loop, int32_t was,
                         const tg_event* event) {
  int thinking = was == TG_THINKING || was == TG_CLOSING;
  int32_t kind = event->last & ~TG_SPELLED;
  TG_ASSERT(event->starts >= 0);
  state->blocks = state->blocks > INT32_MAX - event->starts ? INT32_MAX : state->blocks + event->starts;
  if (event->kinds & TG_MULTI) state->flags |= TG_STATE_VIOLATION;
  switch (kind) {
    case TG_START:
      if (thinking || state->blocks > policy->max_think_blocks) state->flags |= TG_STATE_VIOLATION;
      begin_block(state, loop, event);
      return 1;
    case TG_END:
      if (!thinking && !(was == TG_ANSWERING && state->body == TG_BODY_PREAMBLE)) state->flags |= TG_STATE_VIOLATION;
      if (was == TG_THINKING || was == TG_BEFORE) state->closed_by = TG_BY_MODEL;
      if (program->is_channel)
        begin_header(state, TG_BODY_NONE);
      else
        begin_answer(state, TG_BODY_FINAL, event->tail_visible);
      return 1;
    case TG_ANSWER:
      if (thinking || (was == TG_ANSWERING && program->is_channel)) state->flags |= TG_STATE_VIOLATION;
      if (thinking) state->closed_by = TG_BY_MODEL;
      begin_answer(state, TG_BODY_FINAL, event->tail_visible);
      return 1;
    case TG_IMPLICIT:
      if (!thinking) return 0;
      state->closed_by = TG_BY_IMPLICIT;
      begin_answer(state, TG_BODY_FINAL, 1);
      return 1;
    case TG_TOOL:
      if (was != TG_HEADING && was != TG_BEFORE) state->flags |= TG_STATE_VIOLATION;
      begin_header(state, TG_BODY_FREE);
      return 1;
    case TG_BODY:
      if (was != TG_HEADING && was != TG_BEFORE) {
        state->flags |= TG_STATE_VIOLATION;
        return 0;
      }
      begin_answer(state,
                   state->flags & TG_STATE_RECIPIENT ? TG_BODY_CALL
                   : state->body == TG_BODY_FREE     ? TG_BODY_PREAMBLE
                                                     : TG_BODY_FINAL,
                   event->tail_visible);
      return 1;
    case TG_HEADER:
      if (was == TG_BEFORE) return 1;
      if (was != TG_HEADING) state->flags |= TG_STATE_VIOLATION;
      begin_header(state, TG_BODY_NONE);
      if (!state->seq) begin_sequence(program, policy, state, program->header_seq, 1);
      return 1;
    case TG_CALL_END:
      if (was != TG_ANSWERING || state->body != TG_BODY_CALL) state->flags |= TG_STATE_VIOLATION;
      begin_header(state, TG_BODY_NONE);
      return 1;
    case TG_RECIPIENT:
      if (was == TG_HEADING || was == TG_BEFORE) state->flags |= TG_STATE_RECIPIENT;
      return 0;
    default: return 0;
  }
}

/* Whether a token in BEFORE left visible text outside a live start prefix (10). */
static int breaks_silence(const tg_program* program, int32_t node_before, const tg_state* state, uint32_t info) {
  int32_t had = program->nodes[node_before].start_bytes, has = program->nodes[state->node].start_bytes;
  int32_t length = (int32_t)(info >> 8 & 0xFF), leading = (int32_t)(info >> 16 & 0xFF);
  if (had) return has != had + length;
  return info & TG_VISIBLE && length - has > leading;
}

/* Keep the last four bytes of the text. */
static void extend_tail(const tg_program* program, tg_state* state, uint32_t info, int32_t token) {
  uint32_t length = info >> 8 & 0xFF;
  state->tail = (int32_t)(length >= 4 ? program->tail[token] : (uint32_t)state->tail << 8 * length | program->tail[token]);
}

static void count_answer(tg_state* state, int32_t visible, int forced) {
  if (visible) count(&state->visible);
  if (!forced) count(&state->answer);
  if (visible)
    state->blank = 0;
  else if (!forced)
    count(&state->blank);
}

static void account(const tg_program* program, const tg_policy* policy, tg_state* state, tg_loop* loop, int32_t token) {
  uint32_t info = tg_info(program, token);
  uint32_t step = tg_step(program, state->node, token);
  const tg_event* event = event_at(program, step);
  int32_t node_before = state->node;
  int forced = state->seq && next_in_sequence(program, policy, state) == token;
  state->flags &= ~(TG_STATE_LOOP | TG_STATE_VIOLATION | TG_STATE_FORCED);
  if (forced) {
    state->flags |= TG_STATE_FORCED;
    begin_sequence(program, policy, state, state->seq, state->pos + 1);
  } else if (state->seq) {
    state->seq = state->pos = 0;
    if (state->phase == TG_CLOSING) { /* 19: back in THINKING, decide again from the text */
      state->phase = TG_THINKING;
      state->closed_by = TG_BY_NONE;
    }
  }
  state->node = (int32_t)(step & 0xFFFF);
  if (info & TG_TEXT) extend_tail(program, state, info, token);
  int32_t was = state->phase;
  int quoted = was == TG_ANSWERING && policy->markers_in_answer == TG_MARKERS_ALLOW && !program->is_channel && event->last &&
               event->last != TG_ANSWER;
  if (quoted) state->flags |= TG_STATE_VIOLATION;
  if (event->last && !quoted && follow_marker(program, policy, state, loop, was, event)) return;
  int32_t visible = (info & TG_VISIBLE) != 0;
  if (was == TG_THINKING) {
    int extends = !forced && extension_fits(program, policy, state, extension_length(policy) - 1) &&
                  token == tg_policy_tokens(policy)[policy->seq_offset[TG_SEQ_EXTEND]];
    if (in_start_space(program, state, info, token) || forced) return;
    count(&state->thinking);
    count(&state->block);
    note_for_loop(policy, state, loop, token);
    if (extends) { /* 18 */
      count(&state->extensions);
      begin_sequence(program, policy, state, TG_SEQ_EXTEND, 1);
    }
  } else if (was == TG_CLOSING) {
    state->space = -1;
  } else if (was == TG_HEADING) {
    if (state->body == TG_BODY_FREE)
      count(&state->header_tokens);
    else if (forced && !state->seq)
      state->is_headed = 1;
  } else if (was == TG_BEFORE && !breaks_silence(program, node_before, state, info)) {
    if (!visible && !forced) count(&state->blank);
  } else if (was == TG_BEFORE && program->is_channel) {
    if (!forced && !program->nodes[state->node].reach) begin_header(state, TG_BODY_FREE);
  } else if (was == TG_BEFORE || was == TG_ANSWERING) {
    if (was == TG_BEFORE) {
      begin_answer(state, TG_BODY_FINAL, 0);
      visible = 1; /* if not this token, then the half-written start before it */
    }
    count_answer(state, visible, forced);
  }
}

static TG_OUT_OF_LINE void advance(const tg_program* program, const tg_policy* policy, tg_state* state, tg_loop* loop,
                                   int32_t token) {
  if (state->phase == TG_DONE || state->flags & TG_STATE_INERT) return;
  if (token < 0) {
    state->flags = TG_STATE_INERT;
    state->seq = state->pos = 0;
    return;
  }
  count(&state->length);
  if (tg_is_eos(policy, token)) {
    int early = state->phase != TG_ANSWERING || state->visible < policy->min_answer_tokens;
    state->flags &= ~(TG_STATE_LOOP | TG_STATE_VIOLATION | TG_STATE_FORCED);
    if (early && !(state->phase == TG_BEFORE && policy->min_answer_tokens == 0)) state->flags |= TG_STATE_VIOLATION;
    state->phase = TG_DONE;
    state->seq = state->pos = 0;
    return;
  }
  account(program, policy, state, loop, token);
  if (state->phase != TG_ANSWERING) settle(program, policy, state);
}

void tg_advance(const tg_program* program, const tg_policy* policy, tg_state* state, tg_loop* loop, int32_t token) {
  uint32_t info = tg_info(program, token);
  /* Ordinary text in the middle of an answer moves nothing but counters; `advance` would come to the same. */
  if (state->phase != TG_ANSWERING || state->seq || state->node || state->flags & TG_STATE_INERT || !(info & TG_TEXT) ||
      program->step[token] || tg_is_eos(policy, token)) {
    advance(program, policy, state, loop, token);
    return;
  }
  count(&state->length);
  state->flags &= ~(TG_STATE_LOOP | TG_STATE_VIOLATION | TG_STATE_FORCED);
  extend_tail(program, state, info, token);
  count_answer(state, (info & TG_VISIBLE) != 0, 0);
}

void tg_scan(const tg_program* program, const tg_policy* policy, tg_state* state, tg_loop* loop, const int64_t* token_ids,
             int64_t num_tokens, int64_t stride) {
  for (int64_t i = 0; i < num_tokens; i++) {
    int64_t token = token_ids[i * stride];
    tg_advance(program, policy, state, loop, token < 0 || token > INT32_MAX ? -1 : (int32_t)token);
  }
}

/* --- prompts --- */

void tg_start(const tg_program* program, const tg_policy* policy, const int32_t* turn_ids, int64_t num_tokens, int32_t raw,
              int32_t limit, tg_state* state, tg_loop* loop) {
  tg_state fresh = {.phase = TG_BEFORE, .space = -1, .limit = limit};
  if (loop) memset(loop, 0, sizeof *loop);
  *state = fresh;
  settle(program, policy, state);
  int32_t silent = 1; /* nothing visible behind the last marker, there was one */
  for (int64_t i = 0; i < num_tokens; i++) {
    int32_t token = turn_ids[i];
    if (token < 0) continue;
    uint32_t step = tg_step(program, state->node, token);
    const tg_event* event = event_at(program, step);
    if (event->last)
      silent = !event->tail_visible;
    else if (tg_info(program, token) & TG_VISIBLE)
      silent = 0;
    account(program, policy, state, loop, token);
    settle(program, policy, state);
  }
  if (raw && (!silent || state->phase == TG_BEFORE)) { /* 5: without a chat only a marker at the very end counts */
    *state = fresh;
    settle(program, policy, state);
  } else if (state->phase == TG_ANSWERING || state->phase == TG_HEADING) {
    if (state->closed_by != TG_BY_NONE) state->closed_by = TG_BY_PROMPT;
  }
  state->answer = 0; /* max_answer_tokens is about what is sampled */
}

int64_t tg_turn_start(const tg_program* program, const int32_t* token_ids, int64_t num_tokens, int32_t* raw) {
  for (int64_t i = num_tokens; i > 0; i--) {
    uint32_t info = tg_info(program, token_ids[i - 1]);
    if (info & TG_BOUNDARY) {
      *raw = (info & TG_RAW) != 0;
      return i;
    }
  }
  *raw = 1;
  return 0;
}

int64_t tg_turn_start_by_text(const tg_program* turns, const int32_t* token_ids, int64_t num_tokens, int64_t lead,
                              int32_t* raw) {
  int64_t start = 0, before = 0; /* 0: not in a turn of the assistant */
  int32_t node = 0, found = 0;
  int known = !lead, was_known = known; /* whether `start` and `before` are what a walk over the whole prompt would have */
  for (int64_t i = 0; i < num_tokens; i++) {
    uint32_t step = tg_step(turns, node, token_ids[i]);
    node = (int32_t)(step & 0xFFFF);
    if (lead > 0) {
      lead -= (tg_info(turns, token_ids[i]) & TG_TEXT) != 0;
      continue;
    }
    if (step >> 16 == 0) continue;
    const tg_event* event = event_at(turns, step);
    if (event->kinds & TG_HEADER) {
      /* With headers, a boundary ends the assistant's turn, unless it turns out to begin one more header of the assistant.
       */
      before = start;
      was_known = known;
      start = turns->is_channel ? 0 : i + 1;
      found = known = 1;
    }
    if (event->last & TG_START) {
      start = before ? before : i + 1;
      known = was_known;
    }
  }
  if (!known) return -1;
  *raw = !found;
  return found && !start ? num_tokens : start;
}

/* --- deciding --- */

static void force(tg_action* action, int32_t token) {
  tg_action forced = {.kind = TG_FORCE, .token = token};
  *action = forced;
}

static void decide_thinking(const tg_program* program, const tg_policy* policy, const tg_state* state, tg_action* action) {
  const tg_node* node = &program->nodes[state->node];
  action->forbidden |= TG_START | TG_ANSWER | TG_TOOL | TG_BODY | TG_HEADER | TG_CALL_END;
  if (state->thinking < policy->min_thinking_tokens) { /* 13 */
    action->forbidden |= TG_END | TG_IMPLICIT | TG_GROWS_END;
    action->flags |= TG_BAN_EOS;
    if (extension_fits(program, policy, state, extension_length(policy))) { /* 18 */
      action->flags |= TG_MOVE_END;
      action->token = tg_policy_tokens(policy)[policy->seq_offset[TG_SEQ_EXTEND]];
    }
  } else { /* 11 */
    action->flags |= (policy->on_eos == TG_EOS_CLOSE ? TG_MOVE_EOS : TG_BAN_EOS) | TG_MOVE_IMPLICIT;
    action->token = node->plan;
    if (policy->soft_thinking_tokens != TG_NO_LIMIT && state->thinking >= policy->soft_thinking_tokens) /* 17 */
      action->bias = policy->close_bias * (float)(state->thinking - policy->soft_thinking_tokens) /
                     (float)(policy->max_thinking_tokens - policy->soft_thinking_tokens);
  }
  int32_t left = thinking_left(program, policy, state);
  action->cut = left > 3 ? 0 : left > 1 ? left : 1; /* 15 */
}

int32_t tg_answer_eos(const tg_program* program, const tg_policy* policy) {
  for (int32_t i = 0; i < policy->num_eos; i++)
    if (!(event_at(program, tg_step(program, 0, policy->eos[i]))->kinds & TG_CALL_END)) return policy->eos[i];
  return policy->num_eos ? policy->eos[0] : -1;
}

static void decide_answer(const tg_program* program, const tg_policy* policy, const tg_state* state, tg_action* action) {
  int32_t left = answer_left(policy, state), missing = policy->min_answer_tokens - state->visible;
  int32_t room = INT32_MAX;
  if (state->body == TG_BODY_PREAMBLE) { /* ends while the least answer still fits behind it */
    if (policy->max_answer_tokens != TG_NO_LIMIT)
      room = policy->max_answer_tokens - state->answer - policy->min_answer_tokens;
    int32_t behind = program->header_tokens + policy->min_answer_tokens + 2;
    if (state->limit != TG_NO_LIMIT && room_of(state) - behind < room) room = room_of(state) - behind;
    if (room <= 0) {
      force(action, program->message_end);
      return;
    }
  }
  if (policy->max_answer_tokens != TG_NO_LIMIT && state->answer >= policy->max_answer_tokens &&
      state->phase == TG_ANSWERING) {
    if (state->body != TG_BODY_CALL && policy->num_eos) {
      force(action, tg_answer_eos(program, policy));
      return;
    }
  }
  if (missing > 0) {
    action->flags |= TG_BAN_EOS;
    if (state->blank >= TG_BLANK_PATIENCE || left <= missing) action->flags |= TG_BAN_BLANK; /* 20 */
  }
  if (room < left) left = room;
  if (left >= 1 && left <= 3) action->cut = left;
  if (policy->markers_in_answer == TG_MARKERS_ALLOW && state->phase == TG_ANSWERING && !program->is_channel) {
    action->forbidden = answer_may_restart(policy, state) ? 0 : action->forbidden | TG_ANSWER;
    return;
  }
  action->forbidden |= TG_END;
  if (!start_is_legal(program, policy, state) || program->is_channel) action->forbidden |= TG_START;
  if (!answer_may_restart(policy, state)) action->forbidden |= TG_ANSWER;
  if (!program->is_channel) return;
  action->forbidden |= TG_ANSWER | TG_TOOL | TG_BODY | TG_HEADER;
  if (state->body == TG_BODY_CALL) {
    action->flags |= TG_ONLY_CALL_END;
  } else {
    action->forbidden |= TG_CALL_END;
    action->flags |= TG_NOT_CALL_END;
  }
  if (state->body != TG_BODY_PREAMBLE) return;
  if (missing > 0) {
    action->flags |= TG_BAN_EOS;
  } else { /* a preamble is not the turn's end: EOS ends the message (11) */
    action->flags |= TG_MOVE_EOS;
    action->token = program->message_end;
    action->forbidden &= ~TG_END;
  }
}

/* Between two messages: which channel comes next, or a tool call's free header. */
static void decide_header(const tg_program* program, const tg_policy* policy, const tg_state* state, tg_action* action) {
  int32_t room = state->limit == TG_NO_LIMIT ? INT32_MAX : room_of(state);
  if (state->body == TG_BODY_FREE) {
    int32_t behind =
        state->flags & TG_STATE_RECIPIENT ? 0 : program->header_tokens + 1; /* of a preamble: its end, a header */
    int32_t left = TG_HEADER_PATIENCE - state->header_tokens;
    if (state->limit != TG_NO_LIMIT && room - behind - policy->min_answer_tokens - 2 < left)
      left = room - behind - policy->min_answer_tokens - 2;
    if (left <= 0) {
      force(action, program->body_token);
      return;
    }
    if (left <= 3) action->cut = left;
    action->forbidden |= TG_START | TG_END | TG_ANSWER | TG_TOOL | TG_HEADER | TG_CALL_END;
    action->flags |= TG_BAN_EOS;
    return;
  }
  int32_t reach = program->nodes[state->node].reach, legal = (reach ? reach : ~0) & (TG_ANSWER | TG_TOOL | TG_START);
  /* Where several kinds are left to choose from, only those for which there is room. */
  if (legal & (legal - 1)) {
    if (!start_is_legal(program, policy, state)) legal &= ~TG_START;
    if (legal & ~TG_TOOL && room <= program->header_tokens + TG_HEADER_PATIENCE + policy->min_answer_tokens + 2)
      legal &= ~TG_TOOL;
  }
  int32_t only = -1, count = 0;
  for (int32_t i = program->mark_offset[state->node]; i < program->mark_offset[state->node + 1]; i++) {
    if (!tg_mark_allowed(program->mark_mask[i], legal)) continue;
    only = program->mark_token[i];
    count++;
  }
  if (count > 1) {
    tg_action allow = {.kind = TG_ALLOW, .token = -1, .node = state->node, .allowed = legal};
    *action = allow;
  } else if (count == 1) {
    force(action, only);
  } else {
    int32_t length;
    force(action, sequence(program, policy, program->header_seq, &length)[0]);
  }
}

/* The step that is to cost nothing: an answer past its minimum and without limits, where no token leads to a marker.
 * `decide` would come to the same. */
static int answer_is_idle(const tg_program* program, const tg_policy* policy, const tg_state* state) {
  return state->phase == TG_ANSWERING && !state->seq && !state->node && !program->nodes[0].marks && !program->num_never &&
         state->visible >= policy->min_answer_tokens && state->limit == TG_NO_LIMIT &&
         policy->max_answer_tokens == TG_NO_LIMIT;
}

static TG_OUT_OF_LINE void decide(const tg_program* program, const tg_policy* policy, const tg_state* state,
                                  tg_action* action) {
  int32_t next = next_in_sequence(program, policy, state);
  if (next >= 0) {
    force(action, next);
    return;
  }
  action->kind = TG_EDIT;
  action->node = state->node;
  action->forbidden = TG_SPELLED | TG_MULTI;
  if (state->phase == TG_THINKING || state->phase == TG_CLOSING)
    decide_thinking(program, policy, state, action);
  else if (state->phase == TG_HEADING || (state->phase == TG_BEFORE && program->is_channel))
    decide_header(program, policy, state, action);
  else
    decide_answer(program, policy, state, action);
  if (action->kind != TG_EDIT) return;
  if (state->node && action->forbidden) action->flags |= TG_BAN_INERT; /* 2 */
  if (program->num_never) action->flags |= TG_BAN_NEVER;               /* 3 */
  if (action->cut) action->pending = pending_bytes(state->tail);
  if (!action->flags && !action->cut && !(program->nodes[state->node].marks & action->forbidden)) action->kind = TG_FREE;
}

void tg_decide(const tg_program* program, const tg_policy* policy, const tg_state* state, tg_action* action) {
  tg_action free_step = {.kind = TG_FREE, .token = -1};
  *action = free_step;
  if (state->phase == TG_DONE || state->flags & TG_STATE_INERT || answer_is_idle(program, policy, state)) return;
  decide(program, policy, state, action);
}
