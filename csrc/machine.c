/* machine.c: where a sequence stands.
 *
 * tg_advance moves a state over one token: the automaton says which markers the token completed, the last of them decides the
 * phase, the counters follow, and `settle` looks ahead for what has to be forced. Numbers in comments are the rules of
 * docs/semantics.md.
 */
#include "machine.h"

uint32_t tg_step(const tg_program* program, int32_t node, int32_t token) {
  if (!(tg_info(program, token) & TG_TEXT)) return (uint32_t)node;
  TG_ASSERT(node >= 0 && node < program->num_nodes);
  if (!node) return program->step[token];
  int32_t at = tg_find(program->except_token, program->except_offset[node], program->except_offset[node + 1], token);
  return at < 0 ? program->step[token] : program->except_step[at];
}

int32_t tg_kinds_on_the_way(const tg_program* program, int32_t pair, const int32_t* tokens, int64_t num_tokens) {
  int32_t kinds = 0;
  for (int32_t from = 0; from < program->num_nodes; from++) {
    int32_t node = from;
    for (int64_t i = 0; i < num_tokens; i++) {
      uint32_t step = tg_step(program, node, tokens[i]);
      node = (int32_t)(step & 0xFFFF);
      kinds |= tg_event_at(program, step, pair)->kinds;
    }
  }
  return kinds;
}

/* Count one more, or `more`, up to INT32_MAX. */
static inline void count(int32_t* counter) { *counter += *counter != INT32_MAX; }
static inline void count_many(int32_t* counter, int32_t more) {
  *counter = *counter > INT32_MAX - more ? INT32_MAX : *counter + more;
}

int32_t tg_close_room(const tg_program* program, const tg_policy* policy) { return close_room(program, policy); }

/* --- sequences --- */

static void begin_sequence(const tg_program* program, const tg_policy* policy, tg_state* state, int32_t seq, int32_t pos) {
  int32_t length;
  sequence(program, policy, state->pair, seq, &length);
  state->seq = pos < length ? seq : TG_SEQ_NONE;
  state->pos = state->seq ? pos : 0;
}

/* --- text --- */

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

static void clear_loop(tg_loop* loop) {
  TG_EACH(i, 0, (int32_t)(sizeof *loop / sizeof(int32_t)))((int32_t*)loop)[i] = 0;
  tg_meet();
}

static void note_for_loop(const tg_policy* policy, tg_state* state, tg_loop* loop, int32_t token) {
  if (!loop || !policy->loop_tokens) return;
  int32_t periods = policy->loop_tokens / 4, found = 0;
  int32_t wanted = policy->loop_tokens + (pending_bytes(state->tail) ? 3 : 0); /* a character has no more tokens */
  uint32_t seen = loop->count;
  TG_ASSERT(periods <= TG_LOOP_PERIODS);
  TG_EACH(p, 1, periods + 1) {
    int same = seen >= (uint32_t)p && loop->ring[(seen - (uint32_t)p) % TG_LOOP_PERIODS] == token;
    if (same)
      count(&loop->run[p - 1]);
    else
      loop->run[p - 1] = 0;
    found |= loop->run[p - 1] >= wanted - p;
  }
  if (tg_any(found)) state->flags |= TG_STATE_LOOP; /* behind it all have read what is written next */
  TG_ALONE {
    loop->ring[seen % TG_LOOP_PERIODS] = token;
    loop->count = seen + 1;
  }
  tg_meet();
}

/* --- what has to be forced next --- */

/* Behind the last marker in front of an answer: what the policy says there, in place of what is left of a close (19). White
 * space that the marker's own token brought along is not written again; visible text has begun the answer by itself. */
static void begin_prefix(const tg_program* program, const tg_policy* policy, tg_state* state, const tg_event* event) {
  int32_t length;
  sequence(program, policy, state->pair, TG_SEQ_PREFIX, &length);
  if (!length || event->tail_visible || state->closed_by == TG_BY_NONE) return;
  if (policy->answer_prefix_on == TG_PREFIX_FORCED && state->closed_by == TG_BY_MODEL) return;
  if (state->limit != TG_NO_LIMIT && room_of(state) <= length + policy->min_answer_tokens) return;
  begin_sequence(program, policy, state, TG_SEQ_PREFIX, event->tail_bytes ? policy->prefix_space : 0);
}

/* Whether the bare end reads as an end behind what is half written: `ba` behind `a` reads as the start `ab`. */
static int bare_reads(const tg_program* program, const tg_policy* policy, const tg_state* state) {
  if (!state->node) return 1;
  int32_t length, first = sequence(program, policy, state->pair, TG_SEQ_BARE, &length)[0];
  uint32_t here = tg_step(program, state->node, first), alone = tg_step(program, 0, first);
  if ((here & 0xFFFF) != (alone & 0xFFFF)) return 0;
  return tg_event_at(program, here, state->pair)->kinds == tg_event_at(program, alone, state->pair)->kinds;
}

static void begin_close(const tg_program* program, const tg_policy* policy, tg_state* state) { /* 12, 19 */
  int32_t finish = program->nodes[tg_node_at(program, state, state->node)].finish;
  int bare = state->flags & TG_STATE_BARE || (policy->closes_line && state->block && (state->tail & 0xFF) == '\n');
  if (bare && !finish) bare = bare_reads(program, policy, state);
  begin_sequence(program, policy, state, finish ? finish : bare ? TG_SEQ_BARE : TG_SEQ_CLOSE, 0);
}

/* The sequence that a turn has to begin with, TG_SEQ_NONE: none, or there is no room any more for what it leads to (8). */
static int32_t opening_due(const tg_program* program, const tg_policy* policy, const tg_state* state) {
  if (state->phase != TG_BEFORE) return TG_SEQ_NONE;
  int32_t seq = TG_SEQ_NONE, room = 0, length, open = program->nodes[state->node].open;
  if (policy->opening == TG_OPEN_FORCE || state->flags & TG_STATE_OPENS) {
    seq = open ? open : TG_SEQ_OPEN;
    room = close_room(program, policy);
  } else if (policy->opening == TG_OPEN_FORBID) {
    seq = TG_SEQ_OFF;
    room = policy->min_answer_tokens;
  }
  if (!seq || !state->length || state->limit == TG_NO_LIMIT) return seq;
  sequence(program, policy, state->pair, seq, &length);
  return room_of(state) - length >= room ? seq : TG_SEQ_NONE;
}

static void settle(const tg_program* program, const tg_policy* policy, tg_state* state) {
  if (state->seq || state->phase == TG_ANSWERING || state->phase == TG_DONE) return;
  const tg_node* node = &program->nodes[state->node]; /* before any start, and in formats with headers, there is one pair */
  int32_t opening = opening_due(program, policy, state);
  if (opening) { /* 10 */
    begin_sequence(program, policy, state, opening, 0);
  } else if (state->phase == TG_BEFORE && program->is_channel && !node->reach) {
    begin_sequence(program, policy, state, program->channel_seq, 0);
  } else if (state->phase == TG_HEADING && state->body == TG_BODY_NONE && !state->is_headed && !node->reach) {
    begin_sequence(program, policy, state, program->header_seq, 0);
  } else if (state->phase == TG_CLOSING) {
    begin_close(program, policy, state);
  } else if (state->phase == TG_THINKING) {
    int32_t left = thinking_left(program, policy, state), reason = TG_BY_NONE;
    if (left <= 0)
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
      begin_close(program, policy, state);
    }
  }
}

/* --- what a token did --- */

enum { OF_TEXT = TG_STATE_MARKUP | TG_STATE_PARAGRAPH | TG_STATE_SPOKEN | TG_STATE_BARE };

static void begin_block(tg_state* state, tg_loop* loop, const tg_event* event) {
  state->flags &= ~OF_TEXT;
  state->phase = TG_THINKING;
  state->closed_by = TG_BY_NONE;
  state->block = 0;
  state->space = event->space;
  if (loop) clear_loop(loop);
}

/* What is left of a close of another pair is not for this one; all other sequences are the same for all pairs. */
static void begin_pair(tg_state* state, int32_t pair) {
  if (pair != state->pair && (state->seq == TG_SEQ_CLOSE || state->seq == TG_SEQ_BARE)) state->seq = state->pos = 0;
  state->pair = pair;
}

static void begin_answer(tg_state* state, int32_t body, int32_t visible) {
  state->flags &= ~OF_TEXT;
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
                         const tg_event* event, uint32_t info) {
  int thinking = was == TG_THINKING || was == TG_CLOSING, forced = state->flags & TG_STATE_FORCED;
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
      if (was != TG_CLOSING && forced) /* of the thinking-off text, which may have no start */
        state->closed_by = TG_BY_BUDGET;
      else if (was == TG_THINKING || was == TG_BEFORE)
        state->closed_by = TG_BY_MODEL;
      if (!thinking && !forced && !(was == TG_ANSWERING && state->body == TG_BODY_PREAMBLE))
        state->flags |= TG_STATE_VIOLATION;
      if (program->is_channel)
        begin_header(state, TG_BODY_NONE);
      else {
        begin_answer(state, TG_BODY_FINAL, event->tail_visible);
        if ((thinking || was == TG_BEFORE) && state->seq != TG_SEQ_OFF) begin_prefix(program, policy, state, event);
      }
      return 1;
    case TG_ANSWER:
      if (thinking || (was == TG_ANSWERING && program->is_channel)) state->flags |= TG_STATE_VIOLATION;
      if (thinking) state->closed_by = TG_BY_MODEL;
      begin_answer(state, TG_BODY_FINAL, event->tail_visible);
      if (was == TG_HEADING) begin_prefix(program, policy, state, event);
      return 1;
    case TG_IMPLICIT:
      if (!thinking) return 0;
      state->closed_by = TG_BY_IMPLICIT;
      begin_answer(state, TG_BODY_FINAL, (info & TG_VISIBLE) != 0); /* the opener belongs to the answer */
      state->flags |= TG_STATE_MARKUP;                              /* and what it opens will be closed */
      return 1;
    case TG_TOOL:
      if (was != TG_HEADING && was != TG_BEFORE) state->flags |= TG_STATE_VIOLATION;
      begin_header(state, TG_BODY_FREE);
      return 1;
    case TG_BODY:
      if (was != TG_HEADING && was != TG_BEFORE) {
        if (program->is_channel || thinking) state->flags |= TG_STATE_VIOLATION;
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
  const tg_node* nodes = program->nodes; /* starts are the same for all pairs */
  int32_t had = nodes[node_before].start_bytes, has = nodes[state->node].start_bytes;
  int32_t length = (int32_t)(info >> 8 & 0xFF), leading = (int32_t)(info >> 16 & 0xFF);
  if (had) return has != had + length;
  return info & TG_VISIBLE && length - has > leading;
}

/* Keep the last four bytes of the text. */
static void extend_tail(const tg_program* program, tg_state* state, uint32_t info, int32_t token) {
  uint32_t length = info >> 8 & 0xFF;
  state->tail = (int32_t)(length >= 4 ? program->tail[token] : (uint32_t)state->tail << 8 * length | program->tail[token]);
}

/* Note markup, but for the one character at the text's end that an end may still come of: it counts with the token behind it.
 * `nodes` are those of the pair. */
static inline void note_markup(const tg_node* nodes, tg_state* state, int32_t node_before, uint32_t info) {
  if (nodes[node_before].end_chars == 1 || (info & TG_MARKUP && nodes[state->node].end_chars != 1))
    state->flags |= TG_STATE_MARKUP;
}

/* Note what kind of text an answer holds, before a token is counted; `tail` is the text's before it. */
static inline void note_answer(const tg_node* nodes, tg_state* state, int32_t node_before, int32_t tail, uint32_t info) {
  note_markup(nodes, state, node_before, info);
  if (info & TG_VISIBLE && ends_in_empty_line(tail) && state->visible) state->flags |= TG_STATE_PARAGRAPH;
}

static void count_answer(tg_state* state, int32_t visible, int forced) {
  if (visible) count(&state->visible);
  if (!forced) count(&state->answer);
  if (visible)
    state->blank = 0;
  else if (!forced)
    count(&state->blank);
}

/* `is_over`: whether thinking_is_over before the token. */
static void account(const tg_program* program, const tg_policy* policy, tg_state* state, tg_loop* loop, int32_t token,
                    int is_over) {
  uint32_t info = tg_info(program, token);
  uint32_t step = tg_step(program, state->node, token);
  const tg_node* nodes = program->nodes + tg_node_at(program, state, 0);
  int32_t node_before = state->node, tail_before = state->tail;
  int forced = state->seq && next_in_sequence(program, policy, state) == token;
  int prefix = forced && (state->seq == TG_SEQ_PREFIX || state->seq == TG_SEQ_OFF); /* the latter ends in one */
  state->flags &= ~(TG_STATE_LOOP | TG_STATE_VIOLATION | TG_STATE_FORCED);
  if (forced) {
    state->flags |= TG_STATE_FORCED;
    begin_sequence(program, policy, state, state->seq, state->pos + 1);
  } else if (state->seq) {
    state->seq = state->pos = 0;
    if (is_over && token == nodes[node_before].plan) { /* 19: in place of what could not be, goes on from there */
      if (state->phase == TG_THINKING) state->closed_by = TG_BY_BUDGET;
      state->phase = TG_CLOSING;
      state->flags |= TG_STATE_BARE | TG_STATE_FORCED;
      forced = 1;
    } else if (state->phase == TG_CLOSING) { /* back in THINKING, decide again from the text */
      state->phase = TG_THINKING;
      state->closed_by = TG_BY_NONE;
      state->flags |= TG_STATE_BARE;
    }
  }
  state->node = (int32_t)(step & 0xFFFF);
  if (info & TG_TEXT) extend_tail(program, state, info, token);
  int32_t was = state->phase;
  if (step >> 16) {
    const tg_event* event = tg_event_at(program, step, state->pair);
    int quoted = was == TG_ANSWERING && policy->markers_in_answer == TG_MARKERS_ALLOW && !program->is_channel &&
                 event->last & ~(TG_ANSWER | TG_IMPLICIT | TG_BODY);
    if (quoted) state->flags |= TG_STATE_VIOLATION;
    if (event->last && !quoted && follow_marker(program, policy, state, loop, was, event, info)) {
      if (event->starts) begin_pair(state, event->pair);
      return;
    }
  }
  int32_t visible = (info & TG_VISIBLE) != 0;
  if (was == TG_THINKING) {
    int32_t begins = 0;
    int extends = !forced && state->flags & TG_STATE_SPOKEN &&
                  extension_fits(program, policy, state, extension_length(policy) - 1) &&
                  token == extension_aim(policy, tail_before, &begins) && begins;
    note_markup(nodes, state, node_before, info);
    if (visible && !nodes[state->node].start_bytes) state->flags |= TG_STATE_SPOKEN;
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
    if (!forced && !nodes[state->node].reach) begin_header(state, TG_BODY_FREE);
  } else if (was == TG_BEFORE || was == TG_ANSWERING) {
    if (was == TG_BEFORE) {
      begin_answer(state, TG_BODY_FINAL, 0);
      visible = 1; /* if not this token, then the half-written start before it */
    }
    note_answer(nodes, state, node_before, tail_before, info);
    count_answer(state, visible && !prefix, forced);
  }
}

/* Account for a token that was sampled, or, not `sampled`, that stands in the assistant's own part of the prompt, where EOS is
 * a token like others and nothing counts as output. */
static TG_OUT_OF_LINE void take(const tg_program* program, const tg_policy* policy, tg_state* state, tg_loop* loop,
                                int32_t token, int sampled) {
  int is_over = state->seq && thinking_is_over(program, policy, state);
  if (sampled) {
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
  } else if (token < 0) {
    return;
  }
  account(program, policy, state, loop, token, is_over);
  if (state->phase != TG_ANSWERING) settle(program, policy, state);
}

/* Take a token of a walk, sampled or, behind the last marker of a prompt, not; `silent` is kept up for tg_end_prompt. */
void tg_take(const tg_program* program, const tg_policy* policy, tg_state* state, tg_loop* loop, int32_t token, int sampled,
             int32_t* silent) {
  if (!sampled && token >= 0) {
    const tg_event* event = tg_event_at(program, tg_step(program, state->node, token), state->pair);
    if (event->last)
      *silent = !event->tail_visible;
    else if (tg_info(program, token) & TG_VISIBLE)
      *silent = 0;
  }
  take(program, policy, state, loop, token, sampled);
}

void tg_advance(const tg_program* program, const tg_policy* policy, tg_state* state, tg_loop* loop, int32_t token) {
  uint32_t info = tg_info(program, token);
  /* Ordinary text in the middle of an answer moves nothing but counters; `take` would come to the same. */
  if (state->phase != TG_ANSWERING || state->seq || state->node || state->flags & TG_STATE_INERT || !(info & TG_TEXT) ||
      program->step[token] || tg_is_eos(policy, token)) {
    take(program, policy, state, loop, token, 1);
    return;
  }
  count(&state->length);
  state->flags &= ~(TG_STATE_LOOP | TG_STATE_VIOLATION | TG_STATE_FORCED);
  note_answer(program->nodes, state, 0, state->tail, info); /* at the root all pairs are alike */
  extend_tail(program, state, info, token);
  count_answer(state, (info & TG_VISIBLE) != 0, 0);
}

/* A run of plain tokens, which have text, lead from the root to the root and are no EOS, does nothing but count: as many of
 * tokens[num_tokens] as all lanes see at once are taken together. The last four of a run are left, since the text's tail comes
 * of them, and thinking is taken only as far as no limit comes into sight. Returns how many were taken; `silent` as above. */
int32_t tg_take_run(const tg_program* program, const tg_policy* policy, tg_state* state, const int32_t* tokens,
                    int32_t num_tokens, int sampled, int32_t* silent) {
  int thinks = state->phase == TG_THINKING, answers = state->phase == TG_ANSWERING;
  if (!(thinks || answers) || state->node || state->seq || state->flags & TG_STATE_INERT) return 0;
  if (thinks && (state->space >= 0 || policy->loop_tokens || policy->opening == TG_OPEN_FORBID ||
                 (state->thinking < policy->min_thinking_tokens && state->extensions < policy->max_extensions)))
    return 0;
  int32_t token = TG_LANE < num_tokens ? tokens[TG_LANE] : -1;
  uint32_t info = tg_info(program, token);
  int plain = token >= 0 && info & TG_TEXT && !program->step[token] && !(sampled && tg_is_eos(policy, token));
  if (answers && !(state->flags & TG_STATE_PARAGRAPH)) { /* no token of a run stands behind an empty line */
    if (ends_in_empty_line(state->tail)) return 0;
    plain = plain && (program->tail[token] & 0xFF) != '\n';
  }
  int32_t run = tg_first(!plain) - 4;
  if (thinks) {
    int32_t room = thinking_left(program, policy, state);
    room = room > policy->grace_tokens ? room - policy->grace_tokens - 5 : 0;
    if (room < run) run = room;
  }
  if (run <= 0) return 0;
  state->tail = (int32_t)program->tail[tokens[run - 1]];
  int32_t shown = tg_count(TG_LANE < run && info & TG_VISIBLE), behind = run - 1 - TG_LANE;
  int32_t blank = tg_first(behind >= 0 && tg_info(program, tokens[behind]) & TG_VISIBLE); /* behind the last one */
  state->flags &= ~(TG_STATE_LOOP | TG_STATE_VIOLATION | TG_STATE_FORCED);
  if (sampled) count_many(&state->length, run);
  if (shown) *silent = 0;
  if (tg_any(TG_LANE < run && info & TG_MARKUP)) state->flags |= TG_STATE_MARKUP;
  if (thinks) {
    if (shown) state->flags |= TG_STATE_SPOKEN;
    count_many(&state->thinking, run);
    count_many(&state->block, run);
  } else {
    count_many(&state->visible, shown);
    count_many(&state->answer, run);
    if (shown)
      state->blank = blank;
    else
      count_many(&state->blank, run);
  }
  return run;
}

void tg_scan(const tg_program* program, const tg_policy* policy, tg_state* state, tg_loop* loop, const tg_ids* ids,
             int64_t num_tokens) {
  for (int64_t i = 0; i < num_tokens; i++) tg_advance(program, policy, state, loop, tg_id(ids, i));
}

/* --- prompts --- */

void tg_begin_prompt(const tg_program* program, const tg_policy* policy, int32_t limit, tg_state* state, tg_loop* loop) {
  tg_state fresh = {.phase = TG_BEFORE, .space = -1, .limit = limit};
  if (loop) clear_loop(loop);
  *state = fresh;
  settle(program, policy, state);
}

void tg_end_prompt(const tg_program* program, const tg_policy* policy, int32_t raw, int32_t silent, tg_state* state) {
  if (raw && (!silent || state->phase == TG_BEFORE)) { /* 5: without a chat only a marker at the very end counts */
    tg_begin_prompt(program, policy, state->limit, state, NULL);
  } else if (state->phase == TG_ANSWERING || state->phase == TG_HEADING) {
    if (state->closed_by != TG_BY_NONE) state->closed_by = TG_BY_PROMPT;
    int32_t length, off = state->seq == TG_SEQ_OFF; /* the latter ends in a prefix, if there is one */
    sequence(program, policy, state->pair, TG_SEQ_PREFIX, &length);
    if (length && (off || state->seq == TG_SEQ_PREFIX)) state->seq = state->pos = 0; /* the prompt has begun the answer */
  }
  state->answer = 0; /* max_answer_tokens is about what is sampled */
}

void tg_start(const tg_program* program, const tg_policy* policy, const tg_ids* turn_ids, int64_t num_tokens, int32_t raw,
              int32_t limit, tg_state* state, tg_loop* loop) {
  int32_t silent = 1; /* nothing visible behind the last marker, there was one */
  tg_begin_prompt(program, policy, limit, state, loop);
  for (int64_t i = 0; i < num_tokens; i++) tg_take(program, policy, state, loop, tg_id(turn_ids, i), 0, &silent);
  tg_end_prompt(program, policy, raw, silent, state);
}

/* The next of these tokens that leads anywhere from the root, or `num_tokens`. */
static int64_t next_mark(const tg_program* program, const tg_ids* ids, int64_t from, int64_t num_tokens) {
  for (int64_t i = from; i < num_tokens; i += TG_LANES) {
    int64_t at = i + TG_LANE;
    int32_t token = at < num_tokens ? tg_id(ids, at) : -1, ahead = tg_first(token >= 0 && tg_step(program, 0, token));
    if (ahead < TG_LANES) return i + ahead;
  }
  return num_tokens;
}

void tg_open(const tg_program* program, const tg_policy* policy, const tg_ids* prompt_ids, int64_t num_tokens,
             tg_state* state) {
  const tg_program* shown = program->shown;
  if (!shown || policy->opening != TG_OPEN_AUTO || state->phase != TG_BEFORE) return;
  int32_t node = 0, found = 0;
  for (int64_t i = 0; i < num_tokens && !found; i++) {
    if (!node && (i = next_mark(shown, prompt_ids, i, num_tokens)) == num_tokens) break;
    uint32_t step = tg_step(shown, node, tg_id(prompt_ids, i));
    node = (int32_t)(step & 0xFFFF);
    found = tg_event_at(shown, step, 0)->kinds != 0;
  }
  if (!found) return;
  state->flags |= TG_STATE_OPENS;
  state->seq = state->pos = 0; /* a channel format forces its way to any channel's name */
  settle(program, policy, state);
}

/* --- where the assistant's turn starts --- */

/* Back from the end to the last boundary. */
static int64_t behind_boundary(const tg_program* program, const tg_ids* ids, int64_t num_tokens, int32_t* raw) {
  for (int64_t end = num_tokens; end > 0; end -= TG_LANES) {
    int64_t at = end - 1 - TG_LANE;
    int32_t back = tg_first(at >= 0 && tg_info(program, tg_id(ids, at)) & TG_BOUNDARY);
    if (back == TG_LANES) continue;
    *raw = (tg_info(program, tg_id(ids, end - 1 - back)) & TG_RAW) != 0;
    return end - back;
  }
  *raw = 1;
  return 0;
}

/* Forward over boundaries that are text or headers; -1: not known from these tokens, the end of a longer prompt. */
static int64_t behind_header(const tg_program* turns, const tg_ids* ids, int64_t num_tokens, int64_t lead, int32_t* raw) {
  int64_t start = 0, before = 0; /* 0: not in a turn of the assistant */
  int32_t node = 0, found = 0;
  int known = !lead, was_known = known; /* whether `start` and `before` are what a walk over the whole prompt would have */
  for (int64_t i = 0; i < num_tokens; i++) {
    if (!node && !lead) { /* on to the next token that leads anywhere */
      int64_t at = i + TG_LANE;
      int32_t token = at < num_tokens ? tg_id(ids, at) : -1, ahead = tg_first(token >= 0 && tg_step(turns, 0, token));
      if (ahead) {
        i += ahead - 1;
        continue;
      }
    }
    int32_t token = tg_id(ids, i);
    uint32_t step = tg_step(turns, node, token);
    node = (int32_t)(step & 0xFFFF);
    if (lead > 0) {
      lead -= (tg_info(turns, token) & TG_TEXT) != 0;
      continue;
    }
    if (step >> 16 == 0) continue;
    const tg_event* event = tg_event_at(turns, step, 0);
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

/* Behind the tokens at the start of a turn that spell the header's own text, if all of it is there. */
static int64_t behind_name(const tg_program* program, const tg_ids* ids, int64_t begin, int64_t num_tokens) {
  int32_t node = 0, end = program->num_name_nodes - 1;
  int64_t at = begin;
  while (node >= 0 && node != end && at < num_tokens) {
    int32_t found =
        tg_find(program->name_token, program->name_offset[node], program->name_offset[node + 1], tg_id(ids, at++));
    node = found < 0 ? -1 : program->name_next[found];
  }
  return node == end ? at : begin;
}

int64_t tg_turn_start(const tg_program* program, const tg_ids* ids, int64_t num_tokens, int64_t lead, int32_t* raw) {
  int32_t is_raw = 0;
  int64_t start = program->turns ? behind_header(program->turns, ids, num_tokens, lead, &is_raw)
                                 : behind_boundary(program, ids, num_tokens, &is_raw);
  if (start < 0 || (lead && !program->turns && !start)) return -1;
  int64_t begin = start && program->num_name_nodes ? behind_name(program, ids, start, num_tokens) : start;
  if (is_raw && begin != start) { /* BOS or padding, but it begins turns too, unless it begins the prompt */
    int64_t lead_in = start - 1;
    while (lead_in > 0 && tg_info(program, tg_id(ids, lead_in - 1)) & TG_RAW) lead_in--;
    if (!lead_in && lead) return -1;
    is_raw = !lead_in;
  }
  *raw = is_raw;
  return is_raw ? start : begin;
}
