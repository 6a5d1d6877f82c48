/* fuzz_core.c: arbitrary bytes -> a small vocabulary, markers, a policy, tokens and logits; then lift, advance, decide and
 * apply.
 *
 * Besides what the sanitizers see, it must hold at every step that
 *   - a row of logits with something to sample keeps something to sample, or is left exactly as it was,
 *   - tg_apply bans what tg_allows denies and nothing else, in every dtype, and writes nothing beside the row,
 *   - what is looked up in sorted tables is what walking through them finds,
 *   - the row of the sequence is the same when it is computed again from the start.
 * Built and run by tools/fuzz.sh.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine.h"

enum {
  MAX_TOKENS = 32,
  MAX_TEXT = 8,
  MAX_PATTERNS = 8,
  MAX_SYMBOLS = 6,
  MAX_CONTROLS = 3,
  MAX_PAIRS = 3,
  NUM_SEQ = 4,
  MAX_STEPS = 64,
  BEYOND = 2
};
enum { WIDTH = MAX_TOKENS + BEYOND, MAX_STRIDE = 3, MARGIN = 4 };

#define CHECK(condition)                                                            \
  do {                                                                              \
    if (!(condition)) {                                                             \
      fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      abort();                                                                      \
    }                                                                               \
  } while (0)

typedef struct {
  const uint8_t* data;
  size_t size;
} bytes;

static int32_t take(bytes* in, int32_t below) { /* 0 <= result < below; zeros where the input has ended */
  if (!in->size) return 0;
  in->size--;
  return *in->data++ % below;
}

static const uint8_t ALPHABET[16] = {'<', '/', 'a', 'b', '>', '\n', ' ', '.', '1', '|', 0x80, 0xBF, 0xC3, 0xE2, 0xF0, 0xFF};

typedef struct {
  uint8_t text[MAX_TOKENS * MAX_TEXT];
  int64_t offsets[MAX_TOKENS + 1];
  int32_t control[MAX_TOKENS];
  int32_t symbols[MAX_PATTERNS * MAX_SYMBOLS], pattern_offsets[MAX_PATTERNS + 1], kinds[MAX_PATTERNS], pairs[MAX_PATTERNS];
  int32_t control_bytes[MAX_CONTROLS], control_dropped[MAX_CONTROLS];
  uint8_t space[4];
  int32_t never[MAX_TOKENS], inert[MAX_TOKENS], blank[MAX_TOKENS], partial[3][MAX_TOKENS], continuing[2][MAX_TOKENS];
  int32_t seq_offset[NUM_SEQ + 1], seq_token[NUM_SEQ * 4];
  tg_vocab vocab;
  tg_patterns patterns;
  tg_program program;
  tg_policy policy[MAX_PAIRS];
  int32_t policy_token[MAX_PAIRS][6 * 4]; /* behind the policies, as their offsets say */
} world;

static void make_vocabulary(bytes* in, world* w) {
  int32_t num_controls = take(in, MAX_CONTROLS + 1), num_tokens = 1 + num_controls + take(in, MAX_TOKENS - num_controls);
  for (int32_t t = 0; t < num_tokens; t++) {
    w->control[t] = t >= 1 && t <= num_controls ? t - 1 : -1;
    int32_t length = w->control[t] >= 0 ? 1 + take(in, MAX_TEXT - 1) : take(in, MAX_TEXT); /* an added token has a content */
    w->offsets[t + 1] = w->offsets[t] + length;
    if (w->control[t] >= 0) {
      w->control_bytes[t - 1] = length;
      w->control_dropped[t - 1] = take(in, 2);
    }
    for (int32_t i = 0; i < length; i++) w->text[w->offsets[t] + i] = ALPHABET[take(in, 16)];
  }
  w->vocab = (tg_vocab){num_tokens, w->text, w->offsets, w->control};
  w->patterns.num_controls = num_controls;
}

static void make_patterns(bytes* in, world* w, int is_channel) {
  static const int32_t plain[6] = {TG_START, TG_END, TG_ANSWER, TG_IMPLICIT, TG_END | TG_SPELLED, TG_START | TG_SPELLED};
  static const int32_t channel[6] = {TG_TOOL, TG_BODY, TG_HEADER, TG_CALL_END, TG_RECIPIENT, TG_SPELLED};
  int32_t num_patterns = 1 + take(in, MAX_PATTERNS), num_controls = w->patterns.num_controls;
  int32_t num_pairs = is_channel ? 1 : 1 + take(in, MAX_PAIRS);
  for (int32_t p = 0; p < num_patterns; p++) {
    int32_t kind = take(in, is_channel ? 12 : 6), length = 1 + take(in, MAX_SYMBOLS), at = w->pattern_offsets[p];
    w->kinds[p] = kind < 6 ? plain[kind] : channel[kind - 6];
    w->pairs[p] = w->kinds[p] & (TG_START | TG_END) ? take(in, num_pairs) : 0;
    for (int32_t i = 0; i < length; i++) {
      int32_t draw = take(in, 16 + num_controls);
      w->symbols[at + i] = draw < 16 ? ALPHABET[draw] : 256 + draw - 16;
    }
    w->pattern_offsets[p + 1] = at + length;
  }
  int32_t space_bytes = take(in, 5);
  for (int32_t i = 0; i < space_bytes; i++) w->space[i] = take(in, 2) ? '\n' : ' ';
  w->patterns = (tg_patterns){.num_patterns = num_patterns,
                              .num_controls = num_controls,
                              .symbols = w->symbols,
                              .offsets = w->pattern_offsets,
                              .kinds = w->kinds,
                              .pairs = w->pairs,
                              .control_bytes = w->control_bytes,
                              .control_dropped = w->control_dropped,
                              .space = w->space,
                              .space_bytes = space_bytes,
                              .num_pairs = num_pairs};
}

static void add(int32_t* list, int32_t* count, int32_t token) { list[(*count)++] = token; }

static void list_tokens(bytes* in, world* w, uint32_t* info) {
  tg_program* p = &w->program;
  for (int32_t t = 0; t < p->vocab_size; t++) {
    int32_t draw = take(in, 16);
    if ((!(info[t] & TG_TEXT) || draw == 0) && w->control[t] < 0) info[t] = (info[t] | TG_INERT) & ~(uint32_t)TG_VISIBLE;
    if (draw == 1) info[t] |= TG_BOUNDARY | (take(in, 2) ? TG_RAW : 0);
    if (draw == 3) info[t] |= TG_MARKUP;
    if (draw == 2) add(w->never, &p->num_never, t);
    if (info[t] & TG_INERT) add(w->inert, &p->num_inert, t);
    if (!(info[t] & TG_VISIBLE)) add(w->blank, &p->num_blank, t);
    for (uint32_t k = 1; k <= 3; k++)
      if ((info[t] >> 24 & 3) >= k) add(w->partial[k - 1], &p->num_partial[k - 1], t);
    for (uint32_t k = 1; k <= 2; k++)
      if ((info[t] >> 26 & 3) == k) add(w->continuing[k - 1], &p->num_continuing[k - 1], t);
  }
  p->never = w->never;
  p->inert = w->inert;
  p->blank = w->blank;
  for (int k = 0; k < 3; k++) p->partial[k] = w->partial[k];
  for (int k = 0; k < 2; k++) p->continuing[k] = w->continuing[k];
}

static void make_program(bytes* in, world* w, tg_lift* lift, int is_channel) {
  tg_program* p = &w->program;
  int32_t num_tokens = w->vocab.num_tokens;
  for (int32_t s = 0; s < NUM_SEQ; s++) { /* none of them is empty: the host spells them */
    int32_t length = 1 + take(in, 4);
    for (int32_t i = 0; i < length; i++) w->seq_token[w->seq_offset[s] + i] = take(in, num_tokens);
    w->seq_offset[s + 1] = w->seq_offset[s] + length;
  }
  uint32_t word = 0;
  for (int32_t i = 0; i < w->patterns.space_bytes; i++) word = word << 8 | w->space[i];
  *p = (tg_program){.vocab_size = num_tokens, .num_nodes = lift->num_nodes, .is_channel = is_channel};
  p->num_pairs = w->patterns.num_pairs;
  p->header_seq = TG_SEQ_PROGRAM + take(in, NUM_SEQ);
  p->channel_seq = TG_SEQ_PROGRAM + take(in, NUM_SEQ);
  p->body_token = is_channel ? take(in, num_tokens) : -1;
  p->message_end = is_channel ? take(in, num_tokens) : -1;
  p->header_tokens = is_channel ? take(in, 8) : 0;
  memcpy(&p->space_word, &word, sizeof word);
  p->space_bytes = w->patterns.space_bytes;
  p->newline = take(in, num_tokens + 1) - 1;
  p->step = lift->step;
  p->info = lift->info;
  p->tail = lift->tail;
  p->except_offset = lift->except_offset;
  p->except_token = lift->except_token;
  p->except_step = lift->except_step;
  p->mark_offset = lift->mark_offset;
  p->mark_token = lift->mark_token;
  p->mark_mask = lift->mark_mask;
  p->events = lift->events;
  p->nodes = lift->nodes;
  p->seq_offset = w->seq_offset;
  p->seq_token = w->seq_token;
  for (int32_t n = 0; n < p->num_pairs * lift->num_nodes; n++) {
    lift->nodes[n].plan = take(in, num_tokens);
    int begun = lift->nodes[n].end_chars >= 2 || lift->call_chars[n % lift->num_nodes] >= 2;
    lift->nodes[n].finish = begun ? TG_SEQ_PROGRAM + take(in, NUM_SEQ) : 0;
    lift->nodes[n].open = lift->nodes[n].start_bytes >= 2 ? TG_SEQ_PROGRAM + take(in, NUM_SEQ) : 0;
  }
  list_tokens(in, w, lift->info);
}

static void make_policy(bytes* in, world* w) {
  tg_policy* p = w->policy;
  int32_t num_tokens = w->vocab.num_tokens;
  p->max_thinking_tokens = take(in, 12) - 1;
  p->min_thinking_tokens = p->max_thinking_tokens < 0 ? take(in, 6) : take(in, p->max_thinking_tokens + 1);
  p->grace_tokens = p->max_thinking_tokens < 0 ? 0 : take(in, p->max_thinking_tokens + 1);
  p->close_at = take(in, 2);
  p->budget_per = take(in, 2);
  p->soft_thinking_tokens = p->max_thinking_tokens > p->min_thinking_tokens ? p->min_thinking_tokens : TG_NO_LIMIT;
  p->close_bias = p->soft_thinking_tokens < 0 ? 0.0f : (float)take(in, 100);
  p->max_extensions = p->min_thinking_tokens ? take(in, 3) : 0;
  p->on_eos = take(in, 2);
  p->opening = take(in, 4);
  p->max_think_blocks = 1 + take(in, 3);
  p->min_answer_tokens = take(in, 4);
  p->max_answer_tokens = take(in, 2) ? 1 + p->min_answer_tokens + take(in, 4) : TG_NO_LIMIT;
  p->reserve_answer_tokens = take(in, 3);
  p->loop_tokens = take(in, 2) ? 4 + take(in, 253) : 0;
  p->markers_in_answer = take(in, 4) == 0;
  p->answer_prefix_on = take(in, 2);
  p->longest_close = 4 + take(in, 3);
  p->num_eos = take(in, 4);
  for (int32_t i = 0; i < p->num_eos; i++) p->eos[i] = take(in, num_tokens + 4);
  p->closes_line = take(in, 2);
  p->lead_bytes = take(in, 5);
  for (int32_t i = 0; i < p->lead_bytes; i++) p->lead_word = p->lead_word << 8 | (take(in, 4) ? '\n' : ' ');
  for (int32_t i = 0; i < 4; i++) p->lead[i] = take(in, num_tokens);
  for (int32_t s = 1; s < TG_SEQ_PROGRAM; s++) {
    int32_t length = 1 + take(in, 4);
    for (int32_t i = 0; i < length; i++) w->policy_token[0][p->seq_offset[s] + i] = take(in, num_tokens);
    p->seq_offset[s + 1] = p->seq_offset[s] + length;
  }
  p->prefix_space = take(in, p->seq_offset[TG_SEQ_PREFIX + 1] - p->seq_offset[TG_SEQ_PREFIX] + 1);
  for (int32_t k = 0; k < w->patterns.num_pairs; k++) { /* they differ in two sequences */
    if (k) p[k] = *p;
    p[k].seq_offset[0] = p[k].seq_offset[1] = 0;
    for (int32_t s = 1; s < TG_SEQ_PROGRAM; s++) {
      int own = k && (s == TG_SEQ_CLOSE || s == TG_SEQ_BARE);
      int32_t length = own ? 1 + take(in, 4) : p->seq_offset[s + 1] - p->seq_offset[s];
      for (int32_t i = 0; i < length; i++)
        w->policy_token[k][p[k].seq_offset[s] + i] = own ? take(in, num_tokens) : w->policy_token[0][p->seq_offset[s] + i];
      p[k].seq_offset[s + 1] = p[k].seq_offset[s] + length;
    }
    p[k].tokens = (int32_t)(((uint8_t*)w->policy_token[k] - (uint8_t*)&p[k]) / sizeof(int32_t));
  }
}

/* Apply in one dtype and layout; the edited row as float. */
static int32_t apply(const world* w, const tg_action* action, const float* logits, tg_dtype dtype, int64_t stride,
                     int32_t width, float* edited) {
  static float memory[MARGIN + WIDTH * MAX_STRIDE + MARGIN], before[MARGIN + WIDTH * MAX_STRIDE + MARGIN];
  size_t item = dtype == TG_FLOAT32 ? 4 : 2;
  memset(memory, 0x3A, sizeof memory);
  uint8_t* first = (uint8_t*)memory + MARGIN * item;
  for (int32_t t = 0; t < width; t++) {
    uint32_t bits;
    memcpy(&bits, &logits[t], 4);
    uint16_t half = (uint16_t)(bits >> 16); /* a bfloat16; of float16 only the values below are used */
    if (dtype == TG_FLOAT16)
      half = isnan(logits[t]) ? 0x7E00 : isinf(logits[t]) ? (logits[t] < 0 ? 0xFC00 : 0x7C00) : 0x3C00;
    memcpy(first + (size_t)(t * stride) * item, dtype == TG_FLOAT32 ? (const void*)&logits[t] : &half, item);
  }
  memcpy(before, memory, sizeof memory);
  int32_t done = tg_apply(&w->program, w->policy, action, first, dtype, stride, width);
  if (action->kind == TG_FREE || (!done && action->kind == TG_EDIT)) CHECK(!memcmp(before, memory, sizeof memory));
  for (int32_t t = 0; t < width; t++) {
    uint16_t half = 0;
    memcpy(dtype == TG_FLOAT32 ? (void*)&edited[t] : &half, first + (size_t)(t * stride) * item, item);
    uint32_t bits = (uint32_t)half << 16;
    if (dtype == TG_BFLOAT16) memcpy(&edited[t], &bits, 4);
    if (dtype == TG_FLOAT16)
      edited[t] = half == 0xFC00 ? -INFINITY : (half & 0x7FFF) > 0x7C00 ? NAN : half == 0x7C00 ? INFINITY : 1;
    memcpy(first + (size_t)(t * stride) * item, (uint8_t*)before + MARGIN * item + (size_t)(t * stride) * item, item);
  }
  CHECK(!memcmp(before, memory, sizeof memory)); /* nothing beside the row */
  return done;
}

static int32_t check_step(bytes* in, const world* w, const tg_state* state) {
  tg_action action;
  float logits[WIDTH], edited[WIDTH];
  tg_decide(&w->program, w->policy, state, &action);
  int32_t width = w->vocab.num_tokens + take(in, 2 * BEYOND + 1) - BEYOND, style = take(in, 4);
  if (width < 0) width = 0;
  for (int32_t t = 0; t < width; t++) {
    int32_t draw = style ? take(in, 32) : 8;
    logits[t] = draw == 0                               ? NAN
                : draw < 4 || (style == 1 && draw < 24) ? -INFINITY
                : draw == 4                             ? INFINITY
                                                        : (float)(draw - 16);
  }
  tg_dtype dtype = (tg_dtype)take(in, 3);
  int32_t done = apply(w, &action, logits, dtype, 1 + take(in, MAX_STRIDE), width, edited);
  int32_t best = -1, could = 0, can = action.kind == TG_FREE;
  for (int32_t t = 0; t < width; t++) can |= tg_allows(&w->program, w->policy, &action, t) && logits[t] > -INFINITY;
  CHECK(done == can || action.kind == TG_FREE);
  tg_action edit = action;
  edit.kind = TG_EDIT;
  if (!can && action.kind == TG_FORCE && action.flags & TG_FORCE_AIM && action.aim >= 0 && action.aim < width &&
      logits[action.aim] > -INFINITY && tg_allows(&w->program, &w->policy, &edit, action.aim)) { /* in place of it */
    action.token = action.aim;
    done = 1;
  } else if (!can && action.kind != TG_EDIT) {
    action.token = action.kind == TG_FORCE ? action.aim : -1;
    action.kind = TG_EDIT;
    for (int32_t t = 0; t < width; t++) done |= tg_allows(&w->program, w->policy, &action, t) && logits[t] > -INFINITY;
  }
  for (int32_t t = 0; t < width; t++) {
    int32_t allowed = tg_allows(&w->program, w->policy, &action, t);
    could |= allowed && logits[t] > -INFINITY;
    if (edited[t] > -INFINITY && (best < 0 || edited[t] > edited[best])) best = t;
    if (!done) continue;
    if (!allowed) CHECK(edited[t] == -INFINITY);
    if (allowed && action.kind != TG_FORCE) CHECK((edited[t] == -INFINITY) == (logits[t] == -INFINITY));
    if (allowed && action.kind != TG_FORCE) CHECK(isnan(edited[t]) == isnan(logits[t]));
  }
  CHECK(!done || could == (best >= 0) || action.kind == TG_FREE);
  CHECK(done == could || action.kind == TG_FREE);
  CHECK(!tg_allows(&w->program, w->policy, &action, -1));
  return best;
}

static int is_banned(uint32_t mask, int32_t forbidden) { /* tg_mark_banned, kind by kind */
  int leads = 0, hopeful = 0;
  for (int bit = 0; bit < 16; bit++) {
    int is_forbidden = forbidden >> bit & 1;
    if (mask >> bit & 1 && is_forbidden) return 1;
    leads |= mask >> (16 + bit) & 1;
    hopeful |= (mask >> (16 + bit) & 1) && !is_forbidden;
  }
  return leads && !hopeful;
}

/* What every step looks up, against walking through the tables. */
static void check_lookups(bytes* in, const world* w) {
  const tg_program* p = &w->program;
  int32_t forbidden = take(in, 256) | take(in, 256) << 8;
  for (int32_t t = -1; t < p->vocab_size + BEYOND; t++) {
    int known = t >= 0 && t < p->vocab_size, ends = 0;
    CHECK(tg_info(p, t) == (known ? p->info[t] : (uint32_t)TG_INERT));
    for (int32_t i = 0; i < w->policy->num_eos; i++) ends |= w->policy->eos[i] == t;
    CHECK(tg_is_eos(w->policy, t) == ends);
    for (int32_t n = 0; n < p->num_pairs * p->num_nodes; n++) {
      int32_t found = -1;
      for (int32_t i = p->mark_offset[n]; i < p->mark_offset[n + 1]; i++)
        if (p->mark_token[i] == t) found = i;
      CHECK(tg_find(p->mark_token, p->mark_offset[n], p->mark_offset[n + 1], t) == found);
      if (found >= 0) CHECK(tg_mark_banned(p->mark_mask[found], forbidden) == is_banned(p->mark_mask[found], forbidden));
    }
  }
  int32_t due = tg_answer_eos(p, w->policy); /* an EOS may lie beyond every id above */
  CHECK(w->policy->num_eos ? tg_is_eos(w->policy, due) : due == -1);
}

/* A sequence that has gone on for billions of tokens: counters stop where they are, and nothing is written beside the ring. */
static void grow_old(bytes* in, tg_state* state, tg_loop* loop) {
  int32_t* counters[] = {&state->thinking, &state->block,      &state->blocks, &state->visible,      &state->answer,
                         &state->blank,    &state->extensions, &state->length, &state->header_tokens};
  for (size_t i = 0; i < sizeof counters / sizeof *counters; i++)
    if (take(in, 2)) *counters[i] = INT32_MAX - take(in, 3);
  if (!loop) return;
  loop->count = take(in, 2) ? (uint32_t)INT32_MAX - (uint32_t)take(in, 70) : UINT32_MAX - (uint32_t)take(in, 70);
  for (int32_t i = 0; i < TG_LOOP_PERIODS; i++) loop->run[i] = INT32_MAX - take(in, 3);
}

static void check_state(const world* w, const tg_state* state) {
  CHECK(state->node >= 0 && state->node < w->program.num_nodes && state->pair >= 0 && state->pair < w->program.num_pairs);
  CHECK(state->thinking >= 0 && state->block >= 0 && state->blocks >= 0 && state->visible >= 0 && state->answer >= 0);
  CHECK(state->blank >= 0 && state->extensions >= 0 && state->length >= 0 && state->header_tokens >= 0);
}

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  bytes in = {data, size};
  static world w;
  memset(&w, 0, sizeof w);
  int is_channel = take(&in, 3) == 0;
  make_vocabulary(&in, &w);
  make_patterns(&in, &w, is_channel);
  tg_lift* lift = NULL;
  if (tg_lift_new(&w.vocab, &w.patterns, &lift) != TG_OK) return 0;
  make_program(&in, &w, lift, is_channel);
  make_policy(&in, &w);
  check_lookups(&in, &w);
  int32_t tokens[MAX_STEPS], num_turn = take(&in, 8), num = 0, raw = take(&in, 4) == 0;
  int32_t limit = take(&in, 2) ? take(&in, 80) : TG_NO_LIMIT, found;
  for (int32_t i = 0; i < num_turn; i++) tokens[num++] = take(&in, w.vocab.num_tokens + 3) - 1;
  tg_ids turn = {tokens, 1, sizeof tokens[0]};
  int32_t skipped = take(&in, num + 1);
  tg_ids behind = {tokens + skipped, 1, sizeof tokens[0]};
  tg_program by_text = w.program;
  by_text.turns = &w.program;
  for (int i = 0; i < 2; i++) { /* by tokens, and by the markers as headers */
    const tg_program* program = i ? &by_text : &w.program;
    int64_t start = tg_turn_start(program, &turn, num, 0, &found);
    CHECK(start >= 0 && start <= num);
    int32_t raw_end = -1; /* the same from the prompt's end, or not known */
    int64_t from_end = tg_turn_start(program, &behind, num - skipped, MAX_SYMBOLS, &raw_end);
    CHECK(from_end == -1 ? raw_end == -1 : from_end + skipped == start && raw_end == found);
  }
  tg_state state, saved;
  tg_loop loop = {0}, *side = w.policy->loop_tokens ? &loop : NULL;
  tg_program asked = w.program; /* the markers are what says that thinking is on, too */
  asked.shown = &w.program;
  tg_start(&asked, w.policy, &turn, num, raw, limit, &state, side);
  tg_open(&asked, w.policy, &turn, num, &state);
  check_state(&w, &state);
  int is_old = take(&in, 4) == 0;
  if (is_old) grow_old(&in, &state, side);
  tg_state begun = state;
  tg_loop begun_loop = loop;
  while (num < MAX_STEPS && (in.size || num < num_turn + 4)) {
    int32_t best = check_step(&in, &w, &state), draw = take(&in, 4);
    tokens[num] = draw && best >= 0 ? best : take(&in, w.vocab.num_tokens + 3) - 1;
    tg_advance(&w.program, w.policy, &state, side, tokens[num++]);
    check_state(&w, &state);
  }
  saved = state;
  if (!is_old) tg_start(&asked, w.policy, &turn, num_turn, raw, limit, &state, side);
  if (!is_old) tg_open(&asked, w.policy, &turn, num_turn, &state);
  if (!is_old) CHECK(!memcmp(&begun, &state, sizeof state));
  state = begun;
  loop = begun_loop;
  int64_t output[2 * MAX_STEPS]; /* every other one, as a column of a host's ids */
  for (int32_t i = num_turn; i < num; i++) output[2 * (i - num_turn)] = tokens[i];
  tg_ids column = {output, 2, sizeof output[0]};
  tg_scan(&w.program, w.policy, &state, side, &column, num - num_turn);
  CHECK(!memcmp(&saved, &state, sizeof state));
  tg_lift_free(lift);
  return 0;
}
