/* walk.c: every state that a sequence can reach under a policy, in product with a reader of its text.
 *
 * A *pair* is where the machine stands and where the reader stands. From each pair all tokens are followed that tg_apply
 * leaves finite in a row of finite logits: a forced token alone, the target of a redirect but not its sources. Whatever the
 * logits, a sampler can do nothing else. Numbers that grow without end are cut off where the machine tells no larger ones
 * apart (`normal`); that this merges only what goes on alike is tried out on random walks that are not cut (`wander`).
 *
 * Nothing is known here of the rules, but for what each field of tg_state counts.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "thinkguard.h"

enum { MOST_WIDTH = 96, MOST_PATH = 256, MOST_PERIODS = 2, MOST_PAIRS = 1 << 21 };

/* What a token does to the reader's counts; as in reader.py. */
enum {
  THINKS = 1,
  ANSWERS = 2,
  IS_VISIBLE = 4,
  CLOSES = 8,
  RESTARTS = 16,
  MISREADS = 32,
  ENDS = 64,
  CUTS = 128,
  LEAVES = 256
};
enum { WHOLE = 1, LOST = 2 };

/* Where an edge leads that leads to no pair. */
enum { AT_LIMIT = -1, AT_EOS = -2 };

/* What is wrong; as in explorer.py. */
enum {
  FINE = 0,
  NO_MEMORY = 1,
  DEAD_END = 2,        /* a row of finite logits was left as it was */
  PREDICATE = 3,       /* tg_allows says something else */
  STRUCTURE = 4,       /* the text begins nothing that has the right structure */
  SKIPPED = 5,         /* without special tokens it does not */
  MISREAD = 6,         /* plain text reads as an added token of a marker */
  THOUGHT_LONG = 7,    /* more thinking was sampled than is allowed */
  THOUGHT_SHORT = 8,   /* less */
  ANSWERED_LONG = 9,   /* more answer was sampled than is allowed */
  UNFINISHED = 10,     /* EOS or the limit came before the text was whole */
  SKIPPED_END = 11,    /* without special tokens it is not whole */
  ANSWERED_SHORT = 12, /* EOS or the limit came before the least answer */
  VIOLATION = 13,      /* the machine itself calls an allowed token one */
  TRAP = 14,           /* from here no sequence of tokens leads to EOS or the limit */
  ENDLESS = 15,        /* a model that likes EOS best goes on for ever */
  CUT = 16,            /* a forced token or the limit cuts a character that could still be finished */
  NO_EOS = 17,         /* in the reasoning, but EOS does not fit behind it any more */
  MERGED = 18,         /* `normal` merged states that differ */
  UNBOUNDED = 19       /* more pairs than MOST_PAIRS */
};

typedef struct {
  const int32_t *shown, *skipped; /* [states, width] where a token leads */
  const int32_t* flags;           /* [states] WHOLE, LOST */
  const int32_t *scan, *does;     /* [places, width] where a token leads, and what it does */
  const int32_t* inside;          /* [places] whether that is in the reasoning */
  const int32_t* followed;        /* [width] 0: another token stands for this one */
  int32_t width;                  /* tokens, those beyond the vocabulary included */
  int32_t most_thinking, least_thinking, most_answer, least_answer; /* -1: no limit */
  int32_t must_end;  /* whether EOS that is always best has to end a sequence without a limit */
  int32_t quotes;    /* whether markers in the answer are violations without being wrong */
  int32_t num_walks; /* random walks that are not cut */
} wanted;

typedef struct {
  const int32_t* prompt;
  int32_t num_prompt, limit, shown, skipped, scan, thinking, visible; /* the reader's states and counts behind the prompt */
} beginning;

typedef struct {
  tg_state state;
  int32_t shown, skipped, scan, thinking, answer, visible;
  int32_t seen, last[MOST_PERIODS], runs[MOST_PERIODS], unused; /* what counts of the side block of loops */
} pair;

typedef struct {
  int32_t fault;     /* what is wrong */
  int32_t beginning; /* from where */
  int32_t num_tokens;
  int32_t tokens[MOST_PATH]; /* and by which tokens; the last is the one that broke the promise */
  int64_t pairs, edges, ends, wandered;
} outcome;

typedef struct {
  const tg_program* program;
  const tg_policy* policy;
  const wanted* reader;
  outcome* out;
  pair* pairs;
  int32_t *from, *by, *edge_of, *edges; /* of a pair: the one before it (or -1 - beginning), the token, its successors */
  uint8_t* greedy;                      /* of an edge: whether EOS-best logits can take it */
  int32_t* slots;
  int64_t num_pairs, room, num_slots, num_edges, edge_room;
} walk;

static void most(int32_t* value, int32_t limit) {
  if (*value > limit) *value = limit;
}

static int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

static uint32_t class_of(uint32_t byte) {
  if (byte >= '0' && byte <= '9') return '0';
  if (byte == '.' || byte == '!' || byte == '?') return '.';
  if (byte == '\n') return '\n';
  return !byte ? 0 : strchr("\"'`([{<>", (int)byte) ? '"' : 'a';
}

/* Of the last four bytes only those of the last character count, and of what stands before them whether it is a digit before
 * what may end a sentence, a line break before another, or a quote or bracket before what may begin an end. Bytes beyond ASCII
 * may be a character or a part of it: of what stands before them only a digit counts. */
static int32_t normal_tail(int32_t tail) {
  uint32_t text = (uint32_t)tail, kept = 0;
  int length = 0;
  while (length < 4 && (text >> 8 * length & 0xFF) >= 0x80) length++;
  if (!length) {
    uint32_t last = class_of(text & 0xFF), before = class_of(text >> 8 & 0xFF);
    int counts = last == '.' ? before == '0' : (last == '\n' || last == '"') && before == last;
    return (int32_t)(last | (counts ? before << 8 : 0));
  }
  for (int i = 0; i < length; i++) kept |= text & (uint32_t)0xFF << 8 * i;
  uint32_t before = length < 4 ? text >> 8 * length & 0xFF : 0;
  return (int32_t)(kept | (before >= '0' && before <= '9' ? (uint32_t)'0' << 8 * length : 0));
}

/* The state that stands for all that go on alike. Of a limit only the room that is left counts. */
static void normal(const tg_policy* policy, tg_state* state) {
  state->tail = normal_tail(state->tail);
  /* What ended the thinking decides, where the answer begins, whether a prefix is forced. */
  if (state->phase != TG_CLOSING && state->phase != TG_HEADING && state->body != TG_BODY_PREAMBLE)
    state->closed_by = TG_BY_NONE;
  else if (state->closed_by != TG_BY_NONE && state->closed_by != TG_BY_MODEL)
    state->closed_by = TG_BY_BUDGET;
  state->flags &= ~(TG_STATE_VIOLATION | TG_STATE_FORCED);
  if (state->limit != TG_NO_LIMIT) state->limit = state->limit > state->length ? state->limit - state->length : 0;
  state->length = 0;
  int32_t thinking = larger(larger(policy->max_thinking_tokens, policy->min_thinking_tokens), policy->soft_thinking_tokens);
  most(&state->thinking, thinking + 1);
  most(&state->block, policy->budget_per == TG_PER_BLOCK ? thinking + 1 : 1);
  most(&state->blocks, policy->max_think_blocks + 1);
  most(&state->visible, larger(policy->min_answer_tokens, 1));
  most(&state->answer, larger(policy->max_answer_tokens, -1) + 1);
  most(&state->blank, state->visible < policy->min_answer_tokens ? TG_BLANK_PATIENCE : 0);
  most(&state->extensions, policy->max_extensions);
  most(&state->header_tokens, TG_HEADER_PATIENCE);
}

/* The side block of a state. As many tokens count as the longest period is long, and of a run only what makes a loop. */
static void unfold(const tg_policy* policy, const pair* p, tg_loop* loop) {
  memset(loop, 0, sizeof *loop);
  loop->count = (uint32_t)p->seen;
  for (int32_t i = 0; i < policy->loop_tokens / 4; i++) {
    loop->ring[i] = p->last[i];
    loop->run[i] = p->runs[i];
  }
}

static void fold(const tg_policy* policy, pair* p, const tg_loop* loop) {
  int32_t periods = policy->loop_tokens / 4;
  int thinks = p->state.phase == TG_THINKING || p->state.phase == TG_CLOSING;
  p->seen = !thinks ? 0 : loop->count < (uint32_t)periods ? (int32_t)loop->count : periods;
  for (int32_t i = 0; i < periods; i++) {
    p->last[i] = i < p->seen ? loop->ring[(loop->count - (uint32_t)(p->seen - i)) % TG_LOOP_PERIODS] : 0;
    p->runs[i] = thinks ? loop->run[i] : 0;
    most(&p->runs[i], policy->loop_tokens + 3);
  }
}

/* --- one step --- */

/* What tg_apply leaves of a row in which EOS is best or all are the same; the best ones in `best`. Returns 0 where nothing
 * legal was finite. */
static int finite(const walk* w, const tg_state* state, uint8_t* allowed, uint8_t* best, int32_t* forced) {
  const wanted* r = w->reader;
  float row[MOST_WIDTH], top = -INFINITY;
  for (int32_t t = 0; t < r->width; t++) row[t] = 0;
  for (int32_t i = 0; i < w->policy->num_eos; i++) row[w->policy->eos[i]] = 1;
  tg_action action;
  tg_decide(w->program, w->policy, state, &action);
  *forced = action.kind == TG_FORCE;
  if (!tg_apply(w->program, w->policy, &action, row, TG_FLOAT32, 1, r->width)) return DEAD_END;
  int count = 0;
  for (int32_t t = 0; t < r->width; t++) {
    allowed[t] = row[t] > -INFINITY;
    count += allowed[t];
    if (row[t] > top) top = row[t];
    if (allowed[t] != (tg_allows(w->program, w->policy, &action, t) != 0)) return PREDICATE;
  }
  for (int32_t t = 0; t < r->width; t++) best[t] = row[t] == top;
  return count ? FINE : DEAD_END;
}

static int is_eos(const tg_policy* policy, int32_t token) {
  for (int32_t i = 0; i < policy->num_eos; i++)
    if (policy->eos[i] == token) return 1;
  return 0;
}

/* Whether the text may end here. */
static int ending(const wanted* r, const pair* p) {
  if (!(r->flags[p->shown] & WHOLE)) return UNFINISHED;
  if (!(r->flags[p->skipped] & WHOLE)) return SKIPPED_END;
  return p->visible < r->least_answer ? ANSWERED_SHORT : FINE;
}

static int has_room(const tg_state* state) { return state->limit == TG_NO_LIMIT || state->limit > state->length; }

/* Larger counts say no more. */
static void cut_counts(const wanted* r, pair* p) {
  most(&p->thinking, larger(r->most_thinking, r->least_thinking) + 1);
  most(&p->answer, r->most_answer + 1);
  most(&p->visible, r->least_answer);
}

/* Let machine and reader take a token; what is wrong with it. */
static int step(const walk* w, pair* p, tg_loop* loop, int32_t token, int32_t forced) {
  const wanted* r = w->reader;
  int32_t at = p->scan * r->width + token, does = r->does[at];
  int limited = p->state.limit != TG_NO_LIMIT;
  if (forced && does & CUTS) return CUT;
  tg_advance(w->program, w->policy, &p->state, loop, token);
  if (is_eos(w->policy, token)) {
    if (p->state.phase != TG_DONE) return UNFINISHED;
    int wrong = ending(r, p);
    return wrong ? wrong : p->state.flags & TG_STATE_VIOLATION ? VIOLATION : FINE;
  }
  p->scan = r->scan[at];
  p->shown = r->shown[p->shown * r->width + token];
  p->skipped = r->skipped[p->skipped * r->width + token];
  if (does & ENDS && p->thinking < r->least_thinking && !limited) return THOUGHT_SHORT;
  if (does & CLOSES) p->answer = p->visible = 0;
  if (does & RESTARTS) p->visible = 0;
  if (does & THINKS && !forced && r->most_thinking >= 0 && p->thinking >= r->most_thinking) return THOUGHT_LONG;
  if (does & THINKS && !forced) p->thinking++;
  if (does & ANSWERS && !forced) p->answer++;
  if (does & IS_VISIBLE) p->visible++;
  if (r->flags[p->shown] & LOST) return STRUCTURE;
  if (r->flags[p->skipped] & LOST) return SKIPPED;
  if (does & MISREADS) return MISREAD;
  if (r->most_answer >= 0 && p->answer > r->most_answer) return ANSWERED_LONG;
  if (p->state.flags & TG_STATE_VIOLATION && !r->quotes) return VIOLATION;
  if (does & LEAVES && !has_room(&p->state)) return CUT;
  cut_counts(r, p);
  return has_room(&p->state) ? FINE : ending(r, p);
}

/* --- the table of pairs --- */

static uint64_t hash_of(const pair* p) {
  uint64_t hash = 0x9E3779B97F4A7C15u, word;
  for (size_t at = 0; at + sizeof word <= sizeof *p; at += sizeof word) {
    memcpy(&word, (const char*)p + at, sizeof word);
    hash = (hash ^ word) * 0xBF58476D1CE4E5B9u;
    hash ^= hash >> 29;
  }
  return hash;
}

static int grown(void** data, int64_t count, size_t size) {
  void* wider = realloc(*data, (size_t)count * size);
  if (wider) *data = wider;
  return wider != NULL;
}

static int rehash(walk* w) {
  int64_t num_slots = w->num_slots ? 2 * w->num_slots : 4096;
  int32_t* slots = (int32_t*)malloc((size_t)num_slots * sizeof *slots);
  if (!slots) return 0;
  memset(slots, 0xFF, (size_t)num_slots * sizeof *slots);
  for (int64_t i = 0; i < w->num_pairs; i++) {
    uint64_t at = hash_of(&w->pairs[i]) & (uint64_t)(num_slots - 1);
    while (slots[at] >= 0) at = (at + 1) & (uint64_t)(num_slots - 1);
    slots[at] = (int32_t)i;
  }
  free(w->slots);
  w->slots = slots;
  w->num_slots = num_slots;
  return 1;
}

/* The number of a pair; -1: it is new and not to be added, or there is no memory for it. */
static int64_t number_of(walk* w, const pair* p, int add, int32_t from, int32_t by) {
  if (2 * w->num_pairs >= w->num_slots && !rehash(w)) return -1;
  uint64_t at = hash_of(p) & (uint64_t)(w->num_slots - 1);
  for (; w->slots[at] >= 0; at = (at + 1) & (uint64_t)(w->num_slots - 1))
    if (!memcmp(&w->pairs[w->slots[at]], p, sizeof *p)) return w->slots[at];
  if (!add) return -1;
  if (w->num_pairs == w->room) {
    int64_t room = w->room ? 2 * w->room : 1024;
    if (!grown((void**)&w->pairs, room, sizeof *w->pairs) || !grown((void**)&w->from, room, sizeof *w->from) ||
        !grown((void**)&w->by, room, sizeof *w->by) || !grown((void**)&w->edge_of, room + 1, sizeof *w->edge_of))
      return -1;
    w->room = room;
  }
  w->pairs[w->num_pairs] = *p;
  w->from[w->num_pairs] = from;
  w->by[w->num_pairs] = by;
  w->slots[at] = (int32_t)w->num_pairs;
  return w->num_pairs++;
}

static int add_edge(walk* w, int32_t to, uint8_t greedy) {
  if (w->num_edges == w->edge_room) {
    int64_t room = w->edge_room ? 2 * w->edge_room : 8192;
    if (!grown((void**)&w->edges, room, sizeof *w->edges) || !grown((void**)&w->greedy, room, sizeof *w->greedy)) return 0;
    w->edge_room = room;
  }
  w->edges[w->num_edges] = to;
  w->greedy[w->num_edges++] = greedy;
  return 1;
}

/* Say what is wrong, and the shortest way to a pair and one token further (-1: none). */
static int report(walk* w, int fault, int64_t at, int32_t token) {
  outcome* out = w->out;
  int32_t length = 0;
  out->fault = fault;
  for (int64_t i = at; i >= 0 && w->from[i] >= 0; i = w->from[i]) length++;
  if (length + 1 > MOST_PATH) length = MOST_PATH - 1;
  out->num_tokens = length + (token >= 0);
  if (token >= 0) out->tokens[length] = token;
  for (; at >= 0 && w->from[at] >= 0; at = w->from[at])
    if (length > 0) out->tokens[--length] = w->by[at];
  out->beginning = -1 - w->from[at];
  return fault;
}

/* --- what holds of all pairs together --- */

/* Whether EOS or the limit can be reached from everywhere, and EOS from the reasoning. */
static int check_traps(walk* w) {
  uint8_t* ends = (uint8_t*)calloc((size_t)w->num_pairs + 1, 1);
  if (!ends) return NO_MEMORY;
  for (int changed = 1; changed;) {
    changed = 0;
    for (int64_t i = w->num_pairs - 1; i >= 0; i--) {
      uint8_t found = ends[i];
      for (int32_t e = w->edge_of[i]; e < w->edge_of[i + 1]; e++) {
        int32_t to = w->edges[e];
        found |= to == AT_LIMIT ? 1 : to == AT_EOS ? 3 : ends[to];
      }
      changed |= found != ends[i];
      ends[i] = found;
    }
  }
  int wrong = FINE;
  for (int64_t i = 0; i < w->num_pairs && !wrong; i++) {
    if (!has_room(&w->pairs[i].state)) continue;
    if (!(ends[i] & 1))
      wrong = report(w, TRAP, i, -1);
    else if (!(ends[i] & 2) && w->reader->inside[w->pairs[i].scan])
      wrong = report(w, NO_EOS, i, -1);
  }
  free(ends);
  return wrong;
}

/* Whether steps that EOS-best logits can take go round: pairs that none of them leads to are taken away, again and again. */
static int check_endless(walk* w) {
  int32_t* into = (int32_t*)calloc((size_t)w->num_pairs + 1, sizeof *into);
  int32_t* free_ones = (int32_t*)malloc(((size_t)w->num_pairs + 1) * sizeof *free_ones);
  int64_t count = 0, left = w->num_pairs;
  if (!into || !free_ones) {
    free(into);
    free(free_ones);
    return NO_MEMORY;
  }
  for (int64_t e = 0; e < w->num_edges; e++)
    if (w->greedy[e] && w->edges[e] >= 0) into[w->edges[e]]++;
  for (int64_t i = 0; i < w->num_pairs; i++)
    if (!into[i]) free_ones[count++] = (int32_t)i;
  while (count) {
    int32_t i = free_ones[--count];
    left--;
    for (int32_t e = w->edge_of[i]; e < w->edge_of[i + 1]; e++)
      if (w->greedy[e] && w->edges[e] >= 0 && !--into[w->edges[e]]) free_ones[count++] = w->edges[e];
  }
  int64_t at = 0;
  while (left && at < w->num_pairs && !into[at]) at++;
  free(into);
  free(free_ones);
  return left ? report(w, ENDLESS, at, -1) : FINE;
}

/* Random walks in which nothing is cut: at each step the pair that stands for this one allows the same, and it was found. */
static int wander(walk* w, int32_t num_begins, const pair* first) {
  uint64_t seed = 1;
  for (int32_t i = 0; i < w->reader->num_walks; i++) {
    int32_t begin = i % num_begins, length = 0;
    pair p = first[begin];
    tg_loop loop;
    unfold(w->policy, &p, &loop);
    while (has_room(&p.state) && length < MOST_PATH) {
      pair n = p;
      fold(w->policy, &n, &loop);
      normal(w->policy, &n.state);
      uint8_t allowed[MOST_WIDTH], of_normal[MOST_WIDTH], best[MOST_WIDTH], best_of_normal[MOST_WIDTH];
      int32_t forced, other;
      int found = finite(w, &p.state, allowed, best, &forced),
          expected = finite(w, &n.state, of_normal, best_of_normal, &other);
      if (found || expected || forced != other || memcmp(allowed, of_normal, (size_t)w->reader->width) ||
          memcmp(best, best_of_normal, (size_t)w->reader->width) || number_of(w, &n, 0, 0, 0) < 0) {
        w->out->fault = MERGED;
        w->out->beginning = begin;
        w->out->num_tokens = length;
        return MERGED;
      }
      int32_t token;
      do {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        token = (int32_t)((seed >> 33) % (uint64_t)w->reader->width);
      } while (!allowed[token] || !w->reader->followed[token]);
      if (is_eos(w->policy, token)) break;
      w->out->tokens[length++] = token;
      step(w, &p, &loop, token, forced);
      w->out->wandered++;
    }
  }
  return FINE;
}

static int explore(walk* w, const beginning* begins, int32_t num_begins, pair* first) {
  const wanted* r = w->reader;
  if (r->width > MOST_WIDTH || w->policy->loop_tokens / 4 > MOST_PERIODS) return w->out->fault = NO_MEMORY;
  for (int32_t i = 0; i < num_begins; i++) {
    const beginning* b = &begins[i];
    tg_ids ids = {b->prompt, 1, 4};
    pair p;
    tg_loop loop;
    memset(&p, 0, sizeof p);
    tg_start(w->program, w->policy, &ids, b->num_prompt, 0, b->limit, &p.state, &loop);
    fold(w->policy, &p, &loop);
    p.shown = b->shown, p.skipped = b->skipped, p.scan = b->scan, p.thinking = b->thinking, p.visible = b->visible;
    cut_counts(r, &p);
    first[i] = p;
    normal(w->policy, &p.state);
    int64_t at = number_of(w, &p, 1, -1 - i, -1);
    if (at < 0) return w->out->fault = NO_MEMORY;
    if (!has_room(&p.state) && ending(r, &p)) return report(w, ending(r, &p), at, -1);
  }
  for (int64_t at = 0; at < w->num_pairs; at++) {
    if (w->num_pairs > MOST_PAIRS) return report(w, UNBOUNDED, at, -1);
    uint8_t allowed[MOST_WIDTH], best[MOST_WIDTH];
    int32_t forced;
    w->edge_of[at] = (int32_t)w->num_edges;
    if (!has_room(&w->pairs[at].state)) { /* it was judged when it was reached */
      w->out->ends++;
      continue;
    }
    int wrong = finite(w, &w->pairs[at].state, allowed, best, &forced);
    if (wrong) return report(w, wrong, at, -1);
    for (int32_t token = 0; token < r->width; token++) {
      if (!allowed[token] || !r->followed[token]) continue;
      pair p = w->pairs[at];
      tg_loop loop;
      unfold(w->policy, &p, &loop);
      if ((wrong = step(w, &p, &loop, token, forced))) return report(w, wrong, at, token);
      int64_t to = p.state.phase == TG_DONE ? AT_EOS : AT_LIMIT;
      if (p.state.phase == TG_DONE || !has_room(&p.state)) {
        w->out->ends++;
      } else {
        fold(w->policy, &p, &loop);
        normal(w->policy, &p.state);
        to = number_of(w, &p, 1, (int32_t)at, token);
        if (to < 0) return w->out->fault = NO_MEMORY;
      }
      if (!add_edge(w, (int32_t)to, best[token])) return w->out->fault = NO_MEMORY;
    }
  }
  w->edge_of[w->num_pairs] = (int32_t)w->num_edges;
  int wrong = check_traps(w);
  if (!wrong && r->must_end) wrong = check_endless(w);
  return wrong ? wrong : wander(w, num_begins, first);
}

/* Explore all that follows the beginnings, until something is wrong. Returns what is. */
int32_t walk_all(const tg_program* program, const tg_policy* policy, const wanted* reader, const beginning* begins,
                 int32_t num_begins, outcome* out) {
  walk w = {.program = program, .policy = policy, .reader = reader, .out = out};
  pair* first = (pair*)malloc(((size_t)num_begins + 1) * sizeof *first);
  memset(out, 0, sizeof *out);
  out->fault = first ? FINE : NO_MEMORY;
  if (first) out->fault = explore(&w, begins, num_begins, first);
  out->pairs = w.num_pairs;
  out->edges = w.num_edges;
  free(first);
  free(w.pairs);
  free(w.from);
  free(w.by);
  free(w.edge_of);
  free(w.edges);
  free(w.greedy);
  free(w.slots);
  return out->fault;
}

/* The bytes of what the caller hands over, so that it can see whether it was built of the same header. */
void walk_sizes(int32_t* sizes) {
  sizes[0] = (int32_t)sizeof(tg_program);
  sizes[1] = (int32_t)sizeof(tg_state);
  sizes[2] = (int32_t)sizeof(wanted);
  sizes[3] = (int32_t)sizeof(beginning);
}
