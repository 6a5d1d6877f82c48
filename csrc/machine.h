/* machine.h: what machine.c, decide.c and edit.c share about tokens and marks, sequences and budgets. */
#ifndef THINKGUARD_MACHINE_H
#define THINKGUARD_MACHINE_H

#include "lanes.h"
#include "thinkguard.h"

/* An invariant of the header. Device code has no asserts: a trap there would end the process for everybody. */
#ifdef __CUDA_ARCH__
#define TG_ASSERT(invariant) ((void)0)
#else
#include <assert.h>
#define TG_ASSERT(invariant) assert(invariant)
#endif

/* Kept out of line, so that the steps that cost nothing do not pay for its registers. Not on a GPU, where a call would put
 * the state into memory. */
#if !defined(__CUDA_ARCH__) && (defined(__GNUC__) || defined(__clang__))
#define TG_OUT_OF_LINE __attribute__((noinline))
#else
#define TG_OUT_OF_LINE
#endif

/* Ask for memory that is needed soon; does nothing where the compiler cannot. gcc takes a function that does this alone for one
 * without effects and drops its calls, were it not for the empty statement. */
#if defined(__CUDA_ARCH__) || !(defined(__GNUC__) || defined(__clang__))
#define TG_PREFETCH(address) ((void)(address))
#else
#define TG_PREFETCH(address)     \
  do {                           \
    __builtin_prefetch(address); \
    __asm__ volatile("");        \
  } while (0)
#endif

/* A token's info; ids beyond the tokenizer's vocabulary but inside the logits' width are tokens without text. */
static inline uint32_t tg_info(const tg_program* program, int32_t token) {
  return token >= 0 && token < program->vocab_size ? program->info[token] : (uint32_t)TG_INERT;
}

/* The token id at an index of a host's buffer; what does not fit into int32 is an impossible id. */
static inline int32_t tg_id(const tg_ids* ids, int64_t index) {
  if (ids->bytes == 4) return ((const int32_t*)ids->data)[index * ids->stride];
  int64_t wide = ((const int64_t*)ids->data)[index * ids->stride];
  return wide < 0 || wide > INT32_MAX ? -1 : (int32_t)wide;
}

/* What a step completes behind a start of a pair. */
static inline const tg_event* tg_event_at(const tg_program* program, uint32_t step, int32_t pair) {
  TG_ASSERT(pair >= 0 && pair < program->num_pairs);
  return &program->events[(int32_t)(step >> 16) * program->num_pairs + pair];
}

/* Where a node's meaning and its marks lie, for the pair that a sequence stands in. */
static inline int32_t tg_node_at(const tg_program* program, const tg_state* state, int32_t node) {
  TG_ASSERT(node >= 0 && node < program->num_nodes && state->pair >= 0 && state->pair < program->num_pairs);
  return state->pair * program->num_nodes + node;
}

/* Index of `token` among ascending tokens[low .. high), -1: not there. */
static inline int32_t tg_find(const int32_t* tokens, int32_t low, int32_t high, int32_t token) {
  int32_t end = high;
  TG_ASSERT(low <= high);
  while (low < high) {
    int32_t middle = (int32_t)(((uint32_t)low + (uint32_t)high) / 2);
    if (tokens[middle] < token)
      low = middle + 1;
    else
      high = middle;
  }
  return low < end && tokens[low] == token ? low : -1;
}

static inline int tg_is_eos(const tg_policy* policy, int32_t token) {
  TG_ASSERT(policy->num_eos >= 0 && policy->num_eos <= TG_MAX_EOS);
  for (int32_t i = 0; i < policy->num_eos; i++)
    if (policy->eos[i] == token) return 1;
  return 0;
}

/* The tokens of the policy's sequences, which lie behind it in the same block of memory. */
static inline const int32_t* tg_policy_tokens(const tg_policy* policy) { return (const int32_t*)policy + policy->tokens; }

/* What a mark says of half-written markers, beside the kinds that the token completes. */
enum { TG_OF_HALVES = TG_EXTENDS | TG_GROWS_END | TG_BEGINS_END | TG_HALF_START | TG_HALF_END };

/* Whether a token with this mark goes on towards, or completes, a marker of the kinds that are legal, and nothing else. */
static inline int tg_mark_allowed(uint32_t mask, int32_t legal) {
  int32_t kinds = (int32_t)(mask & 0xFFFF) & ~TG_OF_HALVES;
  return mask & TG_EXTENDS && ((kinds ? kinds : (int32_t)(mask >> 16)) & legal);
}

/* Whether a token with this mark is banned: it completes something forbidden, or, along a marker with control tokens, leads
 * where every marker that can still come of it is forbidden. */
static inline int tg_mark_banned(uint32_t mask, int32_t forbidden) {
  int32_t kinds = (int32_t)(mask & 0xFFFF), reach = (int32_t)(mask >> 16);
  return kinds & forbidden || (reach && !(reach & ~forbidden));
}

/* --- parts of tg_start and tg_advance: for walks that mix a prompt, what was sampled, and drafts (guard.c) --- */

void tg_begin_prompt(const tg_program* program, const tg_policy* policy, int32_t limit, tg_state* state, tg_loop* loop);
void tg_end_prompt(const tg_program* program, const tg_policy* policy, int32_t raw, int32_t silent, tg_state* state);
void tg_take(const tg_program* program, const tg_policy* policy, tg_state* state, tg_loop* loop, int32_t token, int sampled,
             int32_t* silent);
int32_t tg_take_run(const tg_program* program, const tg_policy* policy, tg_state* state, const int32_t* tokens,
                    int32_t num_tokens, int sampled, int32_t* silent);

/* --- sequences --- */

/* The tokens of a sequence, for one pair; those of the program, and all of the policy's but two, are the same for all. */
static inline const int32_t* sequence(const tg_program* program, const tg_policy* policy, int32_t pair, int32_t seq,
                                      int32_t* length) {
  TG_ASSERT(seq > TG_SEQ_NONE && pair >= 0 && pair < program->num_pairs);
  policy += pair;
  const int32_t* offset = seq < TG_SEQ_PROGRAM ? policy->seq_offset + seq : program->seq_offset + (seq - TG_SEQ_PROGRAM);
  *length = offset[1] - offset[0];
  TG_ASSERT(*length >= 0);
  return (seq < TG_SEQ_PROGRAM ? tg_policy_tokens(policy) : program->seq_token) + offset[0];
}

/* The token of a sequence under way, -1: none. */
static inline int32_t next_in_sequence(const tg_program* program, const tg_policy* policy, const tg_state* state) {
  if (!state->seq) return -1;
  int32_t length;
  const int32_t* tokens = sequence(program, policy, state->pair, state->seq, &length);
  TG_ASSERT(state->pos >= 0 && state->pos < length);
  return tokens[state->pos];
}

/* --- budgets --- */

static inline int32_t close_room(const tg_program* program, const tg_policy* policy) {
  int32_t answer =
      policy->reserve_answer_tokens > policy->min_answer_tokens ? policy->reserve_answer_tokens : policy->min_answer_tokens;
  return policy->longest_close + program->header_tokens + answer + 1;
}

/* Tokens of output that are left, which has a limit; not below 0, so that more can be subtracted. */
static inline int32_t room_of(const tg_state* state) {
  return state->limit > state->length ? state->limit - state->length : 0;
}

/* Tokens of thinking that count for the budget. */
static inline int32_t thought(const tg_policy* policy, const tg_state* state) {
  return policy->budget_per == TG_PER_BLOCK ? state->block : state->thinking;
}

/* Tokens of thinking that are left; INT32_MAX: any number. The limit of the output counts as a budget (8). */
static inline int32_t thinking_left(const tg_program* program, const tg_policy* policy, const tg_state* state) {
  int32_t left = policy->opening == TG_OPEN_FORBID ? 0 : INT32_MAX;
  if (left && policy->max_thinking_tokens != TG_NO_LIMIT) left = policy->max_thinking_tokens - thought(policy, state);
  if (state->limit != TG_NO_LIMIT) {
    int32_t room = room_of(state) - close_room(program, policy);
    if (room < left) left = room;
  }
  return left;
}

/* Whether the thinking is over, or has no room to begin: what is still forced in front of its end is optional (19). */
static inline int thinking_is_over(const tg_program* program, const tg_policy* policy, const tg_state* state) {
  return state->phase == TG_CLOSING || (state->phase == TG_THINKING && thinking_left(program, policy, state) <= 0);
}

/* Whether the answer may begin once more, its visible tokens counted anew (9): the least answer has to fit again. */
static inline int answer_may_restart(const tg_policy* policy, const tg_state* state) {
  if (policy->max_answer_tokens != TG_NO_LIMIT && policy->max_answer_tokens - state->answer < policy->min_answer_tokens)
    return 0;
  return state->limit == TG_NO_LIMIT || room_of(state) > policy->min_answer_tokens + 1;
}

/* Whether one more extension may be said: `rest` tokens of its message are still to come, and closing must fit behind. */
static inline int extension_fits(const tg_program* program, const tg_policy* policy, const tg_state* state, int32_t rest) {
  if (state->thinking >= policy->min_thinking_tokens || state->extensions >= policy->max_extensions) return 0;
  return state->limit == TG_NO_LIMIT || room_of(state) - close_room(program, policy) >= rest;
}

/* The token that a wish to end leads to below the minimum: the next of the line breaks in front of the message that the text
 * does not end with yet, else, and then *begins is 1, the message's first (18). */
static inline int32_t extension_aim(const tg_policy* policy, int32_t tail, int32_t* begins) {
  int32_t have = policy->lead_bytes;
  while (have) {
    uint32_t begun = (uint32_t)policy->lead_word >> 8 * (policy->lead_bytes - have);
    uint32_t mask = have == 4 ? UINT32_MAX : ((uint32_t)1 << 8 * have) - 1;
    if (((uint32_t)tail & mask) == begun) break;
    have--;
  }
  *begins = have == policy->lead_bytes;
  return *begins ? tg_policy_tokens(policy)[policy->seq_offset[TG_SEQ_EXTEND]] : policy->lead[have];
}

static inline int32_t extension_length(const tg_policy* policy) {
  return policy->seq_offset[TG_SEQ_EXTEND + 1] - policy->seq_offset[TG_SEQ_EXTEND];
}

/* 1 if another block may be opened, else 0. Along a marker of several tokens the room must last to the marker's end. */
static inline int start_is_legal(const tg_program* program, const tg_policy* policy, const tg_state* state) {
  if (state->blocks >= policy->max_think_blocks || policy->opening == TG_OPEN_FORBID || !answer_may_restart(policy, state))
    return 0;
  int32_t used = policy->budget_per == TG_PER_BLOCK ? 0 : state->thinking;
  if (policy->max_thinking_tokens != TG_NO_LIMIT && used >= policy->max_thinking_tokens) return 0;
  return state->limit == TG_NO_LIMIT || thinking_left(program, policy, state) > program->header_tokens;
}

/* How many more tokens the answer may have, by max_answer_tokens and by the limit of the output; INT32_MAX: any number. At
 * or below 0 none is left. */
static inline int32_t answer_left(const tg_policy* policy, const tg_state* state) {
  int32_t left = INT32_MAX;
  if (policy->max_answer_tokens != TG_NO_LIMIT) left = policy->max_answer_tokens - state->answer;
  if (state->limit != TG_NO_LIMIT && room_of(state) < left) left = room_of(state);
  return left;
}

/* --- text --- */

/* Whether the text ends in an empty line. */
static inline int ends_in_empty_line(int32_t tail) { return ((uint32_t)tail & 0xFFFF) == 0x0A0A; }

/* Bytes that the text's last character still misses; 0 if it is whole or already invalid. */
static inline int32_t pending_bytes(int32_t tail) {
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

#endif
