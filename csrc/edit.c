/* edit.c: carrying out an action on a row of logits.
 *
 * Values are handled as float; every dtype here converts to it without loss. A step touches what it changes: redirects and
 * bans write single scalars, only a forced or allowed one writes the whole row. Lists of tokens may overlap, so all lanes meet
 * between two of them.
 */
#include <math.h>
#include <string.h>

#include "machine.h"

static const float MAX_HALF = 65504.0f;

typedef struct {
  void* data;
  tg_dtype dtype;
  int64_t stride;
  int32_t width;
} logits_row;

static float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static float from_half(uint16_t half) {
  uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 0x1F, fraction = half & 0x3FF;
  if (exponent == 0x1F) return from_bits(sign | 0x7F800000 | fraction << 13);
  if (exponent) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
  float subnormal = (float)fraction * 0x1p-24f;
  return sign ? -subnormal : subnormal;
}

/* Round to nearest, ties to even. */
static uint16_t to_half(float value) {
  uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return (uint16_t)(sign | 0x7E00);
  if (magnitude >= 0x477FF000) return (uint16_t)(sign | 0x7C00);
  if (magnitude < 0x38800000) { /* subnormal: the unit is 2^-24, and float addition rounds as wanted */
    float rounded = from_bits(magnitude) + 0.5f;
    return (uint16_t)(sign | (to_bits(rounded) - to_bits(0.5f)));
  }
  uint32_t odd = magnitude >> 13 & 1;
  return (uint16_t)(sign | ((magnitude - 0x38000000 + 0xFFF + odd) >> 13));
}

static uint16_t to_bfloat16(float value) {
  uint32_t bits = to_bits(value);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

static TG_OUT_OF_LINE float from_two_bytes(tg_dtype dtype, uint16_t bits) {
  return dtype == TG_FLOAT16 ? from_half(bits) : from_bits((uint32_t)bits << 16);
}

static inline float read_logit(const logits_row* row, int32_t token) {
  int64_t at = (int64_t)token * row->stride;
  if (row->dtype == TG_FLOAT32) return ((const float*)row->data)[at];
  return from_two_bytes(row->dtype, ((const uint16_t*)row->data)[at]);
}

static void write_logit(const logits_row* row, int32_t token, float value) {
  int64_t at = (int64_t)token * row->stride;
  switch (row->dtype) {
    case TG_FLOAT16: ((uint16_t*)row->data)[at] = to_half(value); break;
    case TG_BFLOAT16: ((uint16_t*)row->data)[at] = to_bfloat16(value); break;
    default: ((float*)row->data)[at] = value;
  }
}

/* -inf in two bytes. */
static uint16_t lowest_of(const logits_row* row) { return row->dtype == TG_FLOAT16 ? 0xFC00 : 0xFF80; }

/* To be called by one lane for each token. */
static void ban(const logits_row* row, int32_t token) {
  if (token >= row->width) return;
  int64_t at = (int64_t)token * row->stride;
  if (row->dtype == TG_FLOAT32)
    ((float*)row->data)[at] = -INFINITY;
  else
    ((uint16_t*)row->data)[at] = lowest_of(row);
}

/* Ban tokens [from, to). */
static void ban_range(const logits_row* row, int32_t from, int32_t to) {
  if (row->dtype == TG_FLOAT32) {
    float* logits = (float*)row->data;
    TG_EACH(token, from, to) logits[(int64_t)token * row->stride] = -INFINITY;
  } else {
    uint16_t *logits = (uint16_t*)row->data, lowest = lowest_of(row);
    TG_EACH(token, from, to) logits[(int64_t)token * row->stride] = lowest;
  }
}

/* Whether a token can be sampled at all; NaN reads as -inf. */
static int can_be_sampled(const logits_row* row, int32_t token) {
  return token >= 0 && token < row->width && read_logit(row, token) > -INFINITY;
}

/* --- the predicate --- */

static uint32_t mark_of(const tg_program* program, int32_t node, int32_t token) {
  int32_t at = tg_find(program->mark_token, program->mark_offset[node], program->mark_offset[node + 1], token);
  return at < 0 ? 0 : program->mark_mask[at];
}

/* Index of the first mark of a node that can have one of these kinds: those that speak of half-written markers alone are often
 * hundreds, and of no matter for most steps. */
static int32_t first_mark(const tg_program* program, int32_t node, int32_t kinds) {
  return program->mark_offset[node] + (kinds & TG_OF_HALVES ? 0 : program->nodes[node].halves);
}

static int is_never(const tg_program* program, int32_t token) {
  for (int32_t i = 0; i < program->num_never; i++)
    if (program->never[i] == token) return 1;
  return 0;
}

/* Bytes that the text's last character lacks behind a token, if it lacked `pending` before it. */
static int32_t missing_after(uint32_t info, int32_t pending) {
  if (!(info & TG_TEXT)) return pending;
  int32_t continuing = (int32_t)(info >> 26 & 3);
  if (continuing) return pending > continuing ? pending - continuing : 0;
  return (int32_t)(info >> 24 & 3);
}

static int eos_is_banned(const tg_program* program, const tg_action* action, int32_t token) {
  if (action->flags & (TG_BAN_EOS | TG_MOVE_EOS)) return 1;
  if (!(action->flags & (TG_ONLY_CALL_END | TG_NOT_CALL_END))) return 0;
  int ends_call = (mark_of(program, action->node, token) & TG_CALL_END) != 0;
  return ends_call ? (action->flags & TG_NOT_CALL_END) != 0 : (action->flags & TG_ONLY_CALL_END) != 0;
}

/* Whether the edit of a row leaves a token's logit alone, or raises it. */
static int is_left(const tg_program* program, const tg_policy* policy, const tg_action* action, int32_t token) {
  if (tg_is_eos(policy, token)) return !eos_is_banned(program, action, token);
  uint32_t info = tg_info(program, token), mark = mark_of(program, action->node, token);
  if (tg_mark_banned(mark, action->forbidden) || mark & (uint32_t)action->moved) return 0;
  if (action->flags & TG_BAN_INERT && info & TG_INERT) return 0;
  if (action->flags & TG_BAN_BLANK && !(info & TG_VISIBLE)) return 0;
  if (action->cut && missing_after(info, action->pending) >= action->cut) return 0;
  return !(action->flags & TG_BAN_NEVER && is_never(program, token));
}

int32_t tg_allows(const tg_program* program, const tg_policy* policy, const tg_action* action, int32_t token) {
  if (token < 0) return 0;
  switch (action->kind) {
    case TG_FREE: return 1;
    case TG_FORCE: return token == action->token;
    case TG_ALLOW: return tg_mark_allowed(mark_of(program, action->node, token), action->allowed);
    default: return is_left(program, policy, action, token);
  }
}

/* --- carrying it out --- */

static void ban_list(const logits_row* row, const tg_policy* policy, const int32_t* tokens, int32_t num_tokens) {
  TG_EACH(i, 0, num_tokens)
  if (!tg_is_eos(policy, tokens[i])) ban(row, tokens[i]);
  tg_meet();
}

/* Tokens without text between the vocabulary and the logits' width. */
static void ban_beyond(const logits_row* row, const tg_program* program, const tg_policy* policy) {
  TG_EACH(token, program->vocab_size, row->width)
  if (!tg_is_eos(policy, token)) ban(row, token);
  tg_meet();
}

static void ban_cut(const logits_row* row, const tg_program* program, const tg_policy* policy, const tg_action* action) {
  TG_ASSERT(action->cut >= 1 && action->cut <= 3 && action->pending >= 0 && action->pending <= 3);
  ban_list(row, policy, program->partial[action->cut - 1], program->num_partial[action->cut - 1]);
  if (action->pending < action->cut) return;
  for (int32_t k = 1; k <= 2 && action->pending - k >= action->cut; k++)
    ban_list(row, policy, program->continuing[k - 1], program->num_continuing[k - 1]);
  TG_EACH(i, 0, program->num_inert) {
    int32_t token = program->inert[i];
    if (!(program->info[token] & TG_TEXT) && !tg_is_eos(policy, token)) ban(row, token);
  }
  tg_meet();
  ban_beyond(row, program, policy);
}

/* Ban what the step forbids. Returns the largest logit that is moved to the target, -inf: none of them can be sampled. */
static float ban_all(const logits_row* row, const tg_program* program, const tg_policy* policy, const tg_action* action) {
  float largest = -INFINITY;
  if (action->flags & TG_MOVE_EOS) {
    TG_EACH(i, 0, policy->num_eos) {
      float value = policy->eos[i] < row->width ? read_logit(row, policy->eos[i]) : -INFINITY;
      if (value > largest) largest = value;
    }
    tg_meet(); /* before one of them is banned as a mark */
  }
  int spares_eos = !(action->flags & (TG_BAN_EOS | TG_MOVE_EOS));
  uint32_t moved = (uint32_t)action->moved;
  int32_t kinds = action->forbidden | action->moved;
  if (program->nodes[action->node].marks & kinds) {
    TG_EACH(i, first_mark(program, action->node, kinds), program->mark_offset[action->node + 1]) {
      uint32_t mask = program->mark_mask[i];
      if (!tg_mark_banned(mask, action->forbidden) && !(mask & moved)) continue;
      int32_t token = program->mark_token[i];
      if (mask & moved && token < row->width) {
        float value = read_logit(row, token);
        if (value > largest) largest = value;
      }
      if (!spares_eos || !tg_is_eos(policy, token)) ban(row, token);
    }
  }
  largest = tg_largest(largest);
  TG_EACH(i, 0, policy->num_eos)
  if (eos_is_banned(program, action, policy->eos[i])) ban(row, policy->eos[i]); /* the lists leave these out */
  if (action->flags & TG_BAN_NEVER) ban_list(row, policy, program->never, program->num_never);
  if (action->flags & TG_BAN_BLANK)
    ban_list(row, policy, program->blank, program->num_blank);
  else if (action->flags & TG_BAN_INERT)
    ban_list(row, policy, program->inert, program->num_inert);
  if (action->flags & (TG_BAN_BLANK | TG_BAN_INERT)) ban_beyond(row, program, policy);
  if (action->cut) ban_cut(row, program, policy, action);
  return largest;
}

static TG_OUT_OF_LINE int32_t apply_edit(const logits_row* row, const tg_program* program, const tg_policy* policy,
                                         const tg_action* action) {
  int aims = action->token >= 0 && can_be_sampled(row, action->token) && is_left(program, policy, action, action->token);
  int survives = aims;
  for (int32_t first = 0; !survives && first < row->width; first += TG_LANES) {
    int32_t token = first + TG_LANE;
    survives = tg_any(can_be_sampled(row, token) && is_left(program, policy, action, token));
  }
  if (!survives) return 0;
  float target = aims ? read_logit(row, action->token) : 0.0f;
  float moved = ban_all(row, program, policy, action); /* not the target, and all meet in it before that is written */
  if (!aims) return 1;
  float larger = moved > target ? moved : target, value = larger + action->bias;
  if (row->dtype == TG_FLOAT16 && larger <= MAX_HALF && value > MAX_HALF) value = MAX_HALF; /* inf breaks a softmax */
  TG_ALONE if (value != target) write_logit(row, action->token, value);
  return 1;
}

/* The edit of a row in which nothing that was to be forced or allowed can be sampled. */
static tg_action edit_in_place(const tg_action* action, int32_t aim) {
  tg_action edit = *action;
  edit.kind = TG_EDIT;
  edit.token = aim;
  return edit;
}

static TG_OUT_OF_LINE int32_t apply_force(const logits_row* row, const tg_program* program, const tg_policy* policy,
                                          const tg_action* action) {
  int32_t token = action->token;
  int can = can_be_sampled(row, token);
  tg_action edit = edit_in_place(action, action->aim);
  if (!can && action->flags & TG_FORCE_AIM) {
    token = action->aim;
    can = can_be_sampled(row, token) && tg_allows(program, policy, &edit, token);
  }
  tg_meet(); /* all have looked before one of them bans */
  if (!can) {
    apply_edit(row, program, policy, &edit);
    return 0;
  }
  ban_range(row, 0, row->width);
  tg_meet();
  TG_ALONE write_logit(row, token, 0.0f);
  return token == action->token;
}

static TG_OUT_OF_LINE int32_t apply_allow(const logits_row* row, const tg_program* program, const tg_policy* policy,
                                          const tg_action* action) {
  int32_t begin = program->mark_offset[action->node], end = program->mark_offset[action->node + 1];
  int survives = 0;
  for (int32_t first = begin; first < end && !survives; first += TG_LANES) {
    int32_t i = first + TG_LANE;
    survives = tg_any(i < end && tg_mark_allowed(program->mark_mask[i], action->allowed) &&
                      can_be_sampled(row, program->mark_token[i]));
  }
  if (!survives) {
    tg_action edit = edit_in_place(action, -1);
    apply_edit(row, program, policy, &edit);
    return 0;
  }
  tg_meet();
  int32_t from = 0; /* marks ascend by token: ban the gaps between the allowed ones */
  for (int32_t i = begin; i < end; i++) {
    if (!tg_mark_allowed(program->mark_mask[i], action->allowed) || program->mark_token[i] >= row->width) continue;
    ban_range(row, from, program->mark_token[i]);
    from = program->mark_token[i] + 1;
  }
  ban_range(row, from, row->width);
  return 1;
}

typedef struct {
  const char* data;
  int64_t stride; /* bytes */
  int32_t width;
} logits_bytes;

static inline void prefetch_logit(const logits_bytes* row, int32_t token) {
  if ((uint32_t)token < (uint32_t)row->width) TG_PREFETCH(row->data + token * row->stride);
}

/* Of so many tokens of a list at most: beyond, prefetches would push each other out. */
#define MOST_PREFETCHED 16

void tg_prefetch(const tg_program* program, const tg_policy* policy, const tg_action* action, const void* logits,
                 tg_dtype dtype, int64_t stride, int32_t width) {
  if (action->kind != TG_EDIT) return;
  logits_bytes row = {(const char*)logits, stride * (dtype == TG_FLOAT32 ? 4 : 2), width};
  prefetch_logit(&row, action->token);
  if (action->flags & (TG_BAN_EOS | TG_MOVE_EOS | TG_ONLY_CALL_END | TG_NOT_CALL_END))
    for (int32_t i = 0; i < policy->num_eos; i++) prefetch_logit(&row, policy->eos[i]);
  int32_t kinds = action->forbidden | action->moved;
  if (program->nodes[action->node].marks & kinds) {
    int32_t begin = first_mark(program, action->node, kinds);
    int32_t end = program->mark_offset[action->node + 1];
    if (end > begin + MOST_PREFETCHED) end = begin + MOST_PREFETCHED;
    for (int32_t i = begin; i < end; i++) prefetch_logit(&row, program->mark_token[i]);
  }
  if (action->flags & TG_BAN_NEVER)
    for (int32_t i = 0; i < program->num_never && i < MOST_PREFETCHED; i++) prefetch_logit(&row, program->never[i]);
}

int32_t tg_apply(const tg_program* program, const tg_policy* policy, const tg_action* action, void* logits, tg_dtype dtype,
                 int64_t stride, int32_t width) {
  if (action->kind == TG_FREE) return 1;
  TG_ASSERT(action->node >= 0 && action->node < program->num_pairs * program->num_nodes && width >= 0 && stride != 0);
  logits_row row = {logits, dtype, stride, width};
  switch (action->kind) {
    case TG_FORCE: return apply_force(&row, program, policy, action);
    case TG_ALLOW: return apply_allow(&row, program, policy, action);
    default: return apply_edit(&row, program, policy, action);
  }
}
