/* machine.h: what machine.c and edit.c share about tokens and marks. */
#ifndef THINKGUARD_MACHINE_H
#define THINKGUARD_MACHINE_H

#include "thinkguard.h"

/* An invariant of the header. Device code has no asserts: a trap there would end the process for everybody. */
#ifdef __CUDA_ARCH__
#define TG_ASSERT(invariant) ((void)0)
#else
#include <assert.h>
#define TG_ASSERT(invariant) assert(invariant)
#endif

/* Kept out of line, so that the steps that cost nothing do not pay for its registers. */
#if defined(__GNUC__) || defined(__clang__)
#define TG_OUT_OF_LINE __attribute__((noinline))
#else
#define TG_OUT_OF_LINE
#endif

/* Ask for memory that is needed soon; does nothing where the compiler cannot. */
#if defined(__CUDA_ARCH__) || !(defined(__GNUC__) || defined(__clang__))
#define TG_PREFETCH(address) ((void)(address))
#else
#define TG_PREFETCH(address) __builtin_prefetch(address)
#endif

/* A token's info; ids beyond the tokenizer's vocabulary but inside the logits' width are tokens without text. */
static inline uint32_t tg_info(const tg_program* program, int32_t token) {
  return token >= 0 && token < program->vocab_size ? program->info[token] : (uint32_t)TG_INERT;
}

/* Index of `token` among ascending tokens[low .. high), -1: not there. */
static inline int32_t tg_find(const int32_t* tokens, int32_t low, int32_t high, int32_t token) {
  int32_t end = high;
  TG_ASSERT(low <= high);
  while (low < high) {
    int32_t middle = low + (high - low) / 2;
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

/* Whether a token with this mark goes on towards, or completes, a marker of the kinds that are legal, and nothing else. */
static inline int tg_mark_allowed(uint32_t mask, int32_t legal) {
  int32_t kinds = (int32_t)(mask & 0xFFFF) & ~(TG_EXTENDS | TG_GROWS_END);
  return mask & TG_EXTENDS && ((kinds ? kinds : (int32_t)(mask >> 16)) & legal);
}

/* Whether a token with this mark is banned: it completes something forbidden, or, along a marker with control tokens, leads
 * where every marker that can still come of it is forbidden. */
static inline int tg_mark_banned(uint32_t mask, int32_t forbidden) {
  int32_t kinds = (int32_t)(mask & 0xFFFF), reach = (int32_t)(mask >> 16);
  return kinds & forbidden || (reach && !(reach & ~forbidden));
}

#endif
